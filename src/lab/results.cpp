#include "lab/results.h"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/quote.h"

namespace pronghorn::lab {
namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "pronghorn-compare-3";

// T, const or not: one list of fields serves writing and reading.
template <typename T, typename U>
concept Like = std::same_as<std::remove_const_t<T>, U>;

template <typename Io, Like<Machine> T>
void fields(const Io& io, T& value) {
  io("cpu", value.cpu);
  io("cores", value.cores);
  io("threads", value.threads);
  io("instruction_sets", value.instruction_sets);
  io("peak_f32_gflops", value.peak_f32_gflops);
  io("peak_bf16_gflops", value.peak_bf16_gflops);
  io("read_gigabytes_per_second", value.read_gigabytes_per_second);
}

template <typename Io, Like<DataDescription> T>
void fields(const Io& io, T& value) {
  io("paths", value.paths);
  io("tokenizer", value.tokenizer);
  io("vocab_size", value.vocab_size);
  io("train_tokens", value.train_tokens);
  io("held_out_tokens", value.held_out_tokens);
  io("held_out_bytes", value.held_out_bytes);
  io("gzip_bits_per_byte", value.gzip_bits_per_byte);
}

template <typename Io, Like<Budget> T>
void fields(const Io& io, T& value) {
  io("seconds", value.seconds);
  io("tokens", value.tokens);
}

template <typename Io, Like<CurvePoint> T>
void fields(const Io& io, T& value) {
  io("step", value.step);
  io("tokens", value.tokens);
  io("seconds", value.seconds);
  io("loss", value.loss);
  io("held_out_bits_per_byte", value.held_out_bits_per_byte);
}

template <typename Io, Like<InferencePoint> T>
void fields(const Io& io, T& value) {
  io("context", value.context);
  io("prompt_tokens_per_second", value.prompt_tokens_per_second);
  io("decode_tokens_per_second", value.decode_tokens_per_second);
  io("state_bytes", value.state_bytes);
}

template <typename Io, Like<TaskPoint> T>
void fields(const Io& io, T& value) {
  io("task", value.task);
  io("length", value.length);
  io("accuracy", value.accuracy);
  io("answers", value.answers);
  io("chance", value.chance);
  io("state_bytes", value.state_bytes);
}

template <typename Io, Like<ImageScore> T>
void fields(const Io& io, T& value) {
  io("accuracy", value.accuracy);
  io("chance", value.chance);
  io("train_images_per_second", value.train_images_per_second);
  io("images_per_second", value.images_per_second);
}

template <typename Io, Like<SpeechScore> T>
void fields(const Io& io, T& value) {
  io("word_accuracy", value.word_accuracy);
  io("symbol_accuracy", value.symbol_accuracy);
  io("train_sound_per_second", value.train_sound_per_second);
  io("sound_per_second", value.sound_per_second);
}

template <typename Io, Like<ArchitectureResult> T>
void fields(const Io& io, T& value) {
  io("name", value.name);
  io("config_path", value.config_path);
  io("identity", value.identity);
  io("pattern", value.pattern);
  io("kind", value.kind);
  io("parameters", value.parameters);
  io("non_embedding_parameters", value.non_embedding_parameters);
  io("active_parameters", value.active_parameters);
  io("least_expert_share", value.least_expert_share);
  io("most_expert_share", value.most_expert_share);
  io("train_tokens", value.train_tokens);
  io("train_seconds", value.train_seconds);
  io("train_tokens_per_second", value.train_tokens_per_second);
  io("train_fraction_of_peak", value.train_fraction_of_peak);
  io("held_out_bits_per_byte", value.held_out_bits_per_byte);
  io("best_held_out_bits_per_byte", value.best_held_out_bits_per_byte);
  io("bound_samples", value.bound_samples);
  io("seed_bits_per_byte", value.seed_bits_per_byte);
  io("peak_training_bytes", value.peak_training_bytes);
  io("curve", value.curve);
  io("inference", value.inference);
  io("mqar_accuracy", value.mqar_accuracy);
  io("tasks", value.tasks);
  io("images", value.images);
  io("sound", value.sound);
  io("sample", value.sample);
  io("failure", value.failure);
}

template <typename Io, Like<CompareRun> T>
void fields(const Io& io, T& value) {
  io("title", value.title);
  io("date", value.date);
  io("seed", value.seed);
  io("seeds", value.seeds);
  io("machine", value.machine);
  io("data", value.data);
  io("budget", value.budget);
  io("architectures", value.architectures);
}

class Writer {
 public:
  explicit Writer(json& object) : object_(object) {}

  template <typename T>
  void operator()(const char* name, const T& value) const {
    object_[name] = written(value);
  }

  template <typename T>
  static json written(const T& value) {
    json result = json::object();
    fields(Writer(result), value);
    return result;
  }
  static json written(const std::string& value) { return value; }
  static json written(int64_t value) { return value; }
  static json written(uint64_t value) { return value; }
  static json written(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }
  template <typename T>
  static json written(const std::optional<T>& value) {
    return value ? written(*value) : json(nullptr);
  }
  template <typename T>
  static json written(const std::vector<T>& values) {
    json result = json::array();
    for (const T& value : values) result.push_back(written(value));
    return result;
  }

 private:
  json& object_;
};

[[noreturn]] void wrong_type(const std::string& path, const json& value,
                             std::string_view expected) {
  throw Error(path, fmt::format("expected {}, found {}", expected, value.type_name()));
}

template <typename T>
constexpr bool is_optional = false;
template <typename T>
constexpr bool is_optional<std::optional<T>> = true;

class Reader {
 public:
  Reader(const json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object_.is_object()) wrong_type(path_, object_, "an object");
  }

  template <typename T>
  void operator()(const char* name, T& value) const {
    const std::string path = path_ + "." + name;
    const auto found = object_.find(name);
    if (found != object_.end()) {
      read(*found, path, value);
    } else if constexpr (is_optional<T>) {
      value.reset();
    } else {
      throw Error(path, "the field is missing");
    }
  }

  template <typename T>
  static void read(const json& source, const std::string& path, T& value) {
    fields(Reader(source, path), value);
  }
  static void read(const json& source, const std::string& path, std::string& value) {
    if (!source.is_string()) wrong_type(path, source, "a string");
    value = source.get<std::string>();
  }
  static void read(const json& source, const std::string& path, uint64_t& value) {
    if (!source.is_number_integer()) wrong_type(path, source, "an integer");
    if (!source.is_number_unsigned() && source.get<int64_t>() < 0) {
      throw Error(path, fmt::format("{} is negative", source.get<int64_t>()));
    }
    value = source.get<uint64_t>();
  }
  // Every signed integer of a run is a count.
  static void read(const json& source, const std::string& path, int64_t& value) {
    uint64_t count = 0;
    read(source, path, count);
    require(count <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), path,
            "{} is too large", count);
    value = static_cast<int64_t>(count);
  }
  static void read(const json& source, const std::string& path, double& value) {
    if (source.is_null()) {
      value = std::numeric_limits<double>::quiet_NaN();
    } else if (source.is_number()) {
      value = source.get<double>();
    } else {
      wrong_type(path, source, "a number");
    }
  }
  template <typename T>
  static void read(const json& source, const std::string& path, std::optional<T>& value) {
    if (source.is_null()) {
      value.reset();
    } else {
      read(source, path, value.emplace());
    }
  }
  template <typename T>
  static void read(const json& source, const std::string& path, std::vector<T>& values) {
    if (!source.is_array()) wrong_type(path, source, "an array");
    values.assign(source.size(), T{});
    for (size_t i = 0; i < values.size(); ++i) {
      read(source[i], fmt::format("{}[{}]", path, i), values[i]);
    }
  }

 private:
  const json& object_;
  const std::string path_;
};

}  // namespace

void to_json(json& document, const CompareRun& run) {
  document = Writer::written(run);
  document["format"] = kFormat;
}

void to_json(json& document, const ArchitectureResult& result) {
  document = Writer::written(result);
}

void from_json(const json& document, CompareRun& run) {
  std::string format;
  Reader(document, "run")("format", format);
  require(format == kFormat, "run.format", "is {}, expected '{}'", quote(format), kFormat);
  Reader::read(document, "run", run);
}

void from_json(const json& document, ArchitectureResult& result) {
  Reader::read(document, "architecture", result);
}

std::string run_text(const CompareRun& run, int indent) {
  json document;
  to_json(document, run);
  return document.dump(indent, ' ', false, json::error_handler_t::replace);
}

CompareRun parse_run(std::string_view text, std::string_view where) {
  CompareRun run;
  try {
    from_json(json::parse(text), run);
  } catch (const json::exception& error) {
    throw Error(where, fmt::format("is not JSON: {}", printable(error.what(), 2 * kQuoteLength)));
  } catch (const Error& error) {
    throw Error(where, error.what());
  }
  return run;
}

void save_run(const CompareRun& run, const std::filesystem::path& path) {
  write_file(path, run_text(run) + "\n");
}

CompareRun load_run(const std::filesystem::path& path) {
  return parse_run(read_file(path), path.string());
}

std::string budget_words(const CompareRun& run) {
  if (run.budget.seconds) return format_duration(*run.budget.seconds) + " of training";
  if (!run.budget.tokens) return "training";
  std::vector<int64_t> trained;
  for (const ArchitectureResult& a : run.architectures) {
    if (a.train_tokens > 0) trained.push_back(a.train_tokens);
  }
  if (trained.empty()) trained = {*run.budget.tokens};
  const auto [least, most] = std::ranges::minmax(trained);
  return (least == most ? "" : format_count(static_cast<double>(least)) + " to ") +
         format_count(static_cast<double>(most)) + " training tokens";
}

std::vector<int64_t> measured_contexts(const CompareRun& run) {
  std::set<int64_t> contexts;
  for (const ArchitectureResult& result : run.architectures) {
    for (const InferencePoint& point : result.inference) contexts.insert(point.context);
  }
  return {contexts.begin(), contexts.end()};
}

std::vector<std::string> kinds_of(const CompareRun& run) {
  std::vector<std::string> kinds;
  for (const ArchitectureResult& a : run.architectures) {
    const std::string kind = a.kind.value_or("");
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
  }
  return kinds;
}

bool is_grouped(const CompareRun& run) {
  constexpr size_t kMostUngrouped = 8;
  return run.architectures.size() > kMostUngrouped && kinds_of(run).size() > 1;
}

CompareRun in_order(CompareRun run) {
  if (!is_grouped(run)) return run;
  const auto score = [](const ArchitectureResult& a) {
    const double bits = a.held_out_bits_per_byte.value_or(NAN);
    return std::isfinite(bits) ? bits : std::numeric_limits<double>::infinity();
  };
  std::vector<ArchitectureResult>& all = run.architectures;
  std::stable_sort(all.begin(), all.end(),
                   [&](const auto& a, const auto& b) { return score(a) < score(b); });
  // Those in the order of their scores, the kinds are in that of their best.
  const std::vector<std::string> kinds = kinds_of(run);
  const auto place = [&](const ArchitectureResult& a) {
    return std::find(kinds.begin(), kinds.end(), a.kind.value_or("")) - kinds.begin();
  };
  std::stable_sort(all.begin(), all.end(),
                   [&](const auto& a, const auto& b) { return place(a) < place(b); });
  return run;
}

const InferencePoint* inference_at(const ArchitectureResult& result, int64_t context) {
  const auto found =
      std::find_if(result.inference.begin(), result.inference.end(),
                   [context](const InferencePoint& point) { return point.context == context; });
  return found == result.inference.end() ? nullptr : &*found;
}

std::vector<TaskLengths> measured_tasks(const CompareRun& run) {
  std::vector<TaskLengths> result;
  for (const ArchitectureResult& a : run.architectures) {
    for (const TaskPoint& point : a.tasks) {
      auto found = std::find_if(result.begin(), result.end(),
                                [&](const TaskLengths& known) { return known.task == point.task; });
      if (found == result.end()) found = result.insert(result.end(), {point.task, {}});
      std::vector<int64_t>& lengths = found->lengths;
      const auto place = std::lower_bound(lengths.begin(), lengths.end(), point.length);
      if (place == lengths.end() || *place != point.length) lengths.insert(place, point.length);
    }
  }
  return result;
}

double quality_margin(const CompareRun& run) {
  // Runs of one configuration that differ in their seed alone differ by up to about this much.
  constexpr double kOneSeed = 0.01;
  double widest = 0, least = std::numeric_limits<double>::infinity();
  for (const ArchitectureResult& a : run.architectures) {
    if (!a.held_out_bits_per_byte) continue;
    least = std::min(least, *a.held_out_bits_per_byte);
    const auto count = static_cast<double>(a.seed_bits_per_byte.size());
    if (count < 2) return kOneSeed;
    double squares = 0;
    for (const double value : a.seed_bits_per_byte) {
      squares += (value - *a.held_out_bits_per_byte) * (value - *a.held_out_bits_per_byte);
    }
    widest = std::max(widest, squares / (count - 1) / count);  // variance of the mean
  }
  if (!(least > 0) || !std::isfinite(least)) return kOneSeed;
  return 2 * std::sqrt(2 * widest) / least;  // two standard errors of a difference
}

const TaskPoint* task_point(const ArchitectureResult& result, const std::string& task,
                            int64_t length) {
  for (const TaskPoint& point : result.tasks) {
    if (point.task == task && point.length == length) return &point;
  }
  return nullptr;
}

std::optional<double> task_accuracy(const ArchitectureResult& result, const std::string& task,
                                    int64_t length) {
  const TaskPoint* point = task_point(result, task, length);
  if (point == nullptr) return {};
  return point->accuracy;
}

}  // namespace pronghorn::lab
