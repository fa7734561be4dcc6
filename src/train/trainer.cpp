#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/stop_signals.h"
#include "formats/json.h"
#include "model/lora.h"
#include "train/evaluate.h"

namespace pronghorn {
namespace {

constexpr int64_t kScoresOnTheWay = 20;

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
        ranks_(*run.ranks),
        state_(model, *run.ranks),
        identity_(identity_of(model, run, source)),
        step_tokens_(sequences_per_step(run.config, source) * source.length()) {}

  TrainResult run() {
    const std::filesystem::path state_file = run_.directory / kTrainingStateFile;
    if (ranks_.is_root()) {
      check_directory(run_.directory, run_.resume);
      make_directories(run_.directory);
      remove_abandoned_files(run_.directory);
    }
    wait_for_all(ranks_);
    if (run_.resume && std::filesystem::exists(state_file) && may_go_on(state_file)) {
      state_.load(state_file, model_, identity_);
      if (ranks_.is_root()) {
        spdlog::info("{}: resuming at step {}", run_.directory.string(), state_.step);
      }
    }
    // A rank that looks into a folder of its own would go on from somewhere else.
    require(!on_any(ranks_, value_of_root(ranks_, state_.step) != state_.step),
            run_.directory.string(), "is not the same folder on all machines");
    first_step_ = state_.step;
    std::optional<TrainLog> log;
    if (ranks_.is_root()) log.emplace(run_.directory / kTrainLogFile, state_.step);
    const StopSignals signals;
    Progress progress(run_.label, total_work(), run_.budget.seconds ? "" : "tokens");
    if (state_.step == 0) {
      if (run_.score_start && held_out_ != nullptr) start_score_ = score(0);
      save_state();
    }
    reset_memory_peak();

    double last_save = now_seconds();
    double next_score = next_score_after(progress_of(run_.budget, state_, step_tokens_));
    while (!on_any(ranks_, StopSignals::requested())) {
      const double done = progress_of(run_.budget, state_, step_tokens_);
      if (done >= 1) break;
      TrainLogLine line = step(done);
      const double now_done = progress_of(run_.budget, state_, step_tokens_);
      if (held_out_ != nullptr && now_done < 1 && score_due(now_done, next_score)) {
        line.held_out_bits_per_byte = score(run_.evaluate_tokens);
        next_score = next_score_after(now_done);
      }
      if (log) log->add(line);
      progress.update(run_.budget.seconds ? state_.seconds : static_cast<double>(state_.tokens),
                      note(line));
      if (run_.on_step && !run_.on_step(line)) StopSignals::request();
      if (value_of_root(ranks_, now_seconds() - last_save) > run_.checkpoint_seconds) {
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

  // A run that died in its first step left nothing to lose: with other settings, as one tries where
  // memory was short, it begins anew. Whatever else there is goes on or is refused.
  bool may_go_on(const std::filesystem::path& state_file) const {
    return holds_training_run(run_.directory) || saved_identity(state_file) == identity_;
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
    state_.seconds += value_of_root(ranks_, seconds);
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

  // The first rank scores: what the others know of it is the number.
  double score(int64_t tokens) {
    if (!ranks_.is_root()) return last_score_ = value_of_root(ranks_, 0.0);
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
    return value_of_root(ranks_, last_score_);
  }

  void save_state() { state_.save(run_.directory / kTrainingStateFile, model_, identity_); }

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
    const bool stopped = on_any(ranks_, StopSignals::requested());
    if (state_.step > first_step_) result.peak_bytes = memory_use().peak;
    result.interrupted = stopped;
    result.is_bound = model_.config().diffusion.has_value();
    if (!stopped && held_out_ != nullptr) result.held_out_bits_per_byte = score(0);
    result.expert_loads = last_loads_;
    save_state();
    if (ranks_.is_root()) save_model(run_.directory);
    if (!stopped && held_out_ == nullptr && ranks_.is_root()) {
      result.accuracy = source_.held_out_accuracy(model_, run_.config.precision);
    }
    result.steps = state_.step;
    result.tokens = state_.tokens;
    result.seconds = state_.seconds;
    if (state_.seconds > 0) {
      result.tokens_per_second = static_cast<double>(state_.tokens) / state_.seconds;
    }
    result.start_bits_per_byte = start_score_;
    if (state_.best_bits_per_byte > 0) result.best_bits_per_byte = state_.best_bits_per_byte;
    return result;
  }

  Model& model_;
  DataSource& source_;
  const TokenShard* held_out_;
  const Tokenizer* tokenizer_;
  const TrainRun& run_;
  Ranks& ranks_;
  TrainingState state_;
  nlohmann::json identity_;
  int64_t step_tokens_;
  int64_t first_step_ = 0;  // done before this process
  double last_score_ = 0, last_accuracy_ = 0;
  ExpertLoads last_loads_;
  std::optional<double> start_score_;
};

}  // namespace

bool holds_training_run(const std::filesystem::path& directory) {
  const std::filesystem::path state = directory / kTrainingStateFile;
  if (!std::filesystem::exists(state)) return false;
  try {
    return saved_step(state) > 0;
  } catch (const Error&) {
    return true;  // damaged: whose it was cannot be told
  }
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

}  // namespace pronghorn
