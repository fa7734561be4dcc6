// What one `pronghorn compare` found: plain values, and their JSON in both directions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn::lab {

// The machine that the run was measured on, with its measured ceilings.
struct Machine {
  std::string cpu;
  int64_t cores = 0;
  int64_t threads = 0;                        // threads that the run used
  std::vector<std::string> instruction_sets;  // "avx2", "avx512", "amx_bf16"...
  std::optional<double> peak_f32_gflops;      // matrix products, all threads
  std::optional<double> peak_bf16_gflops;
  std::optional<double> read_gigabytes_per_second;

  bool operator==(const Machine&) const = default;
};

// What the architectures were trained and judged on.
struct DataDescription {
  std::vector<std::string> paths;
  std::string tokenizer;
  int64_t vocab_size = 0;
  int64_t train_tokens = 0;  // tokens at hand; how many were used is in the budget and the results
  int64_t held_out_tokens = 0;
  int64_t held_out_bytes = 0;
  std::optional<double> gzip_bits_per_byte;  // gzip -9 on the held-out bytes

  bool operator==(const DataDescription&) const = default;
};

// What each architecture may spend on training; one of the two is set.
struct Budget {
  std::optional<double> seconds;
  std::optional<int64_t> tokens;

  bool operator==(const Budget&) const = default;
};

// One step of training. loss is in nats per token; NaN where none was taken.
struct CurvePoint {
  int64_t step = 0;
  int64_t tokens = 0;  // seen so far
  double seconds = 0;  // since training began
  double loss = 0;
  std::optional<double> held_out_bits_per_byte;

  bool operator==(const CurvePoint&) const = default;
};

// Inference with `context` tokens: reading them as a prompt, and decoding after them.
struct InferencePoint {
  int64_t context = 0;
  std::optional<double> prompt_tokens_per_second;
  std::optional<double> decode_tokens_per_second;
  std::optional<int64_t> state_bytes;  // of one sequence

  bool operator==(const InferencePoint&) const = default;
};

// How well a synthetic task is solved at a length, trained at one of the lengths.
struct TaskPoint {
  std::string task;
  int64_t length = 0;
  double accuracy = 0;  // share of the examples whose answers are all right, 0 to 1
  double answers = 0;   // share of the answers that are right
  double chance = 0;    // that of guessing among the answers there can be
  std::optional<int64_t> state_bytes = {};  // of a sequence of that length

  bool operator==(const TaskPoint&) const = default;
};

// How well a model of images tells classes apart, and how fast.
struct ImageScore {
  double accuracy = 0;  // on held-out images, 0 to 1
  double chance = 0;    // that of guessing
  double train_images_per_second = 0, images_per_second = 0;

  bool operator==(const ImageScore&) const = default;
};

// How well a model writes down what is said, and how fast, in seconds of sound a second.
struct SpeechScore {
  double word_accuracy = 0, symbol_accuracy = 0;  // on held-out sounds, 0 to 1
  double train_sound_per_second = 0, sound_per_second = 0;

  bool operator==(const SpeechScore&) const = default;
};

// One row of the comparison. What was not measured, or not reached before a failure, is absent.
struct ArchitectureResult {
  std::string name;
  std::string config_path;
  std::string identity;  // of the configuration and of what was asked for, to continue from
  std::string pattern;
  // What its layers are: the kind of its mixers (layers/layer.h), "hybrid" or "diffusion". Absent
  // from results of earlier versions.
  std::optional<std::string> kind;
  int64_t parameters = 0;
  int64_t non_embedding_parameters = 0;
  // Of a model with experts: the parameters that a token meets, and what the least and the most
  // used expert of a layer got of the held-out text, in shares of an equal load.
  std::optional<int64_t> active_parameters;
  std::optional<double> least_expert_share, most_expert_share;
  int64_t train_tokens = 0;
  double train_seconds = 0;
  std::optional<double> train_tokens_per_second;
  std::optional<double> train_fraction_of_peak;  // 0 to 1
  std::optional<double> held_out_bits_per_byte;  // at the end of training
  std::optional<double> best_held_out_bits_per_byte;
  // Of a diffusion model: bits per byte are upper bounds, estimated from that many samples.
  std::optional<int64_t> bound_samples;
  // With several seeds, held_out_bits_per_byte and the shares of tasks are means over them; these
  // are the values of each. The rest is that of the first seed.
  std::vector<double> seed_bits_per_byte;
  std::optional<int64_t> peak_training_bytes;
  std::vector<CurvePoint> curve;
  std::vector<InferencePoint> inference;  // by context; a context may be missing
  std::optional<double> mqar_accuracy;    // 0 to 1
  std::vector<TaskPoint> tasks;           // of a comparison on a task; by task, then length
  std::optional<ImageScore> images;       // of a comparison on images
  std::optional<SpeechScore> sound;       // of a comparison on sounds
  std::string sample;                     // generated text; any bytes
  std::optional<std::string> failure;     // why this architecture has no or partial results

  bool operator==(const ArchitectureResult&) const = default;
};

// A whole comparison.
struct CompareRun {
  std::string title;
  std::string date;  // ISO 8601
  uint64_t seed = 0;
  int64_t seeds = 1;  // with which each architecture was trained: seed, seed + 1, ...
  Machine machine;
  DataDescription data;
  Budget budget;
  std::vector<ArchitectureResult> architectures;

  bool operator==(const CompareRun&) const = default;
};

// JSON of a run. Values that are absent, not a number or infinite become null.
void to_json(nlohmann::json& json, const CompareRun& run);
void to_json(nlohmann::json& json, const ArchitectureResult& result);

// The inverse. Throws Error that names the field ("run.architectures[2].curve[0].tokens") when one
// is missing, of the wrong type or a negative count, and when the document is not a run of this
// format. Keys that are not known are passed over. null reads as absent, or as NaN for a number.
void from_json(const nlohmann::json& json, CompareRun& run);
void from_json(const nlohmann::json& json, ArchitectureResult& result);

// The run as JSON text (indent as in nlohmann; -1: one line). Bytes in names and samples that are
// not UTF-8 become U+FFFD, so that the text always parses.
std::string run_text(const CompareRun& run, int indent = 2);
// Throws Error that begins with `where` if the text is not the JSON of a run.
CompareRun parse_run(std::string_view text, std::string_view where);

// Writes and reads a file of run_text. Throw Error.
void save_run(const CompareRun& run, const std::filesystem::path& path);
CompareRun load_run(const std::filesystem::path& path);

// Whether a run has so many architectures that it is shown by kinds, one after the other: more than
// eight, of at least two kinds.
bool is_grouped(const CompareRun& run);
// The kinds of a run, each once, in the order of the architectures.
std::vector<std::string> kinds_of(const CompareRun& run);
// The run as it is shown: if it is grouped, the architectures kind by kind, that of the best first,
// and within each by what they make of the held-out text; those that were not judged last.
CompareRun in_order(CompareRun run);

// What each architecture was given: "60s of training", or the tokens that were trained: whole
// steps, which an architecture may have larger ones of.
std::string budget_words(const CompareRun& run);

// Every context that any architecture of the run was measured at, ascending, each once.
std::vector<int64_t> measured_contexts(const CompareRun& run);
// The point of an architecture at a context, or nullptr.
const InferencePoint* inference_at(const ArchitectureResult& result, int64_t context);

// A task of a comparison and the lengths that any architecture was judged at, ascending.
struct TaskLengths {
  std::string task;
  std::vector<int64_t> lengths;
};
std::vector<TaskLengths> measured_tasks(const CompareRun& run);
// The relative difference of two held-out scores under which the run cannot tell them apart: two
// standard errors where each architecture was trained with several seeds, else one percent.
double quality_margin(const CompareRun& run);

// What an architecture reached on a task at a length, or null.
const TaskPoint* task_point(const ArchitectureResult& result, const std::string& task,
                            int64_t length);
// The accuracy of an architecture, or none.
std::optional<double> task_accuracy(const ArchitectureResult& result, const std::string& task,
                                    int64_t length);

}  // namespace pronghorn::lab
