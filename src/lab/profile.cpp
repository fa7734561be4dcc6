#include "lab/profile.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/fork_count.h"
#include "base/log.h"
#include "base/random.h"
#include "train/trainer.h"

namespace pronghorn::lab {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kElse[] = "everything else";

// "layers.3.mixer.q_proj.weight" -> "mixer.q_proj".
std::string role_of(const std::string& name) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    std::string part = name.substr(begin, end - begin);
    const bool number = part.find_first_not_of("0123456789") == std::string::npos;
    if (!number && part != "layers" && part != "weight") parts.push_back(std::move(part));
    begin = end + 1;
  }
  return fmt::format("{}", fmt::join(parts, "."));
}

// Names by weight: handles of one weight share what stored() refers to.
class Roles {
 public:
  explicit Roles(const Model& model) {
    for (const Parameter& parameter : model.parameters()) {
      if (parameter.matrix.defined()) add(parameter.matrix, role_of(parameter.name));
    }
    add(model.head(), "head");  // although it may be the table of embeddings as well
  }

  // Empty for a weight that is not of the model.
  const std::string& of(const Weight& weight) const {
    static const std::string none;
    const auto found = names_.find(&weight.stored());
    return found == names_.end() ? none : *found->second;
  }

 private:
  void add(const Weight& weight, std::string name) {
    names_[&weight.stored()] = &*all_.insert(std::move(name)).first;
  }
  std::set<std::string> all_;
  std::unordered_map<const void*, const std::string*> names_;
};

// Adds up what happens on the thread that made it.
class KernelLog final : public KernelWatcher {
 public:
  explicit KernelLog(const Roles& roles) : roles_(roles) {}

  void start() {
    rows_.clear();
    between_ = {kElse, "", "", 0, 0, 0, 0, 0, Arithmetic::f32};
    last_ = Clock::now();
    last_forks_ = fork_count();
  }

  void begin(const KernelCall& call) override {
    if (std::this_thread::get_id() != owner_) return;
    current_ = &row_of(call);
    lap(between_);
  }

  void end() override {
    if (std::this_thread::get_id() != owner_) return;
    lap(*current_);
    ++current_->calls;
  }

  // The rows since start(), as a profile has them.
  std::vector<ProfileRow> stop() {
    lap(between_);
    std::vector<ProfileRow> rows;
    for (auto& [key, row] : rows_) rows.push_back(std::move(row));
    std::ranges::sort(rows, std::greater<>(), &ProfileRow::seconds);
    rows.push_back(between_);
    return rows;
  }

 private:
  // Gives `row` the time and the forks since the last call.
  void lap(ProfileRow& row) {
    const Clock::time_point now = Clock::now();
    row.seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
    const int64_t forks = fork_count();
    row.forks += forks - last_forks_;
    last_forks_ = forks;
  }

  ProfileRow& row_of(const KernelCall& call) {
    const std::string& weights = weights_of(call);
    // Both are of a fixed address: a row is found without comparing texts.
    ProfileRow& row = rows_[{call.kernel, &weights}];
    if (row.kernel.empty()) {
      row.kernel = call.kernel;
      row.kind = call.kind;
      row.weights = weights;
    }
    row.operations += call.operations;
    row.bytes += call.bytes;
    row.arithmetic = call.arithmetic;
    return row;
  }

  const std::string& weights_of(const KernelCall& call) {
    if (!call.products.empty()) return joined(call.products);
    if (call.kind != std::string_view("product")) return none_;
    if (call.weight != nullptr) {
      gradient_ = call.gradient;
      gradient_role_ = &roles_.of(*call.weight);
      return *gradient_role_;
    }
    // The gradient of a weight comes after that of the input, from the same numbers.
    return call.gradient == gradient_ ? *gradient_role_ : none_;
  }

  // The roles of several weights; they are told apart by the first and by how many they are.
  const std::string& joined(std::span<const GroupedProduct> products) {
    std::string& text = joined_[{&roles_.of(*products[0].weight), products.size()}];
    if (!text.empty()) return text;
    std::set<std::string> names;
    for (const GroupedProduct& product : products) {
      // "mixer.q_proj, k_proj": the part of the block is said once.
      std::string name = roles_.of(*product.weight);
      if (!names.insert(name).second) continue;
      const size_t part = text.find('.') + 1;
      if (!text.empty() && name.compare(0, part, text, 0, part) == 0) name.erase(0, part);
      text += (text.empty() ? "" : ", ") + name;
    }
    return text;
  }

  const Roles& roles_;
  std::thread::id owner_ = std::this_thread::get_id();
  const std::string none_;
  std::map<std::pair<const char*, const std::string*>, ProfileRow> rows_;
  std::map<std::pair<const std::string*, size_t>, std::string> joined_;
  ProfileRow between_;
  ProfileRow* current_ = nullptr;
  Clock::time_point last_;
  int64_t last_forks_ = 0;
  const float* gradient_ = nullptr;  // of the last product with a weight
  const std::string* gradient_role_ = &none_;
};

// Kernels and memory are watched as long as it lives.
class Watch {
 public:
  explicit Watch(KernelWatcher& watcher)
      : memory_(make_watched_memory(watcher)),
        memory_before_(exchange_memory(*memory_)),
        backend_(make_watched_backend(backend(), watcher)),
        backend_before_(exchange_backend(*backend_)) {}
  ~Watch() {
    exchange_backend(backend_before_);
    exchange_memory(memory_before_);
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  std::unique_ptr<Memory> memory_;
  Memory& memory_before_;
  std::unique_ptr<Backend> backend_;
  Backend& backend_before_;
};

Profile watched(KernelLog& log, std::string what, int64_t steps, int64_t tokens,
                const std::function<void()>& run) {
  Profile profile{std::move(what), steps, tokens, 0, {}};
  const double start = now_seconds();
  log.start();
  run();
  profile.rows = log.stop();
  profile.seconds = now_seconds() - start;
  return profile;
}

Profile median_of(std::vector<Profile> runs) {
  const auto middle = runs.begin() + static_cast<int64_t>(runs.size() - 1) / 2;
  std::ranges::nth_element(runs, middle, {}, &Profile::seconds);
  return *middle;
}

class RandomTokens final : public DataSource {
 public:
  RandomTokens(int64_t length, int64_t vocab_size) : length_(length), vocab_size_(vocab_size) {}
  int64_t length() const override { return length_; }
  int64_t vocab_size() const override { return vocab_size_; }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override {
    Random random(index, "tokens of a training step");
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab_size_)));
      if (i > 0) targets[i - 1] = tokens[i];
    }
    targets.back() = 0;
  }

 private:
  int64_t length_, vocab_size_;
};

// Calls run(step) for a first step and then `repeat` times; a step takes tokens_of() tokens.
class TrainingSteps {
 public:
  TrainingSteps(const Model& model, const TrainConfig& config)
      : model_(model),
        config_(config),
        source_(config.window, model.config().vocab_size),
        state_(model) {}

  void step() { train_step(model_, config_, source_, state_, kLearningRate); }
  int64_t tokens() const { return state_.tokens; }

 private:
  static constexpr double kLearningRate = 1e-4;  // random tokens teach nothing
  const Model& model_;
  const TrainConfig& config_;
  RandomTokens source_;
  TrainingState state_;
};

double least_seconds(double amount, double ceiling) {
  return ceiling > 0 ? 1e-9 * amount / ceiling : 0;
}

double arithmetic_seconds(const ProfileRow& row, const MachineCeilings& machine) {
  return least_seconds(row.operations, row.arithmetic == Arithmetic::int8   ? machine.int8_gops
                                       : row.arithmetic == Arithmetic::bf16 ? machine.bf16_gflops
                                                                            : machine.f32_gflops);
}

double memory_seconds(const ProfileRow& row, const MachineCeilings& machine) {
  return least_seconds(row.bytes, machine.read_gigabytes_per_second);
}

}  // namespace

double ProfileRow::share_of_ceiling(const MachineCeilings& machine) const {
  if (seconds <= 0) return 0;
  return std::max(arithmetic_seconds(*this, machine), memory_seconds(*this, machine)) / seconds;
}

bool ProfileRow::bound_by_memory(const MachineCeilings& machine) const {
  return memory_seconds(*this, machine) > arithmetic_seconds(*this, machine);
}

std::vector<Profile> profile_inference(const Model& model, const BenchOptions& options) {
  const Roles roles(model);
  KernelLog log(roles);
  const Watch watch(log);
  Context context;
  context.precision = options.precision;
  const std::vector<std::vector<int32_t>> prompts = bench_prompts(model, options);
  std::vector<Profile> reading, decoding;
  Progress progress("profile", options.repeat + 1, "runs");
  for (int run = 0; run <= options.repeat; ++run) {
    progress.update(run);
    std::vector<SequenceState> states;
    for (int64_t s = 0; s < options.batch; ++s) {
      states.push_back(model.new_state(options.cache));
    }
    Tensor logits;
    reading.push_back(watched(log, "prompt", 1, options.batch * options.prompt,
                              [&] { logits = read_prompts(model, context, states, prompts); }));
    decoding.push_back(
        watched(log, "decode", options.generate, options.batch * options.generate, [&] {
          for (int64_t i = 0; i < options.generate; ++i) {
            logits = decode_step(model, context, states, logits, options.texts);
          }
        }));
    if (run > 0 || options.repeat == 0) continue;
    reading.clear();  // packs weights and fills caches
    decoding.clear();
  }
  return {median_of(std::move(reading)), median_of(std::move(decoding))};
}

Profile profile_training(const Model& model, const TrainConfig& config, int repeat) {
  const Roles roles(model);
  KernelLog log(roles);
  const Watch watch(log);
  TrainingSteps training(model, config);
  training.step();
  const int64_t tokens = training.tokens();
  std::vector<Profile> runs;
  for (int run = 0; run < std::max(1, repeat); ++run) {
    runs.push_back(watched(log, "training", 1, tokens, [&] { training.step(); }));
  }
  return median_of(std::move(runs));
}

Spread bench_training(const Model& model, const TrainConfig& config, int repeat) {
  TrainingSteps training(model, config);
  training.step();
  const auto tokens = static_cast<double>(training.tokens());
  std::vector<double> rates;
  for (int run = 0; run < std::max(1, repeat); ++run) {
    const double start = now_seconds();
    training.step();
    rates.push_back(tokens / (now_seconds() - start));
  }
  return spread_of(std::move(rates));
}

}  // namespace pronghorn::lab
