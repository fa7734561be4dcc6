#include "lab/compare.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>
#include <thread>

#include "backend/backend.h"
#include "backend/cpu/cpu_features.h"
#include "backend/machine.h"
#include "base/directory_lock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/stop_signals.h"
#include "base/threads.h"
#include "decode/generator.h"
#include "lab/measure.h"
#include "lab/report.h"
#include "lab/table.h"
#include "layers/layer.h"
#include "model/text_cost.h"
#include "train/corpus.h"
#include "train/evaluate.h"
#include "train/images.h"
#include "train/sound.h"
#include "train/tasks.h"

namespace pronghorn::lab {
namespace {

constexpr const char* kResultsFile = "results.json";
constexpr const char* kReportFile = "report.html";
constexpr const char* kTablesFile = "report.md";
constexpr const char* kPartFile = "result.json";  // of one architecture, as kResultsFile
constexpr double kSampleTemperature = 0.8;
constexpr int64_t kSampleTokens = 120;

// MQAR as in Zoology's easier settings: what small models can tell apart in a minute.
constexpr int64_t kMqarLength = 128, kMqarPairs = 8, kMqarVocabulary = 512;

std::string today() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d", &local);
  return text;
}

// The kind of all mixers of a model, or that it has several.
std::string kind_of(const ModelConfig& config) {
  if (config.diffusion) return "diffusion";
  std::set<std::string> kinds;
  for (const auto& [letter, block] : config.blocks) {
    for (const nlohmann::json& mixer : block.mixers) {
      kinds.insert(find_mixer_type(mixer.at("type").get<std::string>(), "compare").kind);
    }
  }
  if (kinds.empty()) return "other";
  return kinds.size() == 1 ? *kinds.begin() : "hybrid";
}

// One architecture to compare, checked before any is trained.
struct Entrant {
  std::string name;
  std::filesystem::path path;
  ModelConfig config;
  TrainConfig train;
};

class Comparison {
 public:
  explicit Comparison(const CompareOptions& options) : options_(options), ranks_(*options.ranks) {}

  CompareRun run() {
    read_entrants();
    std::optional<DirectoryLock> lock;
    if (ranks_.is_root()) lock.emplace(options_.directory);
    // The first rank prepares the data, and the others find it there.
    if (!ranks_.is_root()) wait_for_all(ranks_);
    prepare_data();
    if (ranks_.is_root()) wait_for_all(ranks_);
    if (!options_.images && !options_.sound) {
      for (Entrant& entrant : entrants_) set_vocabulary(entrant.config, run_.data.vocab_size);
    }
    describe_run();
    take_earlier();
    // From here on results.json changes, and a part that is there is one of this run.
    wait_for_all(ranks_);
    describe_machine();
    if (ranks_.is_root() && ranks_.count() > 1) tell_shares();
    for (size_t i = 0; i < entrants_.size(); ++i) {
      if (results_[i] || !is_mine(i)) continue;
      results_[i] = run_entrant(entrants_[i]);
      if (ranks_.count() > 1) save_part(i);
      if (ranks_.is_root()) save();
    }
    if (!ranks_.is_root()) return {};
    collect();
    save();
    for (const Entrant& entrant : entrants_) remove_part(entrant);
    return run_;
  }

 private:
  void read_entrants() {
    require(!options_.configs.empty(), "compare", "needs at least one configuration");
    std::set<std::string> names;
    for (const std::filesystem::path& path : options_.configs) {
      Entrant entrant;
      entrant.path = path;
      entrant.name = path.stem().string();
      if (entrant.name.empty() || entrant.name == "config") {
        entrant.name = std::filesystem::absolute(path).parent_path().filename().string();
      }
      require(entrant.name != "data" && names.insert(entrant.name).second, path.string(),
              "another configuration has the name {} too (rename one file)", quote(entrant.name));
      entrant.config = load_config(path);
      const std::string where = path.string() + ": train";
      nlohmann::json train =
          entrant.config.train.is_null() ? nlohmann::json::object() : entrant.config.train;
      if (!options_.train_overrides.is_null()) train.update(options_.train_overrides);
      entrant.train = read_train_config(ConfigReader(train, where));
      const std::string_view subject = entrant.config.subject();
      const std::string_view wanted = options_.images  ? "images"
                                      : options_.sound ? "sound"
                                                       : "texts";
      if (subject != wanted) {
        throw Error(path.string(), fmt::format("is of a model of {}, not of {}", subject, wanted),
                    subject == "texts" ? "leave out --task"
                                       : fmt::format("compare it with --task {}", subject));
      }
      entrants_.push_back(std::move(entrant));
    }
  }

  void prepare_data() {
    for (const auto& path : options_.data) run_.data.paths.push_back(path.string());
    if (options_.images) {
      images_ = read_image_folder(options_.data.front());
      const ImageSet& set = images_.train;
      run_.data.tokenizer = images_.identity();
      run_.data.vocab_size = std::ssize(set.classes);
      for (Entrant& entrant : entrants_) {
        set_images(entrant.config, set.width, set.height, set.channels, set.classes);
        entrant.train.window = entrant.config.image->rows();
      }
      return;
    }
    if (options_.sound) {
      sounds_ = read_sound_folder(options_.data.front());
      run_.data.tokenizer = sounds_.identity();
      run_.data.vocab_size = std::ssize(sounds_.symbols) + 1;
      for (Entrant& entrant : entrants_) {
        set_sound(entrant.config, sounds_.symbols);
        entrant.train.window = SoundSource(*entrant.config.sound, sounds_, 0).length();
      }
      return;
    }
    if (on_task()) {
      task_ = options_.task;
      task_.seed = options_.seed;
      if (task_type(task_.name).text) task_.text = task_text(options_.data);
      run_.data.tokenizer = "task " + describe(task_);
      run_.data.vocab_size = make_task(task_)->vocab_size();
      for (Entrant& entrant : entrants_) entrant.train.window = task_.length;
      return;
    }
    corpus_ = prepare_corpus(options_.data, options_.vocab_size, options_.directory / "data");
    run_.data.tokenizer = corpus_.tokenizer_name;
    run_.data.vocab_size = corpus_.tokenizer->vocab_size();
    run_.data.train_tokens = corpus_.files.train_tokens;
    run_.data.held_out_tokens = corpus_.files.held_out_tokens;
    run_.data.held_out_bytes = corpus_.files.held_out_bytes;
    run_.data.gzip_bits_per_byte = gzip_bits_per_byte(corpus_.files.held_out_text);
  }

  bool on_task() const { return !options_.task.name.empty(); }
  bool on_text() const { return !on_task() && !options_.images && !options_.sound; }

  void describe_run() {
    run_.title = title();
    run_.date = today();
    run_.seed = options_.seed;
    run_.seeds = options_.seeds;
    run_.budget.seconds = options_.budget.seconds;
    run_.budget.tokens = options_.budget.tokens;
  }

  // All ranks measure at once: what each has of a machine that they share.
  void describe_machine() {
    if (ranks_.is_root()) spdlog::info("measuring the machine");
    const MachineCeilings ceilings = measure_machine(1.0);
    run_.machine.cpu = ceilings.cpu;
    run_.machine.cores = ceilings.cores;
    run_.machine.threads = thread_count();
    run_.machine.instruction_sets = cpu_instruction_sets();
    run_.machine.peak_f32_gflops = ceilings.f32_gflops;
    run_.machine.peak_bf16_gflops = ceilings.bf16_gflops;
    run_.machine.read_gigabytes_per_second = ceilings.read_gigabytes_per_second;
  }

  // "mamba2-1m and transformer-1m on book.txt"
  std::string title() const {
    constexpr size_t kNamed = 3;
    std::string who;
    for (size_t i = 0; i < entrants_.size(); ++i) {
      who += i == 0 ? "" : i + 1 == entrants_.size() ? " and " : ", ";
      who += printable(entrants_[i].name, kQuoteLength);
    }
    if (entrants_.size() > kNamed) who = fmt::format("{} architectures", entrants_.size());
    std::string on = "the task " + options_.task.name;
    if (!on_task()) {
      const auto& first = options_.data.front();
      const auto name = first.has_filename() ? first.filename() : first.parent_path().filename();
      on = printable(name.string(), kQuoteLength);
      if (options_.data.size() > 1) on += fmt::format(" and {} more", options_.data.size() - 1);
    }
    return fmt::format("{} on {}", who, on);
  }

  bool is_mine(size_t entrant) const {
    return static_cast<int64_t>(entrant) % ranks_.count() == ranks_.rank();
  }

  std::filesystem::path part_file(const Entrant& entrant) const {
    return options_.directory / entrant.name / kPartFile;
  }

  void remove_part(const Entrant& entrant) const {
    std::error_code none;
    std::filesystem::remove(part_file(entrant), none);
  }

  // What a run with the same data, budget and seed found; nothing if there is no such file.
  std::vector<ArchitectureResult> results_in(const std::filesystem::path& path) const {
    if (!std::filesystem::exists(path)) return {};
    const CompareRun earlier = load_run(path);
    require(earlier.data == run_.data && earlier.budget == run_.budget && earlier.seed == run_.seed,
            path.string(),
            "belongs to a comparison with other data, budget or seed (choose another directory)");
    return earlier.architectures;
  }

  // The result of this model trained as it is to be now, or null.
  const ArchitectureResult* result_of(const Entrant& entrant,
                                      const std::vector<ArchitectureResult>& results) const {
    const std::string identity = identity_of(entrant);
    const auto found = std::ranges::find_if(results, [&](const ArchitectureResult& result) {
      return result.name == entrant.name && result.identity == identity;
    });
    return found == results.end() ? nullptr : &*found;
  }

  // Takes over what an interrupted run has finished.
  void take_earlier() {
    results_.resize(entrants_.size());
    const std::vector<ArchitectureResult> earlier = results_in(options_.directory / kResultsFile);
    if (!earlier.empty() && ranks_.is_root()) {
      spdlog::info("continuing the comparison in {}", options_.directory.string());
    }
    for (size_t i = 0; i < entrants_.size(); ++i) {
      const Entrant& entrant = entrants_[i];
      const ArchitectureResult* found = result_of(entrant, earlier);
      std::vector<ArchitectureResult> part;
      if ((found == nullptr || found->failure) && is_mine(i)) {
        // A rank had finished it when the run ended.
        part = results_in(part_file(entrant));
        found = result_of(entrant, part);
      }
      if (found != nullptr && !found->failure) {
        results_[i] = *found;
        if (is_mine(i)) spdlog::info("{}: done before", entrant.name);
      } else if (is_mine(i)) {
        remove_part(entrant);
      }
    }
  }

  // "mamba, gla": those that are not done and that `belongs` is true for, by their numbers.
  template <typename Belongs>
  std::string names_of_missing(const Belongs& belongs) const {
    std::vector<std::string> names;
    for (size_t i = 0; i < entrants_.size(); ++i) {
      if (!results_[i] && belongs(i)) names.push_back(printable(entrants_[i].name, kQuoteLength));
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }

  void tell_shares() const {
    for (int64_t r = 0; r < ranks_.count(); ++r) {
      const std::string names =
          names_of_missing([&](size_t i) { return static_cast<int64_t>(i) % ranks_.count() == r; });
      spdlog::info("rank {}: {}", r, names.empty() ? "nothing to do" : names);
    }
    spdlog::info("if one of them ends, all do: the same command again keeps what is finished");
  }

  // Waits for the results of the other ranks. They come as files: waiting for messages would take a
  // processor from those that still train.
  void collect() {
    const StopSignals signals;
    for (size_t i = 0; i < entrants_.size(); ++i) {
      while (!results_[i]) {
        const std::vector<ArchitectureResult> part = results_in(part_file(entrants_[i]));
        if (const ArchitectureResult* found = result_of(entrants_[i], part)) {
          results_[i] = *found;
          save();
        } else {
          require(part.empty(), part_file(entrants_[i]).string(),
                  "is of another model or training (is the program the same on all ranks?)");
          if (StopSignals::requested()) interrupt();
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
      }
    }
  }

  // Whatever changes a result: model, training, contexts, tasks.
  std::string identity_of(const Entrant& entrant) const {
    nlohmann::json json = {{"model", write_pronghorn_config(entrant.config)},
                           {"train", write_train_config(entrant.train)},
                           {"seeds", options_.seeds},
                           {"contexts", options_.contexts},
                           {"context_seconds", options_.context_seconds},
                           {"mqar_seconds", options_.mqar_seconds.value_or(0)},
                           {"task_multiples", options_.task_multiples},
                           {"task_examples", options_.task_examples}};
    const std::string text = json.dump();
    return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
  }

  ArchitectureResult run_entrant(const Entrant& entrant) {
    ArchitectureResult result;
    result.name = entrant.name;
    result.config_path = entrant.path.string();
    result.identity = identity_of(entrant);
    result.pattern = entrant.config.pattern;
    result.kind = kind_of(entrant.config);
    try {
      Model model(entrant.config, options_.seed);
      result.parameters = model.parameter_count();
      result.non_embedding_parameters = model.non_embedding_parameter_count();
      const int64_t active = model.active_parameter_count();
      if (active < result.parameters) result.active_parameters = active;
      spdlog::info("{}: {} parameters, pattern {}", entrant.name,
                   format_count(static_cast<double>(result.parameters)), entrant.config.pattern);
      train_and_judge(entrant, model, options_.seed, result);
      if (on_text()) {
        // What fills in masked tokens reads and writes no single tokens, and learns no tasks.
        const bool diffusion = model.config().diffusion.has_value();
        if (!diffusion) measure_entrant(model, result);
        write_sample(model, result);
        if (options_.mqar_seconds && !diffusion) result.mqar_accuracy = mqar_accuracy(entrant);
      }
      add_other_seeds(entrant, result);
    } catch (const std::exception& error) {  // too little memory for this one too
      if (interrupted_) throw;
      result.failure = error.what();
      spdlog::error("{}: {}", entrant.name, error.what());
    }
    return result;
  }

  void train_and_judge(const Entrant& entrant, Model& model, uint64_t seed,
                       ArchitectureResult& result) {
    if (options_.images) {
      ImageSource source(*entrant.config.image, images_, entrant.train.image_shift, seed);
      train_entrant(entrant, model, source, nullptr, seed, result);
      judge_on_images(entrant, model, source, result);
      return;
    }
    if (options_.sound) {
      SoundSource source(*entrant.config.sound, sounds_, seed);
      train_entrant(entrant, model, source, nullptr, seed, result);
      judge_on_sounds(entrant, model, source, result);
      return;
    }
    if (on_task()) {
      TaskOptions task = task_;
      task.seed = seed;
      const std::unique_ptr<DataSource> source = make_task(task);
      train_entrant(entrant, model, *source, nullptr, seed, result);
      judge_on_task(entrant, model, seed, result);
      return;
    }
    const TokenShard shard(corpus_.files.train), held_out(corpus_.files.held_out);
    TextSource source(shard, entrant.train.window, seed);
    train_entrant(entrant, model, source, &held_out, seed, result);
  }

  // Trains with the other seeds, and puts means in place of what was judged of the first.
  void add_other_seeds(const Entrant& entrant, ArchitectureResult& result) {
    if (options_.seeds == 1) return;
    const auto count = static_cast<double>(options_.seeds);
    if (result.held_out_bits_per_byte) {
      result.seed_bits_per_byte = {*result.held_out_bits_per_byte};
    }
    for (int64_t i = 1; i < options_.seeds; ++i) {
      const uint64_t seed = options_.seed + static_cast<uint64_t>(i);
      Model model(entrant.config, seed);
      ArchitectureResult other;
      train_and_judge(entrant, model, seed, other);
      if (other.held_out_bits_per_byte) {
        result.seed_bits_per_byte.push_back(*other.held_out_bits_per_byte);
      }
      if (result.images) result.images->accuracy += other.images->accuracy;
      if (result.sound) {
        result.sound->word_accuracy += other.sound->word_accuracy;
        result.sound->symbol_accuracy += other.sound->symbol_accuracy;
      }
      for (size_t t = 0; t < result.tasks.size(); ++t) {
        result.tasks[t].accuracy += other.tasks[t].accuracy;
        result.tasks[t].answers += other.tasks[t].answers;
      }
    }
    if (result.images) result.images->accuracy /= count;
    if (result.sound) {
      result.sound->word_accuracy /= count;
      result.sound->symbol_accuracy /= count;
    }
    for (TaskPoint& point : result.tasks) {
      point.accuracy /= count;
      point.answers /= count;
    }
    if (result.held_out_bits_per_byte) {
      double sum = 0;
      for (const double value : result.seed_bits_per_byte) sum += value;
      result.held_out_bits_per_byte = sum / count;
    }
  }

  void train_entrant(const Entrant& entrant, Model& model, DataSource& source,
                     const TokenShard* held_out, uint64_t seed, ArchitectureResult& result) {
    const std::string name =
        seed == options_.seed ? entrant.name : fmt::format("{}.seed{}", entrant.name, seed);
    TrainRun run;
    run.config = entrant.train;
    run.budget = options_.budget;
    run.seed = seed;
    run.directory = options_.directory / name;
    run.resume = true;
    run.data_identity = on_text() ? corpus_.identity() : run_.data.tokenizer;
    run.label = name;
    const DirectoryLock lock(run.directory);
    const TrainResult trained = train(model, source, held_out, corpus_.tokenizer.get(), run);
    if (trained.interrupted) interrupt();
    result.train_tokens = trained.tokens;
    result.train_seconds = trained.seconds;
    result.train_tokens_per_second = trained.tokens_per_second;
    const TokenCost cost = text_cost(model, static_cast<double>(entrant.train.window));
    const double flops = 3 * (cost.matmul + cost.sequence) * *result.train_tokens_per_second;
    const double peak = entrant.train.precision == Precision::bf16 ? *run_.machine.peak_bf16_gflops
                                                                   : *run_.machine.peak_f32_gflops;
    if (peak > 0) result.train_fraction_of_peak = flops / (peak * 1e9);
    result.held_out_bits_per_byte = trained.held_out_bits_per_byte;
    result.best_held_out_bits_per_byte = trained.best_bits_per_byte;
    if (trained.is_bound) result.bound_samples = kBoundSamples;
    if (!trained.expert_loads.empty()) {
      result.least_expert_share = trained.expert_loads.least();
      result.most_expert_share = trained.expert_loads.most();
    }
    if (trained.peak_bytes > 0) result.peak_training_bytes = trained.peak_bytes;
    for (const TrainLogLine& line : read_train_log(run.directory / "log.jsonl")) {
      result.curve.push_back(
          {line.step, line.tokens, line.seconds, line.loss, line.held_out_bits_per_byte});
    }
  }

  void judge_on_task(const Entrant& entrant, const Model& model, uint64_t seed,
                     ArchitectureResult& result) {
    const std::vector<std::string>& parts = task_type(task_.name).parts;
    int64_t total = 0;
    for (const int64_t multiple : options_.task_multiples) total += multiple * task_.length;
    total *= static_cast<int64_t>(parts.size()) * options_.task_examples;
    Progress progress(entrant.name + " " + task_.name, static_cast<double>(total), "tokens");
    double before = 0;
    for (const std::string& part : parts) {
      for (const int64_t multiple : options_.task_multiples) {
        TaskOptions task = task_;
        task.name = part;
        task.length = multiple * task_.length;
        task.questions = task.haystacks = 1;
        task.seed = seed;
        const std::unique_ptr<DataSource> source = make_task(task);
        const TaskScore score =
            evaluate_task(model, entrant.train.precision, *source, options_.task_examples,
                          [&](double done) { progress.update(before + done); });
        before += static_cast<double>(options_.task_examples * task.length);
        result.tasks.push_back({part, task.length, score.solved_share(), score.accuracy(),
                                source->chance(), model.predicted_state_bytes(task.length)});
      }
    }
    progress.finish();
  }

  void judge_on_images(const Entrant& entrant, const Model& model, ImageSource& source,
                       ArchitectureResult& result) {
    const int64_t count = source.held_out_examples();
    const auto rows = static_cast<double>(source.length());
    Progress progress(entrant.name + " images", static_cast<double>(count) * rows, "tokens");
    const double start = now_seconds();
    const TaskScore score = evaluate_task(model, entrant.train.precision, source, count,
                                          [&](double done) { progress.update(done); });
    const double seconds = now_seconds() - start;
    progress.finish();
    result.images = {score.accuracy(), source.chance(), *result.train_tokens_per_second / rows,
                     static_cast<double>(count) / seconds};
  }

  void judge_on_sounds(const Entrant& entrant, const Model& model, SoundSource& source,
                       ArchitectureResult& result) {
    Progress progress(entrant.name + " sounds", static_cast<double>(source.held_out_examples()),
                      "sounds");
    const SoundScore score = evaluate_sound(model, entrant.train.precision, source,
                                            [&](double done) { progress.update(done); });
    progress.finish();
    // In training a sound counts as many rows as the longest has.
    const double rate = *result.train_tokens_per_second / static_cast<double>(source.length());
    result.sound = {score.word_accuracy(), score.symbol_accuracy(), rate * source.mean_seconds(),
                    score.sound_per_second()};
  }

  void measure_entrant(const Model& model, ArchitectureResult& result) {
    const TokenShard held_out(corpus_.files.held_out);
    constexpr int64_t kText = 1 << 16;
    std::vector<int32_t> text(static_cast<size_t>(std::min(kText, held_out.size())));
    held_out.read(0, text);
    // A state that grows with every token makes the longest contexts a matter of memory bandwidth
    // only; they are measured where the state stays the same.
    const std::vector<int64_t>& all = options_.contexts;
    std::vector<int64_t> contexts;
    for (const int64_t context : all) {
      const bool flat = model.predicted_state_bytes(context) <=
                        2 * model.predicted_state_bytes(std::min<int64_t>(context, 4096));
      constexpr int64_t kLongest = 65536;
      if (flat || context <= kLongest) contexts.push_back(context);
    }
    ContextOptions measure;
    measure.max_seconds = options_.context_seconds;
    for (const ContextPoint& point : measure_contexts(model, contexts, text, measure)) {
      result.inference.push_back({point.context, point.prompt_tokens_per_second,
                                  point.decode_tokens_per_second, point.state_bytes});
    }
  }

  void write_sample(const Model& model, ArchitectureResult& result) {
    const TokenShard held_out(corpus_.files.held_out);
    std::vector<int32_t> prompt(static_cast<size_t>(std::min<int64_t>(24, held_out.size())));
    held_out.read(0, prompt);
    Session session(model);
    GenerateOptions options;
    options.max_tokens = kSampleTokens;
    options.sampling.temperature = kSampleTemperature;
    options.sampling.seed = options_.seed;
    options.stop_at_eos = false;
    options.context = ContextLimit::ignore;
    result.sample = corpus_.tokenizer->decode(prompt) +
                    generate(model, *corpus_.tokenizer, session, prompt, options).text;
  }

  [[noreturn]] void interrupt() {
    interrupted_ = true;
    const std::string missing = names_of_missing(
        [&](size_t i) { return !std::filesystem::exists(part_file(entrants_[i])); });
    throw Error(options_.directory.string(),
                fmt::format("interrupted before the end of {}; everything so far is kept", missing),
                "run the same command again to continue");
  }

  double mqar_accuracy(const Entrant& entrant) {
    TaskOptions task;
    task.name = "mqar";
    task.length = kMqarLength;
    task.items = kMqarPairs;
    task.vocab_size = kMqarVocabulary;
    task.seed = options_.seed;
    const std::unique_ptr<DataSource> source = make_task(task);
    ModelConfig config = entrant.config;
    config.vocab_size = kMqarVocabulary;
    Model model(config, options_.seed);
    TrainRun run;
    run.config = entrant.train;
    run.budget.seconds = options_.mqar_seconds;
    run.seed = options_.seed;
    run.directory = options_.directory / (entrant.name + ".mqar");
    run.resume = true;
    run.data_identity = describe(task);
    run.label = entrant.name + " mqar";
    const DirectoryLock lock(run.directory);
    const TrainResult trained = train(model, *source, nullptr, nullptr, run);
    if (trained.interrupted) interrupt();
    return trained.accuracy.value_or(0);
  }

  void save_part(size_t entrant) const {
    make_directories(part_file(entrants_[entrant]).parent_path());  // not there after a failure
    CompareRun part = run_;
    part.architectures = {*results_[entrant]};
    save_run(part, part_file(entrants_[entrant]));
  }

  // Writes what is there, in the order of the configurations.
  void save() {
    run_.architectures.clear();
    for (const std::optional<ArchitectureResult>& result : results_) {
      if (result) run_.architectures.push_back(*result);
    }
    save_run(run_, options_.directory / kResultsFile);
    save_report(run_, options_.directory / kReportFile);
    write_file(options_.directory / kTablesFile, compare_markdown(run_));
  }

  const CompareOptions& options_;
  Ranks& ranks_;
  std::vector<Entrant> entrants_;
  // Of each entrant; empty: not finished.
  std::vector<std::optional<ArchitectureResult>> results_;

  Corpus corpus_;       // of a comparison on text
  TaskOptions task_;    // of one on a task
  ImageFolder images_;  // of one on images
  SoundFolder sounds_;  // of one on sounds
  CompareRun run_;
  bool interrupted_ = false;
};

}  // namespace

CompareRun compare(const CompareOptions& options) { return Comparison(options).run(); }

}  // namespace pronghorn::lab
