#include "train/trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "formats/json.h"
#include "model/lora.h"
#include "ops/cross_entropy.h"
#include "train/evaluate.h"
#include "train/masked_text.h"
#include "train/optimizer.h"

namespace pronghorn {
namespace {

constexpr const char* kStateFile = "training_state.safetensors";
constexpr const char* kLogFile = "log.jsonl";
constexpr int64_t kScoresOnTheWay = 20;

std::atomic<bool> stop_requested{false};

// While it lives, the first SIGINT or SIGTERM asks the loop to stop; a second one kills as usual.
class StopSignals {
 public:
  StopSignals() {
    stop_requested = false;
    struct sigaction action {};
    action.sa_handler = [](int) { stop_requested = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &old_interrupt_);
    sigaction(SIGTERM, &action, &old_terminate_);
  }
  ~StopSignals() {
    sigaction(SIGINT, &old_interrupt_, nullptr);
    sigaction(SIGTERM, &old_terminate_, nullptr);
  }

 private:
  struct sigaction old_interrupt_ {
  }, old_terminate_{};
};

// log.jsonl: lines are appended as they come; after a resumption the steps that will be repeated
// are cut off first.
class TrainLog {
 public:
  TrainLog(const std::filesystem::path& path, int64_t last_step) : path_(path) {
    std::string kept;
    for (const TrainLogLine& line : read_train_log(path, last_step)) kept += text(line);
    write_file(path, kept);
    file_.open(path, std::ios::app);
  }

  void add(const TrainLogLine& line) {
    file_ << text(line) << std::flush;
    require(file_.good(), path_.string(), "cannot write the log (is the disk full?)");
  }

 private:
  static std::string text(const TrainLogLine& line) {
    nlohmann::ordered_json json = {{"step", line.step},
                                   {"tokens", line.tokens},
                                   {"loss", line.loss},
                                   {"lr", line.learning_rate},
                                   {"gradient_norm", line.gradient_norm},
                                   {"seconds", line.seconds},
                                   {"tokens_per_second", line.tokens_per_second}};
    if (!line.layer_losses.empty()) json["layer_losses"] = line.layer_losses;
    if (line.expert_shares) {
      json["expert_shares"] = {{"least", line.expert_shares->least},
                               {"most", line.expert_shares->most}};
    }
    if (line.held_out_bits_per_byte) json["held_out_bits_per_byte"] = *line.held_out_bits_per_byte;
    return json.dump() + "\n";
  }

  std::filesystem::path path_;
  std::ofstream file_;
};

int64_t sequences_per_step(const TrainConfig& config, const DataSource& source) {
  return std::max<int64_t>(1, config.batch_tokens / source.length());
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<int64_t>(values.size()) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The losses of what speculation guesses with: an early exit and the heads for multi-token
// prediction. Both learn along with the model and do not count in its loss.
class DraftLosses {
 public:
  DraftLosses(const Model& model, const TrainConfig& config) : model_(model), config_(config) {
    if (config.early_exit > 0) model.check_exit(config.early_exit, "early_exit");
  }

  // Takes what the early exit sees of a forward.
  void watch(ForwardObserver& observer) {
    if (config_.early_exit == 0) return;
    observer.on_block = [this](const BlockEnd& end) {
      if (end.layers == config_.early_exit) early_hidden_ = end.hidden();
      return true;
    };
  }

  // After the forward of `tokens` (segments of `length`), which gave `hidden` to `observer`.
  void record(const Context& context, const ForwardObserver& observer, const Tensor& hidden,
              std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t length,
              double gradient_scale) {
    if (config_.early_exit > 0) {
      model_.cross_entropy(context, early_hidden_, targets,
                           gradient_scale * config_.early_exit_loss, 0);
    }
    const int64_t heads = config_.mtp_loss > 0 ? model_.mtp_depth() : 0;
    batches_.reserve(static_cast<size_t>(heads));  // the tape refers to them
    Tensor last = hidden;
    for (int64_t k = 0; k < heads; ++k) {
      // Head k sees of token t the one k + 1 after it and predicts the next but that: targets move
      // along, and the last k + 1 of a segment have none.
      std::vector<int32_t> seen(tokens.size(), 0), wanted(tokens.size(), -1);
      for (size_t row = 0; row < tokens.size(); ++row) {
        const auto place = static_cast<int64_t>(row) % length;
        if (place + k + 1 >= length) continue;
        seen[row] = tokens[row + static_cast<size_t>(k) + 1];
        wanted[row] = targets[row + static_cast<size_t>(k) + 1];
      }
      batches_.push_back(fresh_segments(seen, length));
      last = model_.mtp_forward(context, k, last, batches_.back(), observer);
      model_.cross_entropy(context, last, wanted,
                           gradient_scale * config_.mtp_loss / static_cast<double>(heads), 0);
    }
  }

 private:
  const Model& model_;
  const TrainConfig& config_;
  Tensor early_hidden_;
  std::vector<Batch> batches_;
};

// How far the run has come, in [0, 1]; `ahead` counts the step about to be made.
double progress_of(const TrainBudget& budget, const TrainingState& state, int64_t step_tokens) {
  if (budget.seconds) return state.seconds / std::max(1e-9, *budget.seconds);
  const int64_t total =
      budget.steps ? *budget.steps : (*budget.tokens + step_tokens - 1) / step_tokens;
  return static_cast<double>(state.step) / static_cast<double>(std::max<int64_t>(1, total));
}

nlohmann::json identity_of(const Model& model, const TrainRun& run, const DataSource& source) {
  nlohmann::json budget;
  if (run.budget.steps) budget["steps"] = *run.budget.steps;
  if (run.budget.tokens) budget["tokens"] = *run.budget.tokens;
  if (run.budget.seconds) budget["seconds"] = *run.budget.seconds;
  nlohmann::json settings = write_pronghorn_config(model.config());
  settings.erase("train");
  nlohmann::json identity = {{"model configuration", settings},
                             {"training configuration", write_train_config(run.config)},
                             {"seed", run.seed},
                             {"budget", budget},
                             {"data", run.data_identity},
                             {"window", source.length()}};
  if (model.adapter() != nullptr) {
    for (const Parameter& parameter : model.trained()) {
      identity["adapter"][parameter.name] = parameter.shape.to_vector();
    }
  }
  return identity;
}

class TrainLoop {
 public:
  TrainLoop(Model& model, DataSource& source, const TokenShard* held_out,
            const Tokenizer* tokenizer, const TrainRun& run)
      : model_(model),
        source_(source),
        held_out_(held_out),
        tokenizer_(tokenizer),
        run_(run),
        state_(model),
        identity_(identity_of(model, run, source)),
        step_tokens_(sequences_per_step(run.config, source) * source.length()) {}

  TrainResult run() {
    const std::filesystem::path state_file = run_.directory / kStateFile;
    check_directory(run_.directory, run_.resume);
    make_directories(run_.directory);
    remove_abandoned_files(run_.directory);
    if (run_.resume && std::filesystem::exists(state_file)) {
      state_.load(state_file, model_, identity_);
      spdlog::info("{}: resuming at step {}", run_.directory.string(), state_.step);
    }
    TrainLog log(run_.directory / kLogFile, state_.step);
    const StopSignals signals;
    Progress progress(run_.label, total_work(), run_.budget.seconds ? "" : "tokens");
    if (state_.step == 0) {
      if (run_.score_start && held_out_ != nullptr) start_score_ = score(0);
      save_state();
    }
    reset_memory_peak();

    double last_save = now_seconds();
    double next_score = next_score_after(progress_of(run_.budget, state_, step_tokens_));
    while (!stop_requested) {
      const double done = progress_of(run_.budget, state_, step_tokens_);
      if (done >= 1) break;
      TrainLogLine line = step(done);
      const double now_done = progress_of(run_.budget, state_, step_tokens_);
      if (held_out_ != nullptr && now_done < 1 && score_due(now_done, next_score)) {
        line.held_out_bits_per_byte = score(run_.evaluate_tokens);
        next_score = next_score_after(now_done);
      }
      log.add(line);
      progress.update(run_.budget.seconds ? state_.seconds : static_cast<double>(state_.tokens),
                      note(line));
      if (run_.on_step && !run_.on_step(line)) stop_requested = true;
      if (now_seconds() - last_save > run_.checkpoint_seconds) {
        save_state();
        last_save = now_seconds();
      }
    }
    progress.finish();
    return finish();
  }

 private:
  double total_work() const {
    if (run_.budget.seconds) return *run_.budget.seconds;
    if (run_.budget.tokens) return static_cast<double>(*run_.budget.tokens);
    return static_cast<double>(*run_.budget.steps * step_tokens_);
  }

  static double next_score_after(double done) {
    return (std::floor(done * kScoresOnTheWay) + 1) / kScoresOnTheWay;
  }

  bool score_due(double done, double next_score) const {
    if (run_.evaluate_every > 0) return state_.step % run_.evaluate_every == 0;
    return done >= next_score;
  }

  TrainLogLine step(double done) {
    // The rate of a step is that of its middle for short runs: the first step is not wasted at 0.
    const double step_share =
        run_.budget.seconds ? 0
                            : 0.5 * static_cast<double>(step_tokens_) / std::max(1.0, total_work());
    TrainLogLine line;
    line.learning_rate = learning_rate_at(run_.config, std::max(done + step_share, 1e-4));
    const double begin = now_seconds();
    const StepResult result =
        train_step(model_, run_.config, source_, state_, line.learning_rate, run_.seed);
    const double seconds = now_seconds() - begin;
    state_.seconds += seconds;
    line.step = state_.step;
    line.tokens = state_.tokens;
    line.seconds = state_.seconds;
    line.loss = result.loss;
    line.layer_losses = result.layer_losses;
    if (!result.expert_loads.empty()) {
      line.expert_shares = {result.expert_loads.least(), result.expert_loads.most()};
    }
    line.gradient_norm = result.gradient_norm;
    line.tokens_per_second = static_cast<double>(step_tokens_) / seconds;
    rates_.push_back(line.tokens_per_second);
    last_accuracy_ = result.accuracy;
    return line;
  }

  std::string note(const TrainLogLine& line) const {
    std::string text =
        fmt::format("{} tokens/s  loss {:.3f}", format_count(line.tokens_per_second), line.loss);
    if (held_out_ == nullptr)
      text += fmt::format("  {:.1f}% of answers right", 100 * last_accuracy_);
    if (line.expert_shares) {
      text += fmt::format("  experts {:.2f} to {:.2f}", line.expert_shares->least,
                          line.expert_shares->most);
    }
    if (last_score_ > 0) {
      text += fmt::format("  held out {}{:.3f} bits/byte",
                          model_.config().diffusion ? "at most " : "", last_score_);
    }
    return text;
  }

  double score(int64_t tokens) {
    // On the way the text is long enough for one sample of each window.
    const TextScore result =
        evaluate_text(model_, run_.config.precision, *held_out_, source_.length(), tokens, {},
                      tokens > 0 ? 1 : kBoundSamples);
    last_score_ = result.bits_per_byte();
    last_loads_ = result.expert_loads;
    if (state_.best_bits_per_byte == 0 || last_score_ < state_.best_bits_per_byte) {
      state_.best_bits_per_byte = last_score_;
      save_model(run_.directory / "best");
    }
    return last_score_;
  }

  void save_state() { state_.save(run_.directory / kStateFile, model_, identity_); }

  void save_model(const std::filesystem::path& directory) const {
    if (model_.adapter() != nullptr) {
      model_.adapter()->save(model_, directory, run_.base);
    } else {
      model_.save(directory);
    }
    if (tokenizer_ != nullptr) tokenizer_->save(directory);
  }

  TrainResult finish() {
    TrainResult result;
    result.peak_bytes = memory_use().peak;
    result.interrupted = stop_requested;
    result.is_bound = model_.config().diffusion.has_value();
    if (!stop_requested && held_out_ != nullptr) result.held_out_bits_per_byte = score(0);
    result.expert_loads = last_loads_;
    save_state();
    save_model(run_.directory);
    if (!stop_requested && held_out_ == nullptr) {
      constexpr int64_t kExamples = 512;
      result.accuracy = evaluate_task(model_, run_.config.precision, source_, kExamples).accuracy();
    }
    result.steps = state_.step;
    result.tokens = state_.tokens;
    result.seconds = state_.seconds;
    result.tokens_per_second = median(rates_);
    result.start_bits_per_byte = start_score_;
    if (state_.best_bits_per_byte > 0) result.best_bits_per_byte = state_.best_bits_per_byte;
    return result;
  }

  Model& model_;
  DataSource& source_;
  const TokenShard* held_out_;
  const Tokenizer* tokenizer_;
  const TrainRun& run_;
  TrainingState state_;
  nlohmann::json identity_;
  int64_t step_tokens_;
  std::vector<double> rates_;
  double last_score_ = 0, last_accuracy_ = 0;
  ExpertLoads last_loads_;
  std::optional<double> start_score_;
};

// The examples of a step.
struct Examples {
  int64_t length = 0, count = 0;
  uint64_t first = 0;  // the number of the first
  std::vector<int32_t> tokens, targets;

  std::span<const int32_t> tokens_of(int64_t begin, int64_t rows) const {
    return std::span(tokens).subspan(static_cast<size_t>(begin * length),
                                     static_cast<size_t>(rows));
  }
  std::span<const int32_t> targets_of(int64_t begin, int64_t rows) const {
    return std::span(targets).subspan(static_cast<size_t>(begin * length),
                                      static_cast<size_t>(rows));
  }
};

Examples read_examples(DataSource& source, uint64_t first, int64_t count) {
  Examples examples;
  examples.length = source.length();
  examples.count = count;
  examples.first = first;
  examples.tokens.resize(static_cast<size_t>(count * examples.length));
  examples.targets.resize(examples.tokens.size());
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i * examples.length);
    const auto size = static_cast<size_t>(examples.length);
    source.fill(first + static_cast<uint64_t>(i), std::span(examples.tokens).subspan(at, size),
                std::span(examples.targets).subspan(at, size));
  }
  return examples;
}

// The loss of a diffusion model on examples first ... first + count - 1 of a step.
CrossEntropy masked_loss(const Model& model, const Context& context, const Examples& examples,
                         int64_t first, int64_t count, uint64_t seed, double gradient_scale,
                         double z_loss, const ForwardObserver& observer) {
  const DiffusionConfig& diffusion = *model.config().diffusion;
  MaskedText text(diffusion);
  for (int64_t i = first; i < first + count; ++i) {
    text.add(examples.tokens_of(i, examples.length),
             training_mask(diffusion, seed, examples.first + static_cast<uint64_t>(i),
                           examples.count, examples.length));
  }
  return text.loss(model, context, gradient_scale, z_loss, observer);
}

}  // namespace

StepResult train_step(const Model& model, const TrainConfig& config, DataSource& source,
                      TrainingState& state, double learning_rate, uint64_t seed) {
  const bool diffusion = model.config().diffusion.has_value();
  require(!diffusion || config.early_exit == 0, "early_exit",
          "{} in a model that fills in masked tokens", config.early_exit);
  const int64_t length = source.length();
  const int64_t sequences = sequences_per_step(config, source);
  const int64_t micro_tokens =
      config.micro_batch_tokens > 0 ? config.micro_batch_tokens : config.batch_tokens;
  const int64_t micro = std::clamp<int64_t>(micro_tokens / length, 1, sequences);

  // All examples first: the loss is a mean over the targets of the whole step.
  const Examples examples =
      read_examples(source, static_cast<uint64_t>(state.step * sequences), sequences);
  const int64_t asked =
      diffusion
          ? std::ssize(examples.tokens)
          : std::ranges::count_if(examples.targets, [](int32_t target) { return target >= 0; });
  const double gradient_scale = 1 / static_cast<double>(std::max<int64_t>(1, asked));

  double loss = 0;
  int64_t correct = 0;
  std::map<std::string, double> layer_losses;
  ExpertLoads loads;
  for (int64_t first = 0; first < sequences; first += micro) {
    const int64_t count = std::min(micro, sequences - first), rows = count * length;
    DraftLosses draft_losses(model, config);  // outlives the tape
    Tape tape;
    Context context;
    context.tape = &tape;
    context.precision = config.precision;
    context.training_step = state.step;
    const std::span<const int32_t> tokens = examples.tokens_of(first, rows);
    const Batch batch = diffusion ? Batch() : fresh_segments(tokens, length);
    ForwardObserver observer;
    draft_losses.watch(observer);
    // A mean over the rows of this micro-batch: its share in the mean over those of the step.
    const double share = static_cast<double>(rows) / static_cast<double>(sequences * length);
    observer.on_loss = [&](const LayerLoss& layer_loss) {
      layer_losses[layer_loss.name] += share * double{*layer_loss.value.data()};
      if (!layer_loss.value.requires_grad()) return;
      layer_loss.value.give_grad(
          Tensor::full(layer_loss.value.shape(), static_cast<float>(share * layer_loss.weight)));
    };
    observer.on_load = [&](const ExpertLoad& load) { loads.add(load); };
    CrossEntropy result;
    if (diffusion) {
      result = masked_loss(model, context, examples, first, count, seed, gradient_scale,
                           config.z_loss, observer);
    } else {
      const Tensor hidden = model.forward(context, batch, observer);
      const std::span<const int32_t> wanted = examples.targets_of(first, rows);
      result = model.cross_entropy(context, hidden, wanted, gradient_scale, config.z_loss);
      draft_losses.record(context, observer, hidden, tokens, wanted, length, gradient_scale);
    }
    loss += result.nll * gradient_scale;
    correct += result.correct;
    tape.run_backward();
  }

  const double norm = optimizer_step(
      model, config, state, {.learning_rate = learning_rate, .loss = loss, .sequences = sequences});
  state.tokens += sequences * length;
  return {loss, norm, static_cast<double>(correct) * gradient_scale, std::move(layer_losses),
          std::move(loads)};
}

bool holds_training_run(const std::filesystem::path& directory) {
  return std::filesystem::exists(directory / kStateFile);
}

void check_directory(const std::filesystem::path& directory, bool resume) {
  require(resume || !holds_training_run(directory), directory.string(),
          "already holds a training run (resume it, or choose another directory)");
}

TrainResult train(Model& model, DataSource& source, const TokenShard* held_out,
                  const Tokenizer* tokenizer, const TrainRun& run) {
  const int set =
      (run.budget.steps ? 1 : 0) + (run.budget.tokens ? 1 : 0) + (run.budget.seconds ? 1 : 0);
  require(set == 1, "training budget", "exactly one of steps, tokens and time must be given");
  require(!model.config().diffusion || held_out != nullptr, "train",
          "a diffusion model learns texts, not synthetic tasks");
  return TrainLoop(model, source, held_out, tokenizer, run).run();
}

namespace {

// A number of a log line; 0 where it is missing or something else.
template <typename Number>
Number number_at(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<Number>() : Number{0};
}

}  // namespace

std::vector<TrainLogLine> read_train_log(const std::filesystem::path& path, int64_t last_step) {
  std::vector<TrainLogLine> lines;
  std::ifstream file(path);
  std::string text;
  while (std::getline(file, text)) {
    // The last line of a killed run may be cut short.
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    if (json.is_discarded() || !json.is_object()) continue;
    TrainLogLine line;
    line.step = number_at<int64_t>(json, "step");
    if (line.step < 1) continue;
    if (line.step > last_step) break;
    line.tokens = number_at<int64_t>(json, "tokens");
    line.loss = number_at<double>(json, "loss");
    line.learning_rate = number_at<double>(json, "lr");
    line.gradient_norm = number_at<double>(json, "gradient_norm");
    line.seconds = number_at<double>(json, "seconds");
    line.tokens_per_second = number_at<double>(json, "tokens_per_second");
    if (const auto losses = json.find("layer_losses"); losses != json.end()) {
      for (const auto& [name, value] : losses->items()) {
        line.layer_losses[name] = number_at<double>(*losses, name.c_str());
      }
    }
    if (const auto shares = json.find("expert_shares"); shares != json.end()) {
      line.expert_shares = {number_at<double>(*shares, "least"),
                            number_at<double>(*shares, "most")};
    }
    if (json.contains("held_out_bits_per_byte")) {
      line.held_out_bits_per_byte = number_at<double>(json, "held_out_bits_per_byte");
    }
    lines.push_back(line);
  }
  return lines;
}

}  // namespace pronghorn
