// pronghorn eval: perplexity and bits per byte on a text, accuracy on a synthetic task.
#include <algorithm>
#include <memory>
#include <optional>

#include "api/parts.h"
#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "model/model.h"
#include "model/weight_bytes.h"
#include "train/captions.h"
#include "train/evaluate.h"
#include "train/sound.h"
#include "train/tasks.h"
#include "train/text_source.h"

namespace pronghorn::app {
namespace {

struct EvalOptions : Common {
  std::filesystem::path model, adapter;
  std::vector<std::filesystem::path> data;
  int64_t window = 0, examples = 256, stream = 0, samples = kBoundSamples;
  SyntheticTask task;
  std::optional<Precision> precision;
  CacheOptions cache;
  ContextLimit context = ContextLimit::warn;
  std::string sequence_parallel;
};

nlohmann::json expert_shares_json(const ExpertLoads& loads) {
  nlohmann::json json = nlohmann::json::array();
  for (const auto& [layer, shares] : loads.shares()) {
    json.push_back({{"layer", layer}, {"shares", shares}});
  }
  return json;
}

// What the least and the most used expert of each layer were given, 1 being an equal share.
void print_expert_shares(const ExpertLoads& loads) {
  lab::Table table({{"layer"}, {"experts"}, {"least used"}, {"most used"}});
  for (const auto& [layer, shares] : loads.shares()) {
    const auto [least, most] = std::ranges::minmax(shares);
    table.add_row({std::to_string(layer), std::to_string(shares.size()),
                   fmt::format("{:.2f}", least), fmt::format("{:.2f}", most)});
  }
  fmt::print("\nexperts, in shares of an equal load\n");
  print_table(table);
}

void eval_text(const EvalOptions& options, const Model& model, Precision precision, int64_t window,
               const SequenceSharing& sharing) {
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  TextScore score;
  check_context(model, window, limit_of(options.context, options.cache, model));
  Progress progress("eval", 0, "tokens");
  for_each_document(options.data, [&](std::string_view text, const std::string&) {
    const std::vector<int32_t> tokens = tokenizer->encode(text);
    TextScore part = evaluate_tokens(
        model, precision, tokens, window, [&](double done) { progress.update(done); },
        options.cache, options.samples, sharing);
    part.bytes = predicted_bytes(*tokenizer, text, tokens);
    score += part;
  });
  progress.finish();
  if (!sharing.ranks->is_root()) return;  // the first process prints
  require(score.tokens > 0, "--data", "no text has a second token to predict");
  if (options.json) {
    return print_json({{"tokens", score.tokens},
                       {"bytes", static_cast<int64_t>(score.bytes)},
                       {"nll", score.nll},
                       {"perplexity", score.perplexity()},
                       {"bits_per_byte", score.bits_per_byte()},
                       {"bound_samples", score.samples},
                       {"kept_shares", score.kept_shares()},
                       {"expert_shares", expert_shares_json(score.expert_loads)},
                       {"window", window},
                       {"precision", name_of(precision)}});
  }
  fmt::print(
      "tokens         {}\nbytes          {:.0f}\nnll            {:.1f} nats\n"
      "perplexity     {:.4f}\nbits per byte  {:.4f}\nprecision      {}\n",
      score.tokens, score.bytes, score.nll, score.perplexity(), score.bits_per_byte(),
      name_of(precision));
  if (score.samples > 0) {
    fmt::print("upper bounds, estimated from {} samples of each window\n", score.samples);
  }
  if (!score.entered.empty()) fmt::print("{}\n", kept_text(score.kept_shares()));
  if (!score.expert_loads.empty()) print_expert_shares(score.expert_loads);
}

// Reads the beginning of the texts as one sequence and shows how it goes as that grows.
void eval_stream(const EvalOptions& options, const Model& model, Precision precision) {
  std::vector<int32_t> tokens =
      load_tokenizer(options.model)->encode(read_text(options.data, 64 << 20));
  const auto all = static_cast<int64_t>(tokens.size());
  require(all > options.stream, "--stream", "the texts have {} tokens, fewer than {} and a next",
          all, options.stream);
  tokens.resize(static_cast<size_t>(options.stream) + 1);
  check_context(model, options.stream, limit_of(options.context, options.cache, model));
  constexpr int64_t kParts = 32;
  Progress progress("stream", static_cast<double>(options.stream), "tokens");
  const std::vector<StreamPart> parts = evaluate_stream(
      model, precision, tokens, (options.stream + kParts - 1) / kParts,
      [&](double done) { progress.update(done); }, options.cache);
  progress.finish();
  nlohmann::json json = nlohmann::json::array();
  lab::Table table({{"tokens"}, {"loss"}, {"tokens/s"}, {"state"}, {"memory"}});
  for (const StreamPart& part : parts) {
    const double loss = part.nll / static_cast<double>(part.tokens);
    const double speed = static_cast<double>(part.tokens) / part.seconds;
    table.add_row({std::to_string(part.begin + part.tokens), fmt::format("{:.4f}", loss),
                   format_count(speed), format_bytes(static_cast<double>(part.state_bytes)),
                   format_bytes(static_cast<double>(part.peak_bytes))});
    json.push_back({{"tokens", part.begin + part.tokens},
                    {"loss", loss},
                    {"tokens_per_second", speed},
                    {"state_bytes", part.state_bytes},
                    {"peak_bytes", part.peak_bytes}});
  }
  if (options.json) return print_json({{"parts", json}, {"precision", name_of(precision)}});
  print_table(table);
  fmt::print("precision {}\n", name_of(precision));
}

void eval_task(const EvalOptions& options, const Model& model, Precision precision) {
  TaskOptions task = task_options(options.task);
  if (task_type(task.name).text) task.text = task_text(options.data);
  if (task.vocab_size == 0) task.vocab_size = model.config().vocab_size;
  const std::unique_ptr<DataSource> source = make_task(task);
  require(source->vocab_size() <= model.config().vocab_size, "--task",
          "needs a vocabulary of {}, the model has {}", source->vocab_size(),
          model.config().vocab_size);
  Progress progress("eval", static_cast<double>(options.examples * source->length()), "tokens");
  const TaskScore score = evaluate_task(model, precision, *source, options.examples,
                                        [&](double done) { progress.update(done); });
  progress.finish();
  if (options.json) {
    return print_json({{"task", task.name},
                       {"length", source->length()},
                       {"examples", options.examples},
                       {"answers", score.answers},
                       {"correct", score.correct},
                       {"solved", score.solved},
                       {"accuracy", score.accuracy()},
                       {"chance", source->chance()},
                       {"precision", name_of(precision)}});
  }
  fmt::print(
      "{} at length {}: {} of {} answers right, {:.2f}% ({:.2f}% by chance); {} of {} examples "
      "solved (precision {})\n",
      task.name, source->length(), score.correct, score.answers, 100 * score.accuracy(),
      100 * source->chance(), score.solved, score.examples, name_of(precision));
}

void eval_images(const EvalOptions& options, const Model& model, Precision precision) {
  require(model.config().image.has_value(), "--task", "images for a model of something else");
  const ImageFolder images = read_image_folder(options.data.front());
  ImageSource source(*model.config().image, images, 0, 0);
  const int64_t count = source.held_out_examples();
  Progress progress("eval", static_cast<double>(count * source.length()), "tokens");
  const double start = now_seconds();
  const TaskScore score =
      evaluate_task(model, precision, source, count, [&](double done) { progress.update(done); });
  const double rate = static_cast<double>(count) / (now_seconds() - start);
  progress.finish();
  if (options.json) {
    return print_json({{"task", "images"},
                       {"images", count},
                       {"correct", score.correct},
                       {"accuracy", score.accuracy()},
                       {"nll", score.nll / static_cast<double>(count)},
                       {"chance", source.chance()},
                       {"images_per_second", rate},
                       {"precision", name_of(precision)}});
  }
  fmt::print("{} of {} images right, {:.2f}% ({:.2f}% by chance); {} images/s (precision {})\n",
             score.correct, count, 100 * score.accuracy(), 100 * source.chance(),
             format_count(rate), name_of(precision));
}

void eval_captions(const EvalOptions& options, const Model& model, Precision precision) {
  require(model.config().vision.has_value(), "--task", "captions for a model that sees no images");
  const CaptionFolder captions = read_caption_folder(options.data.front());
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  CaptionSource source(*model.config().vision, captions, *tokenizer, 0, 0);
  const int64_t count = source.held_out_examples();
  Progress progress("eval", static_cast<double>(count * source.length()), "tokens");
  const TaskScore score =
      evaluate_task(model, precision, source, count, [&](double done) { progress.update(done); });
  progress.finish();
  const double nll = score.nll / static_cast<double>(score.answers);
  if (options.json) {
    return print_json({{"task", "captions"},
                       {"images", count},
                       {"tokens", score.answers},
                       {"accuracy", score.accuracy()},
                       {"whole", score.solved},
                       {"nll", nll},
                       {"precision", name_of(precision)}});
  }
  fmt::print(
      "{} of {} captions wholly right, {:.2f}% of their tokens; {:.4f} nats a token (precision "
      "{})\n",
      score.solved, count, 100 * score.accuracy(), nll, name_of(precision));
}

void eval_sound(const EvalOptions& options, const Model& model, Precision precision) {
  require(model.config().sound.has_value(), "--task", "sound for a model of something else");
  SoundSource source(*model.config().sound, read_sound_folder(options.data.front()), 0);
  Progress progress("eval", static_cast<double>(source.held_out_examples()), "sounds");
  const SoundScore score =
      evaluate_sound(model, precision, source, [&](double done) { progress.update(done); });
  progress.finish();
  if (options.json) {
    return print_json({{"task", "sound"},
                       {"sounds", score.sounds},
                       {"solved", score.solved},
                       {"words", score.words},
                       {"word_errors", score.word_errors},
                       {"word_accuracy", score.word_accuracy()},
                       {"symbol_accuracy", score.symbol_accuracy()},
                       {"sound_seconds", score.sound_seconds},
                       {"sound_per_second", score.sound_per_second()},
                       {"precision", name_of(precision)}});
  }
  fmt::print(
      "{:.2f}% of {} words right, {:.2f}% of the characters; {} of {} sounds without an error; {} "
      "seconds of sound a second (precision {})\n",
      100 * score.word_accuracy(), score.words, 100 * score.symbol_accuracy(), score.solved,
      score.sounds, format_count(score.sound_per_second()), name_of(precision));
}

void eval_model(const EvalOptions& options, const SequenceSharing& sharing) {
  const std::unique_ptr<Model> model = load_model(options.model, options.adapter);
  const Precision precision = options.precision.value_or(stored_precision(*model));
  if (is_images_task(options.task.name)) return eval_images(options, *model, precision);
  if (is_captions_task(options.task.name)) return eval_captions(options, *model, precision);
  if (is_sound_task(options.task.name)) return eval_sound(options, *model, precision);
  require_reads_texts(model->config(), options.model.string());
  if (!options.task.name.empty()) return eval_task(options, *model, precision);
  if (options.stream > 0) return eval_stream(options, *model, precision);
  const int64_t window = options.window > 0 ? options.window : default_window(model->config());
  eval_text(options, *model, precision, window, sharing);
}

void run(const EvalOptions& options) {
  if (options.data.empty() && options.task.name.empty()) {
    throw UsageError("eval", "needs --data or --task");
  }
  const bool folder = is_folder_task(options.task.name) || is_captions_task(options.task.name);
  const bool text = folder || options.task.name.empty() || task_type(options.task.name).text;
  if (text && options.data.empty()) throw UsageError("--data", "missing");
  if (!text && !options.data.empty()) throw UsageError("--task", "needs no --data");
  if (options.sequence_parallel.empty()) return eval_model(options, {});
  if (!options.task.name.empty() || options.stream > 0) {
    throw UsageError("--sequence-parallel", "is for texts in windows",
                     "give --data and --window, without --task and --stream");
  }
  const std::unique_ptr<Ranks> ranks = join_ranks();
  const SequenceSharing sharing{ranks.get(), sequence_parallel_named(options.sequence_parallel)};
  if (ranks->count() == 1) return eval_model(options, sharing);
  if (!ranks->is_root()) show_messages(false);
  // The others wait for this rank: they must end too.
  try {
    eval_model(options, sharing);
  } catch (const std::exception& error) {
    ranks->abandon(error.what());
  }
}

}  // namespace

void add_eval(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("eval", "Perplexity and bits per byte, or accuracy on a task");
  auto options = std::make_shared<EvalOptions>();
  command->add_option("model", options->model, "checkpoint directory")->required();
  add_adapter_option(*command, options->adapter);
  command->add_option("--data", options->data,
                      "text files or folders; of --task images, captions and sound as in training");
  command
      ->add_option("--window", options->window,
                   "tokens of a sequence (default: as in training, else 1024); see --stream for "
                   "long ones")
      ->transform(positive_integer())
      ->check(CLI::Range(int64_t{1}, kMaxWindow));
  command
      ->add_option("--stream", options->stream,
                   "read that many tokens as one sequence; shows loss, speed and memory on the way")
      ->transform(positive_integer())
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  add_task_options(*command, options->task);
  add_sequence_parallel_option(*command, options->sequence_parallel);
  command
      ->add_option("--samples", options->samples,
                   "samples of each window for the bound of a diffusion model (default: 4)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->add_option("--examples", options->examples, "examples of the task")
      ->transform(positive_integer());
  add_precision_option(*command, options->precision);
  add_cache_options(*command, options->cache);
  add_context_option(*command, options->context);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
