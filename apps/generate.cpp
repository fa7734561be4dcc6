// pronghorn generate: continue a text.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/ranks.h"
#include "base/terminal.h"
#include "command.h"
#include "decode/conversation.h"
#include "decode/generator.h"
#include "decode/shared_reading.h"
#include "decode/stop_filter.h"
#include "grammar/grammar_store.h"
#include "model/weight_bytes.h"
#include "output.h"

namespace pronghorn::app {
namespace {

struct GenerateCommand : WritingOptions {
  std::filesystem::path prompt_file, grammar_file, schema_file, image;
  std::string prompt;
  bool chat = false, echo = true;
  std::string sequence_parallel;
};

// What speculation did, and how fast plain decoding of the same session is.
struct SpeculationReport {
  SpeculationStats stats;
  std::string drafter;
  double plain_seconds = 0;  // 0: not measured
  double seconds = 0;        // with speculation
  bool same_text = true;

  double speed_up() const { return plain_seconds / std::max(1e-9, seconds); }
};

nlohmann::json to_json(const SpeculationReport& report) {
  nlohmann::json positions = nlohmann::json::array();
  for (size_t i = 0; i < report.stats.drafted_at.size(); ++i) {
    if (report.stats.drafted_at[i] == 0) break;
    positions.push_back(
        {{"drafted", report.stats.drafted_at[i]}, {"accepted", report.stats.accepted_at[i]}});
  }
  nlohmann::json json = {{"drafter", report.drafter},
                         {"drafted", report.stats.drafted},
                         {"accepted", report.stats.accepted},
                         {"acceptance", report.stats.acceptance()},
                         {"steps", report.stats.rounds},
                         {"speculative_steps", report.stats.speculated},
                         {"tokens_per_step", report.stats.tokens_per_round()},
                         {"draft_seconds", report.stats.draft_seconds},
                         {"verify_seconds", report.stats.step_seconds},
                         {"positions", positions}};
  if (report.plain_seconds > 0) {
    json["speed_up"] = report.speed_up();
    json["same_text_as_plain"] = report.same_text;
  }
  return json;
}

void print(const SpeculationReport& report) {
  const SpeculationStats& stats = report.stats;
  fmt::print(stderr, "draft {}: {} of {} guesses came true ({:.0f}%), {:.2f} tokens a step",
             report.drafter, stats.accepted, stats.drafted, 100 * stats.acceptance(),
             stats.tokens_per_round());
  if (report.plain_seconds > 0) {
    fmt::print(stderr, ", {:.2f} times as fast as plain decoding ({} text)", report.speed_up(),
               report.same_text ? "the same" : "another");
  }
  fmt::print(stderr, "\n");
}

// Why a text that ended before it began did so.
void explain_empty(const Generated& result, const ChatFormat& format, bool chat) {
  if (result.end != Generated::End::end_token ||
      result.text.find_first_not_of(" \n\t") != std::string::npos) {
    return;
  }
  fmt::print(stderr, "pronghorn: the model ended the text at once{}\n",
             format.has_template() && !chat
                 ? ": it is trained to answer in a chat (try --chat, or pronghorn chat)"
                 : "");
}

void print_stats(const Generated& result, const Session& session, Precision precision,
                 std::span<const double> kept) {
  const double prefill =
      static_cast<double>(result.prompt_tokens) / std::max(1e-9, result.prompt_seconds);
  const double decode = static_cast<double>(result.tokens) / std::max(1e-9, result.decode_seconds);
  // Diffusion models read with the text what begins a block.
  constexpr double kLeastSeconds = 1e-5;
  const std::string read =
      result.prompt_seconds > kLeastSeconds
          ? fmt::format(", {} tokens/s (weights were packed meanwhile)", format_count(prefill))
          : std::string();
  fmt::print(stderr, "prompt {} tokens{}; {} tokens at {} tokens/s; state {}; precision {}\n",
             result.prompt_tokens, read, result.tokens, format_count(decode),
             format_bytes(static_cast<double>(session.state().bytes())), name_of(precision));
  if (result.steps > 0) {
    fmt::print(stderr, "{} steps of the model, {:.2f} tokens a step\n", result.steps,
               static_cast<double>(result.tokens) / static_cast<double>(result.steps));
  }
  if (!kept.empty()) fmt::print(stderr, "{}\n", kept_text(kept));
}

nlohmann::json to_json(const Generated& result, const Session& session, Precision precision,
                       std::span<const double> kept) {
  const double prefill =
      static_cast<double>(result.prompt_tokens) / std::max(1e-9, result.prompt_seconds);
  const double decode = static_cast<double>(result.tokens) / std::max(1e-9, result.decode_seconds);
  return {{"text", result.text},
          {"ids", result.ids},
          {"end", end_name(result.end)},
          {"prompt_tokens", result.prompt_tokens},
          {"tokens", result.tokens},
          {"steps", result.steps},
          {"context", session.length()},
          {"state_bytes", session.state().bytes()},
          {"kept_shares", kept},
          {"prompt_tokens_per_second", prefill},
          {"prompt_includes_packing", true},
          {"decode_tokens_per_second", decode},
          {"precision", name_of(precision)}};
}

// The text to continue; nothing is loaded before it is read.
std::string prompt_of(const GenerateCommand& options) {
  if (!options.prompt.empty() && !options.prompt_file.empty()) {
    throw UsageError("--prompt-file", "there is a --prompt too", "give one of them");
  }
  if (options.chat && options.prompt.empty() && options.prompt_file.empty()) {
    throw UsageError("--chat", "needs a --prompt or --prompt-file");
  }
  if (!options.system.empty() && !options.chat) {
    throw UsageError("--system", "is for chats", "add --chat");
  }
  if (!options.image.empty() && options.chat) {
    throw UsageError("--image", "does not go with --chat", "give a plain --prompt");
  }
  if (!options.image.empty() && options.prompt.empty() && options.prompt_file.empty()) {
    throw UsageError("--prompt", "is missing: what a text about an image begins with");
  }
  if (!options.prompt_file.empty()) return read_input(options.prompt_file);
  return options.prompt == "-" ? read_input("-") : options.prompt;
}

// Writes text as it comes. When that fails, the generation is asked to end, and what failed is
// thrown when the session is saved.
class Shown {
 public:
  // held: nothing is written before release().
  Shown(bool wanted, bool held) : wanted_(wanted), held_(held) {}
  void write(std::string_view text) {
    if (held_) waiting_ += text;
    if (!wanted_ || held_ || failure_ != nullptr) return;
    try {
      write_output(text);
    } catch (...) {
      failure_ = std::current_exception();
    }
  }
  void release() {
    held_ = false;
    write(std::exchange(waiting_, {}));
  }
  bool failed() const { return failure_ != nullptr; }
  void rethrow() const {
    if (failure_ != nullptr) std::rethrow_exception(failure_);
  }

 private:
  bool wanted_, held_;
  std::string waiting_;
  std::exception_ptr failure_;
};

// How the canvas of a diffusion model fills, on stderr.
class CanvasProgress {
 public:
  CanvasProgress(const Tokenizer& tokenizer, int64_t tokens)
      : tokenizer_(tokenizer), progress_("filling in", static_cast<double>(tokens), "tokens") {}

  void show(std::span<const int32_t> canvas) {
    constexpr int64_t kBefore = 12, kShown = 60;  // tokens around the first that is masked
    const auto first = std::ranges::find(canvas, -1) - canvas.begin();
    const int64_t from = std::max<int64_t>(0, first - kBefore);
    std::string text;
    for (int64_t i = from; i < std::min(std::ssize(canvas), from + kShown); ++i) {
      const int32_t token = canvas[static_cast<size_t>(i)];
      if (token >= tokenizer_.vocab_size()) continue;
      text += token < 0 ? "_" : tokenizer_.decode({&token, 1});
    }
    const auto known = std::ssize(canvas) - std::ranges::count(canvas, -1);
    progress_.update(static_cast<double>(known), printable(text, kShown));
  }
  void finish() { progress_.finish(); }

 private:
  const Tokenizer& tokenizer_;
  Progress progress_;
};

// One text to write: a plain continuation, or an answer in a conversation.
class Text {
 public:
  Text(const GenerateCommand& options, const TextModel& loaded)
      : options_(options), loaded_(loaded), session_(*loaded.model, options.cache) {
    resumes_ = !options.session.empty() && std::filesystem::exists(options.session);
    if (options.chat) {
      conversation_.emplace(*loaded.model, *loaded.tokenizer, loaded.format, options.cache);
      if (resumes_) conversation_->load(options.session);
      if (!options.system.empty()) conversation_->set_system(options.system);
    } else if (resumes_) {
      session_ = Session::load(options.session, *loaded.model, options.cache);
    }
  }

  // Before the text, of a model that sees images.
  void see(const Image& image, Precision precision) {
    Context context;
    context.precision = precision;
    session_.see(*loaded_.model, context, image);
  }

  bool resumes() const { return resumes_; }
  const Session& session() const { return options_.chat ? conversation_->session() : session_; }

  Generated write(const std::string& prompt, const GenerateOptions& generate,
                  const std::function<void(std::string_view)>& emit = {},
                  const std::function<bool()>& interrupted = {}, Speculation* speculation = nullptr,
                  const std::function<void(std::span<const int32_t>)>& on_canvas = {}) {
    if (options_.chat) {
      return conversation_->answer(prompt, generate, emit, interrupted, speculation);
    }
    const Tokenizer& tokenizer = *loaded_.tokenizer;
    const std::vector<int32_t> tokens = tokenizer.encode(prompt, session_.next_text(tokenizer));
    const Generation generation{&session_, tokens, generate, emit, interrupted, on_canvas};
    return pronghorn::generate(*loaded_.model, tokenizer, {&generation, 1}, speculation).front();
  }

  void save() {
    if (options_.session.empty()) return;
    if (options_.chat) return conversation_->save(options_.session);
    session_.set_attachment({});  // the messages of a chat do not tell of what was written since
    session_.save(options_.session);
  }

 private:
  const GenerateCommand& options_;
  const TextModel& loaded_;
  Session session_;
  std::optional<Conversation> conversation_;
  bool resumes_ = false;
};

// release: called when no prompt is to be read any more.
void write(const GenerateCommand& options, const SequenceSharing& sharing,
           const std::function<void()>& release) {
  check_sampling(options.generate.sampling);
  StopFilter(options.generate.stop);  // refuses what cannot be found before anything is shown
  const std::string prompt = prompt_of(options);
  const auto text_of = [](const std::filesystem::path& file) {
    return file.empty() ? std::string() : read_input(file);
  };
  const std::string grammar = text_of(options.grammar_file), schema = text_of(options.schema_file);
  check_drafters(options.draft);
  const TextModel loaded = load_text_model(options.model, options.adapter);
  GenerateOptions generate = options.generate;
  generate.precision = options.precision.value_or(stored_precision(*loaded.model));
  generate.context = limit_of(options.generate.context, options.cache, *loaded.model);
  generate.sharing = sharing;
  generate.end_tokens =
      loaded.format.end_tokens(*loaded.tokenizer, loaded.model->config().vocab_size);
  GrammarStore grammars(loaded.tokenizer, loaded.model->config().vocab_size);
  generate.grammar = written_grammar(grammar, schema, grammars);
  Text text(options, loaded);
  if (!options.image.empty()) text.see(read_image_file(options.image), generate.precision);

  std::unique_ptr<Speculation> speculation;
  if (!options.draft.empty()) {
    speculation = std::make_unique<Speculation>(
        make_drafter(options.draft, *loaded.model, *loaded.tokenizer), options.speculation);
  }
  // Only then: what a copy shares must be copied again when it is written.
  std::optional<Text> before;
  if (speculation != nullptr && options.stats) before.emplace(text);

  check_settings(*loaded.model, generate, speculation != nullptr);  // before the prompt is shown
  // A canvas that fills on a terminal and a text that grows there would be in each other's way.
  const bool diffusion = loaded.model->config().diffusion.has_value();
  Shown shown(!options.json, diffusion && is_terminal(STDOUT_FILENO) && is_terminal(STDERR_FILENO));
  if (options.echo && !options.chat && !text.resumes()) shown.write(prompt);
  std::optional<CanvasProgress> canvas;
  if (diffusion) canvas.emplace(*loaded.tokenizer, generate.max_tokens);
  const Generated result = text.write(
      prompt, generate, [&](std::string_view piece) { shown.write(piece); },
      [&] { return shown.failed(); }, speculation.get(),
      [&](std::span<const int32_t> tokens) { canvas->show(tokens); });
  if (canvas) canvas->finish();
  shown.release();
  std::optional<SpeculationReport> report;
  if (speculation != nullptr) {
    report = {speculation->stats(), speculation->drafter().name(), 0, result.decode_seconds, true};
    if (before) {
      const Generated plain = before->write(prompt, generate);
      report->plain_seconds = plain.decode_seconds;
      report->same_text = plain.text == result.text;
    }
  }
  release();
  text.save();
  shown.rethrow();

  const std::vector<double> kept = loaded.model->measured_shares(text.session().state());
  if (options.json) {
    nlohmann::json json = to_json(result, text.session(), generate.precision, kept);
    if (report) json["speculation"] = to_json(*report);
    return print_json(json);
  }
  write_output("\n");  // before what goes to stderr
  explain_empty(result, loaded.format, options.chat);
  if (options.stats) print_stats(result, text.session(), generate.precision, kept);
  if (report) print(*report);
}

// Reads prompts along with the first process, which has them.
void help(const GenerateCommand& options, const SequenceSharing& sharing) {
  const std::unique_ptr<Model> model = load_model(options.model, options.adapter);
  Context context;
  context.precision = options.precision.value_or(stored_precision(*model));
  help_reading(*model, context, sharing);
}

void run(const GenerateCommand& options) {
  if (options.sequence_parallel.empty()) return write(options, {}, [] {});
  if (!(options.cache == CacheOptions())) {
    throw UsageError("--sequence-parallel", "with a cache of another kind than the default",
                     "leave out what says how keys and values are kept");
  }
  if (!options.image.empty()) {
    throw UsageError("--sequence-parallel", "with an --image", "it is for models of texts");
  }
  const std::unique_ptr<Ranks> ranks = join_ranks();
  const SequenceSharing sharing{ranks.get(), sequence_parallel_named(options.sequence_parallel)};
  if (!sharing.is_on()) return write(options, sharing, [] {});
  if (!ranks->is_root()) show_messages(false);
  bool waiting = true;
  try {
    if (!ranks->is_root()) return help(options, sharing);
    write(options, sharing, [&] {
      end_reading(*ranks);
      waiting = false;
    });
  } catch (const std::exception& error) {
    // The others wait for this rank: they must end too.
    if (waiting) ranks->abandon(error.what());
    throw;
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a model");
  auto options = std::make_shared<GenerateCommand>();
  add_writing_options(*command, *options);
  command->add_option("--prompt", options->prompt, "text to continue (- reads standard input)");
  command->add_option("--prompt-file", options->prompt_file,
                      "file that holds the prompt (- reads standard input)");
  command->add_option(
      "--image", options->image,
      "image (.png, .pgm, .ppm) that the text is about, for a model that sees them");
  command->add_flag(
      "--chat", options->chat,
      "the prompt is a user's message: write the answer, as the model's chat template "
      "has it");
  command->add_option("--system", options->system, "system message of --chat");
  command->add_option("--grammar", options->grammar_file,
                      "file with a grammar (GBNF) that the text must follow");
  command->add_option("--json-schema", options->schema_file,
                      "file with a JSON schema that the text must follow");
  add_sequence_parallel_option(*command, options->sequence_parallel);
  command->get_option("--sequence-parallel")
      ->description(
          "under mpirun, all processes read a long prompt together, by heads (ulysses) or by "
          "pieces (ring); the first one then has its state and writes");
  command->add_flag("!--no-echo", options->echo, "do not print the prompt");
  command->add_option("-n,--tokens", options->generate.max_tokens, "tokens to generate")
      ->transform(natural_number());
  command->add_option("--session", options->session,
                      "file to continue from, if it exists, and to save to");
  command->add_flag(
      "--stats", options->stats,
      "print speed and state size on stderr; with --draft also measure plain decoding");
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
