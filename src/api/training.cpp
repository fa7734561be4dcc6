// Training and comparing, as the public surface and the command line do it.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "api/parts.h"
#include "base/directory_lock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/ranks.h"
#include "formats/json.h"
#include "lab/compare.h"
#include "train/captions.h"
#include "train/corpus.h"
#include "train/finetune.h"
#include "train/images.h"
#include "train/sound.h"
#include "train/trainer.h"

namespace pronghorn {

namespace {

// Keys of a "train" object, from the text of one; empty: none.
nlohmann::json settings_of(const std::string& text) {
  if (text.empty()) return nlohmann::json::object();
  nlohmann::json settings = parse_json(text, "settings");
  require(settings.is_object(), "settings", "must be a JSON object");
  return settings;
}

void check_options(const TrainingOptions& options, bool trained) {
  const bool lora = options.adapter.rank > 0;
  const std::pair<bool, const char*> of_new_models[] = {{!options.task.name.empty(), "task"},
                                                        {options.vocab_size > 0, "vocab_size"},
                                                        {!options.tokenizer.empty(), "tokenizer"},
                                                        {options.mtp_heads >= 0, "mtp_heads"}};
  for (const auto& [given, field] : of_new_models) {
    if (trained && given) throw UsageError(field, "does not go with a trained model", "omit it");
  }
  if (!trained && lora) {
    throw UsageError("adapter", "changes a trained model", "give one, not a configuration");
  }
  if (!trained && options.masked_diffusion) {
    throw UsageError("masked_diffusion", "changes a trained model",
                     "a configuration has the key \"diffusion\"");
  }
  if (lora && options.masked_diffusion) {
    throw UsageError("masked_diffusion", "changes all weights", "give no adapter");
  }
  if (options.mask_token >= 0 && !options.masked_diffusion) {
    throw UsageError("mask_token", "is for masked diffusion of a trained model");
  }
  if (!options.tokenizer.empty() && options.vocab_size > 0) {
    throw UsageError("tokenizer", "given together with the size of a vocabulary", "give one");
  }
  const std::string& task = options.task.name;
  const bool captions = is_captions_task(task);
  if (captions || is_folder_task(task)) {
    if (options.data.size() != 1) {
      throw UsageError(
          "data", "must be one folder",
          fmt::format("with {} in it", captions ? "train/captions.tsv and test/captions.tsv"
                                                : folder_of_task(task)));
    }
    if (captions && options.vocab_size > 0) {
      throw UsageError("vocab_size", "captions are read as bytes", "or give a tokenizer");
    }
    if (!captions && (options.vocab_size > 0 || !options.tokenizer.empty())) {
      throw UsageError("task", "needs no tokenizer");
    }
    return;
  }
  const bool text = task.empty() || task_type(task).text;
  if (text && options.data.empty()) {
    throw UsageError("data", "missing", task.empty() ? "or a task, for a synthetic one" : "");
  }
  if (!text && !options.data.empty()) {
    throw UsageError("data", "given to a task that needs none");
  }
}

// What a run needs, from where its examples come to how it is trained.
class Training {
 public:
  Training(const TrainingOptions& options, const TrainingCallback& on_step, Ranks& ranks)
      : options_(options), ranks_(ranks), trained_(is_checkpoint(options.config)) {
    run_.ranks = &ranks;
    if (options.seconds > 0) run_.budget.seconds = options.seconds;
    if (options.tokens > 0) run_.budget.tokens = options.tokens;
    if (options.steps > 0) run_.budget.steps = options.steps;
    run_.seed = options.seed;
    run_.directory = options.directory;
    run_.resume = options.resume;
    run_.evaluate_every = options.evaluate_every;
    run_.checkpoint_seconds = options.checkpoint_seconds;
    if (on_step) {
      run_.on_step = [on_step](const TrainLogLine& line) {
        return on_step({line.step, line.tokens, line.seconds, line.loss, line.learning_rate,
                        line.held_out_bits_per_byte.value_or(0)});
      };
    }
    ModelConfig config;
    if (!trained_) config = read_config();
    std::error_code none_there;
    require(
        !trained_ || holds_training_run(options.directory) ||
            !std::filesystem::equivalent(options.config, options.directory, none_there),
        options.directory.string(),
        "is the checkpoint to start from, which would be overwritten (choose another directory)");
    if (ranks.is_root()) lock_.emplace(options.directory);
    check_directory(options.directory, options.resume);
    // The first rank prepares the data, and the others find it there.
    if (!ranks.is_root()) wait_for_all(ranks);
    if (trained_) {
      load_model();
    } else {
      make_model(std::move(config));
    }
    if (ranks.is_root()) wait_for_all(ranks);
  }

  TrainingResult run() {
    spdlog::info("{} parameters, {} tokens a step",
                 format_count(static_cast<double>(model_->parameter_count())),
                 run_.config.batch_tokens);
    const TrainResult result =
        pronghorn::train(*model_, *source_, held_out_.get(), corpus_.tokenizer.get(), run_);
    return {.steps = result.steps,
            .tokens = result.tokens,
            .seconds = result.seconds,
            .tokens_per_second = result.tokens_per_second,
            .held_out_bits_per_byte = result.held_out_bits_per_byte.value_or(0),
            .stopped = result.interrupted,
            .start_bits_per_byte = result.start_bits_per_byte.value_or(0),
            .best_bits_per_byte = result.best_bits_per_byte.value_or(0),
            .is_bound = result.is_bound,
            .accuracy = result.accuracy,
            .parameters = model_->parameter_count(),
            .peak_bytes = result.peak_bytes,
            .rank = ranks_.rank()};
  }

 private:
  std::filesystem::path data_directory() const { return options_.directory / "data"; }

  // Each rank has something to do in a step.
  void share_steps() {
    const int64_t teams = ranks_.count() / ranks_together(run_.config, ranks_.count());
    run_.config.gradient_groups = std::max(run_.config.gradient_groups, teams);
  }

  // The configuration of a new model, and how it is to be trained.
  ModelConfig read_config() {
    require(!std::filesystem::is_directory(options_.config), options_.config.string(),
            "is a directory without weights (to train new ones, give a configuration file)");
    ModelConfig config = load_config(options_.config);
    nlohmann::json settings = config.train.is_null() ? nlohmann::json::object() : config.train;
    settings.update(settings_of(options_.settings));
    run_.config = read_train_config(ConfigReader(settings, options_.config.string() + ": train"));
    share_steps();
    return config;
  }

  void read_texts(Corpus corpus) {
    corpus_ = std::move(corpus);
    shard_ = std::make_unique<TokenShard>(corpus_.files.train);
    held_out_ = std::make_unique<TokenShard>(corpus_.files.held_out);
    run_.data_identity = corpus_.identity();
    source_ = std::make_unique<TextSource>(*shard_, run_.config.window, options_.seed);
  }

  Corpus corpus_with(const std::filesystem::path& tokenizer) const {
    return prepare_corpus_with(load_tokenizer(tokenizer), options_.data, data_directory(),
                               options_.held_out);
  }

  void make_model(ModelConfig config) {
    const bool images = is_images_task(options_.task.name);
    require(!config.image || images, options_.config.string(),
            "is of a model of images (train it with the task \"images\")");
    const bool sound = is_sound_task(options_.task.name);
    require(!config.sound || sound, options_.config.string(),
            "is of a model of sound (train it with the task \"sound\")");
    if (sound) {
      const SoundFolder sounds = read_sound_folder(options_.data.front());
      set_sound(config, sounds.symbols);
      auto source = std::make_unique<SoundSource>(*config.sound, sounds, options_.seed);
      run_.data_identity = sounds.identity();
      run_.config.window = source->length();
      spdlog::info("{} sounds to learn from, {} on average, {} held out", sounds.train.size(),
                   format_duration(source->mean_seconds()), sounds.test.size());
      source_ = std::move(source);
    } else if (images) {
      images_ = read_image_folder(options_.data.front());
      const ImageSet& set = images_.train;
      set_images(config, set.width, set.height, set.channels, set.classes);
      source_ = std::make_unique<ImageSource>(*config.image, images_, run_.config.image_shift,
                                              options_.seed);
      run_.data_identity = images_.identity();
      run_.config.window = source_->length();
      spdlog::info("{} images of {} classes to learn from, {} held out", set.size(),
                   set.classes.size(), images_.test.size());
    } else if (is_captions_task(options_.task.name)) {
      require(config.vision.has_value(), options_.config.string(),
              "is of a model that sees no images (it has no object \"vision\")");
      captions_ = read_caption_folder(options_.data.front());
      corpus_.tokenizer =
          options_.tokenizer.empty() ? make_byte_tokenizer() : load_tokenizer(options_.tokenizer);
      source_ = std::make_unique<CaptionSource>(*config.vision, captions_, *corpus_.tokenizer,
                                                run_.config.image_shift, options_.seed);
      run_.data_identity =
          fmt::format("{} {:016x}", captions_.identity(), corpus_.tokenizer->fingerprint());
      set_vocabulary(config, source_->vocab_size());
      run_.config.window = source_->length();
      spdlog::info("{} images with {} captions to learn from, {} held out", captions_.train.size(),
                   captions_.train.classes.size(), captions_.test.size());
    } else if (!options_.task.name.empty()) {
      TaskOptions task = task_options(options_.task);
      task.seed = options_.seed;
      if (task_type(task.name).text) task.text = task_text(options_.data);
      source_ = make_task(task);
      run_.data_identity = describe(task);
      set_vocabulary(config, source_->vocab_size());
      run_.config.window = source_->length();
    } else {
      Corpus corpus = options_.tokenizer.empty()
                          ? prepare_corpus(options_.data, options_.vocab_size, data_directory(),
                                           options_.held_out)
                          : corpus_with(options_.tokenizer);
      set_vocabulary(config, corpus.tokenizer->vocab_size());
      read_texts(std::move(corpus));
    }
    // The model remembers how it was trained: eval and compare take their window from it.
    config.train = write_train_config(run_.config);
    if (options_.mtp_heads >= 0) {
      config.mtp.heads = options_.mtp_heads;
      // Read again: not every model can have heads.
      config = read_pronghorn_config(
          {write_pronghorn_config(config), options_.config.string() + ": mtp heads"});
    }
    model_ = std::make_unique<Model>(std::move(config), options_.seed);
  }

  // The token that masks in a model that knows of none: the first that its tokenizer does not have.
  int64_t mask_token() const {
    if (options_.mask_token >= 0) return options_.mask_token;
    const int64_t tokens = load_tokenizer(options_.config)->vocab_size();
    if (tokens < load_config(options_.config).vocab_size) return tokens;
    throw UsageError("mask_token", "missing: the tokenizer has the whole vocabulary",
                     "give the number of a token that texts do not have");
  }

  // A trained model that goes on with other texts.
  void load_model() {
    const AdapterOptions& adapter = options_.adapter;
    std::optional<LoraConfig> lora;
    if (adapter.rank > 0) lora = LoraConfig{adapter.rank, adapter.alpha, adapter.targets};
    model_ = options_.masked_diffusion ? load_to_adapt(options_.config, mask_token(), options_.seed)
                                       : load_to_finetune(options_.config, lora, options_.seed);
    run_.config = finetune_config(model_->config(), lora.has_value(),
                                  settings_of(options_.settings), options_.config.string());
    share_steps();
    run_.score_start = true;
    run_.base = options_.config.string();
    read_texts(corpus_with(options_.config));
    const int64_t tokens = corpus_.tokenizer->vocab_size();
    require(tokens <= model_->config().vocab_size, options_.config.string(),
            "its tokenizer has {} tokens and its model {}", tokens, model_->config().vocab_size);
    model_->set_train_settings(write_train_config(run_.config));
  }

  const TrainingOptions& options_;
  Ranks& ranks_;
  bool trained_;  // the model goes on
  TrainRun run_;
  std::optional<DirectoryLock> lock_;
  Corpus corpus_;       // what is read: texts, or
  ImageFolder images_;  // images, or
  CaptionFolder captions_;
  std::unique_ptr<TokenShard> shard_, held_out_;
  std::unique_ptr<DataSource> source_;
  std::unique_ptr<Model> model_;
};

// body(ranks) of the processes that mpirun started. The others wait for this one: if it fails, all
// end.
template <typename Body>
auto on_ranks(const Body& body) {
  const std::unique_ptr<Ranks> ranks = join_ranks();
  if (ranks->count() == 1) return body(*ranks);
  try {
    return body(*ranks);
  } catch (const std::exception& error) {
    ranks->abandon(error.what());
    throw;  // never: compilers do not see that a virtual function does not return
  }
}

}  // namespace

TaskOptions task_options(const SyntheticTask& task) {
  TaskOptions options;
  options.name = task.name;
  options.length = task.length;
  options.vocab_size = task.vocab_size;
  options.items = task.items;
  options.questions = task.questions;
  options.haystacks = task.haystacks;
  options.curriculum = task.curriculum;
  return options;
}

TrainingResult train(const TrainingOptions& options, const TrainingCallback& on_step) {
  set_up_messages();
  check_options(options, is_checkpoint(options.config));
  return on_ranks([&](Ranks& ranks) {
    if (!ranks.is_root()) show_messages(false);
    return Training(options, on_step, ranks).run();
  });
}

std::string compare(const ComparisonOptions& options) {
  set_up_messages();
  require((options.seconds > 0) != (options.tokens > 0), "compare",
          "exactly one of seconds and tokens must be given");
  lab::CompareOptions internal;
  internal.configs = options.configs;
  internal.data = options.data;
  internal.directory = options.directory;
  if (options.seconds > 0) internal.budget.seconds = options.seconds;
  if (options.tokens > 0) internal.budget.tokens = options.tokens;
  internal.vocab_size = options.vocab_size;
  internal.contexts = options.contexts;
  std::sort(internal.contexts.begin(), internal.contexts.end());
  internal.context_seconds = options.context_seconds;
  internal.train_overrides = settings_of(options.settings);
  internal.seed = options.seed;
  internal.seeds = options.seeds;
  internal.images = is_images_task(options.task.name);
  internal.sound = is_sound_task(options.task.name);
  if (!is_folder_task(options.task.name)) internal.task = task_options(options.task);
  internal.task_multiples = options.task_multiples;
  internal.task_examples = options.task_examples;
  if (options.mqar_seconds > 0) internal.mqar_seconds = options.mqar_seconds;
  return on_ranks([&](Ranks& ranks) {
    internal.ranks = &ranks;
    const lab::CompareRun run = lab::compare(internal);
    return ranks.is_root() ? lab::run_text(run) : std::string();
  });
}

}  // namespace pronghorn
