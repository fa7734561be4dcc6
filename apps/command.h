// What the commands of the command line share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "decode/generator.h"
#include "decode/sampling.h"
#include "decode/speculation.h"
#include "decode/text_model.h"
#include "formats/chat_format.h"
#include "formats/tokenizer.h"
#include "lab/table.h"
#include "model/model.h"
#include "model/trained_context.h"
#include "pronghorn/pronghorn.h"
#include "tensor/tape.h"
#include "tensor/weight.h"
#include "train/trainer.h"

namespace pronghorn::app {

// Options that every command understands.
struct Common {
  bool json = false;
};

// Adds --json, --threads and --quiet to a command.
void add_common_options(CLI::App& command, Common& common);

// Each adds its command with its options and what to do when it is chosen.
void add_list(CLI::App& app);
void add_inspect(CLI::App& app);
void add_train(CLI::App& app);
void add_generate(CLI::App& app);
void add_eval(CLI::App& app);
void add_classify(CLI::App& app);
void add_transcribe(CLI::App& app);
void add_compare(CLI::App& app);
void add_bench(CLI::App& app);
void add_logits(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_template(CLI::App& app);
void add_convert(CLI::App& app);
void add_linearise(CLI::App& app);
void add_extend(CLI::App& app);
void add_chat(CLI::App& app);
void add_serve(CLI::App& app);
void add_watch(CLI::App& app);

// Prints a document on stdout, ended by a newline.
void print_json(const nlohmann::json& json);
void print_table(const lab::Table& table);

// "kept 64.0%, 41.2% of the tokens" in the subsampled spans; empty for a model without.
std::string kept_text(std::span<const double> shares);

// A count as people write it: "500", or in thousands "2k", "20M", "1.5G", "1T". Nothing for
// anything else, and for what is no whole number or more than an int64_t holds.
std::optional<int64_t> parse_count(std::string_view text);

// For options that take a whole number from 1 on, and from 0 on, as parse_count() reads it. For
// Option::transform(), before any check of its size: check() would leave the unit in place.
CLI::Validator positive_integer();
CLI::Validator natural_number();
// For numbers of any kind, and for seeds: whole numbers of 64 bits.
CLI::Validator number_in_range(double least, double most);
CLI::Validator seed_number();
// For names and sizes, of which an empty one would mean that none was given.
CLI::Validator not_empty();

// --task and its --task-length, --task-vocab, --task-items, --task-questions, --task-haystacks,
// --task-curriculum.
void add_task_options(CLI::App& command, SyntheticTask& task);

// --sequence-parallel ulysses|ring; `kind` stays empty without it.
void add_sequence_parallel_option(CLI::App& command, std::string& kind);

// --adapter of commands that use a model.
void add_adapter_option(CLI::App& command, std::filesystem::path& adapter);

// --precision f32|bf16, with its default.
void add_precision_option(CLI::App& command, Precision& precision);
// The same where the default is that of stored_precision(), or of Rounding::stored.
void add_precision_option(CLI::App& command, std::optional<Precision>& precision);
void add_precision_option(CLI::App& command, Rounding& rounding);
// "f32" or "bf16".
std::string_view name_of(Precision precision);

// "270 MB stored bf16 (mapped), 538 MB packed f32", and the same as a list.
std::string weights_text(std::span<const WeightBytes> parts);
nlohmann::json weights_json(std::span<const WeightBytes> parts);

// --strict-context: a text beyond the context that the model was trained for is an error.
void add_context_option(CLI::App& command, ContextLimit& limit);

// --cache-type, --attention-window and --attention-sinks, --quest-pages, --snapkv, --h2o; after
// --draft, if the command has that.
void add_cache_options(CLI::App& command, CacheOptions& cache);

// What is done about texts beyond the context that a model was trained for, of a cache in which
// positions stay within it (--attention-window): nothing.
ContextLimit limit_of(ContextLimit given, const CacheOptions& cache, const Model& model);

// "length", "stop_string", "end_token", "interrupted".
const char* end_name(Generated::End end);

// --stop TEXT, as often as wanted.
void add_stop_option(CLI::App& command, std::vector<std::string>& stop);
// --temperature, --top-k, --top-p, --min-p, --repetition-penalty and --seed.
void add_sampling_options(CLI::App& command, SamplingOptions& sampling);

// --draft-tokens, --draft-tree and --draft-block: how a drafter is used.
void add_speculation_options(CLI::App& command, SpeculationOptions& options);

// --steps, --block, --threshold, --remask and --canvas-cache: how a diffusion model writes.
void add_diffusion_options(CLI::App& command, DiffusionOptions& options);

// What commands that write texts have in common: which model, and how it decodes.
struct WritingOptions : Common {
  std::filesystem::path model, adapter, session;
  std::string system, draft;
  SpeculationOptions speculation;
  std::optional<Precision> precision;
  CacheOptions cache;
  bool stats = false;
  GenerateOptions generate;
};
// The model and --adapter; sampling, --stop, --draft and how it is used, those of diffusion models,
// --precision, how keys and values are kept, --strict-context, and what every command has.
void add_writing_options(CLI::App& command, WritingOptions& options);

// --steps, --tokens and --time of training; times as "90", "60s", "5m", "1.5h".
struct BudgetOptions {
  int64_t steps = 0, tokens = 0;
  std::string time;
  // Throws UsageError unless exactly one was given.
  TrainBudget budget() const;
};
void add_budget_options(CLI::App& command, BudgetOptions& options, bool steps);

// What commands have in common that let a checkpoint learn on from texts.
struct LearningOptions : Common {
  std::filesystem::path model, directory;
  std::vector<std::filesystem::path> data;
  double held_out = 0.05;
  uint64_t seed = 0;
  BudgetOptions budget;
  std::vector<std::string> settings;

  // Without data and configuration.
  TrainRun run(const std::string& label) const;
};
// All but the model, and what every command has. seeded: what --seed is of.
void add_learning_options(CLI::App& command, LearningOptions& options, const std::string& seeded);
// Throws Error if the run was interrupted.
void require_finished(const TrainResult& result, const std::filesystem::path& directory);

// Throws UsageError for anything that is not a positive time.
double parse_seconds(const std::string& text, std::string_view option);

// --set KEY=VALUE of training settings, as one JSON object. Throws UsageError.
nlohmann::json parse_settings(const std::vector<std::string>& settings);

}  // namespace pronghorn::app
