// pronghorn bench: prompt and decode speed of a model; the ceilings of the machine.
#include <memory>
#include <optional>

#include "backend/backend.h"
#include "backend/machine.h"
#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "bench_profile.h"
#include "command.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "lab/measure.h"
#include "lab/profile.h"
#include "model/text_cost.h"
#include "model/weight_bytes.h"
#include "tensor/block_layouts.h"
#include "tensor/storage.h"
#include "train/text_source.h"
#include "train/train_config.h"

namespace pronghorn::app {
namespace {

struct BenchCommand : Common {
  std::filesystem::path model;
  bool machine = false, profile = false, train = false;
  std::vector<std::string> settings;  // of training
  lab::BenchOptions bench;
  std::optional<Precision> precision;
  std::vector<std::string> drafts;
  std::vector<std::filesystem::path> text, prompt_files;
  int64_t draft_prompts = 8;
  lab::DraftBenchOptions draft;
};

nlohmann::json to_json(const lab::Spread& spread) {
  return {{"median", spread.median}, {"min", spread.min}, {"max", spread.max}};
}

nlohmann::json to_json(const MachineCeilings& machine) {
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"threads", machine.threads},
          {"instruction_set", machine.instruction_set},
          {"f32_gflops", machine.f32_gflops},
          {"bf16_gflops", machine.bf16_gflops},
          {"int8_gops", machine.int8_gops},
          {"read_gigabytes_per_second", machine.read_gigabytes_per_second},
          {"fork_nanoseconds", machine.fork_nanoseconds},
          {"join_nanoseconds", machine.join_nanoseconds}};
}

void print_machine(const MachineCeilings& machine) {
  fmt::print(
      "{}, {} cores, {} threads, {}\nmatrix peak     {:.0f} GFLOP/s f32, {:.0f} GFLOP/s bf16, "
      "{:.0f} GOP/s int8\nread bandwidth  {:.1f} GB/s\nthreads         {}\n",
      machine.cpu, machine.cores, machine.threads, machine.instruction_set, machine.f32_gflops,
      machine.bf16_gflops, machine.int8_gops, machine.read_gigabytes_per_second,
      machine.threads == 1 ? "one"
      : machine.fork_nanoseconds == 0
          ? "too busy with other programs to be measured"
          : fmt::format("{:.0f} ns to fork, {:.0f} ns to join", machine.fork_nanoseconds,
                        machine.join_nanoseconds));
}

bool is_checkpoint_path(const std::filesystem::path& path) {
  return find_gguf(path) || is_torch_model(path) || std::filesystem::is_directory(path);
}

// With random weights.
std::unique_ptr<Model> new_model(const std::filesystem::path& path) {
  ModelConfig config = load_config(path);
  require_reads_texts(config, path.string());
  constexpr int64_t kVocabulary = 4096;  // what training would have chosen
  if (config.vocab_size == 0) set_vocabulary(config, kVocabulary);
  return std::make_unique<Model>(std::move(config), 0);
}

std::unique_ptr<Model> load_checkpoint(const std::filesystem::path& path, Purpose purpose) {
  std::unique_ptr<Model> model = Model::load(path, purpose);
  require_reads_texts(model->config(), path.string());
  return model;
}

void require_next_tokens(const Model& model, const std::filesystem::path& path) {
  if (!model.config().diffusion) return;
  throw Error(path.string(), "is a diffusion model: it has no scores of a next token to time",
              "bench --train measures its training, bench/parallel_decoding.py how it writes");
}

std::unique_ptr<Model> load_or_make(const std::filesystem::path& path) {
  const bool trained = is_checkpoint_path(path);
  auto model = trained ? load_checkpoint(path, Purpose::inference) : new_model(path);
  require_next_tokens(*model, path);
  if (!trained) model->freeze();
  return model;
}

// To be trained, and how.
std::pair<std::unique_ptr<Model>, TrainConfig> load_to_train(const BenchCommand& options) {
  std::unique_ptr<Model> model = is_checkpoint_path(options.model)
                                     ? load_checkpoint(options.model, Purpose::training)
                                     : new_model(options.model);
  nlohmann::json settings =
      model->config().train.is_null() ? nlohmann::json::object() : model->config().train;
  settings.update(parse_settings(options.settings));
  return {std::move(model), read_train_config({settings, options.model.string() + ": train"})};
}

// Whether most products are of whole numbers of 8 bits.
bool mostly_blocks(const Model& model) {
  int64_t blocks = 0, all = 0;
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.matrix.defined()) continue;
    all += parameter.size();
    if (layout_of(parameter.matrix.encoding()) != nullptr) blocks += parameter.size();
  }
  return 2 * blocks > all;
}

// `count` pieces of `length` tokens, cut from the texts at even distances.
std::vector<std::vector<int32_t>> cut_texts(const BenchCommand& options, const Tokenizer& tokenizer,
                                            int64_t count, int64_t length) {
  const std::vector<int32_t> tokens = tokenizer.encode(
      read_text(options.text, 16 << 20), {.add_special = false, .parse_special = false});
  const auto all = static_cast<int64_t>(tokens.size());
  require(all >= length, "--text", "{} tokens are too few for pieces of {}", all, length);
  std::vector<std::vector<int32_t>> pieces;
  for (int64_t i = 0; i < count; ++i) {
    const auto first = tokens.begin() + (all - length) * (2 * i + 1) / (2 * count);
    pieces.emplace_back(first, first + length);
  }
  return pieces;
}

std::vector<std::vector<int32_t>> draft_prompts(const BenchCommand& options,
                                                const Tokenizer& tokenizer) {
  if (options.prompt_files.empty()) {
    return cut_texts(options, tokenizer, options.draft_prompts, options.bench.prompt);
  }
  std::vector<std::vector<int32_t>> prompts;
  for (const std::filesystem::path& path : options.prompt_files) {
    prompts.push_back(tokenizer.encode(read_file(path)));
    require(!prompts.back().empty(), path.string(), "has no text for a prompt");
  }
  return prompts;
}

void bench_drafts(const BenchCommand& options) {
  if (options.text.empty() == options.prompt_files.empty()) {
    throw UsageError("--draft", "needs either --text or --prompt-file",
                     "drafters are compared on a text of the model's kind");
  }
  const std::unique_ptr<Model> model = load_checkpoint(options.model, Purpose::inference);
  require_next_tokens(*model, options.model);
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  lab::DraftBenchOptions bench = options.draft;
  bench.generate = options.bench.generate;
  bench.batch = options.bench.batch;
  bench.repeat = options.bench.repeat;
  bench.precision = options.precision.value_or(stored_precision(*model));
  bench.cache = options.bench.cache;
  const std::vector<std::vector<int32_t>> prompts = draft_prompts(options, *tokenizer);
  const auto rows = lab::bench_drafters(*model, *tokenizer, prompts, options.drafts, bench);
  if (options.json) {
    nlohmann::json json = {{"prompts", prompts.size()},
                           {"tokens", options.bench.generate},
                           {"batch", options.bench.batch},
                           {"threads", thread_count()},
                           {"precision", name_of(bench.precision)},
                           {"backend", backend().description()}};
    if (options.prompt_files.empty()) json["prompt_tokens"] = options.bench.prompt;
    for (const lab::DraftBenchRow& row : rows) {
      json["drafters"].push_back({{"drafter", row.drafter.empty() ? "plain" : row.drafter},
                                  {"tokens_per_second", to_json(row.tokens_per_second)},
                                  {"speed_up", row.speed_up},
                                  {"same_text_as_plain", row.same_text},
                                  {"drafted", row.stats.drafted},
                                  {"acceptance", row.stats.acceptance()},
                                  {"tokens_per_step", row.stats.tokens_per_round()},
                                  {"draft_seconds", row.stats.draft_seconds},
                                  {"verify_seconds", row.stats.step_seconds}});
    }
    return print_json(json);
  }
  lab::Table table({{"drafter", lab::Align::kLeft},
                    {"tokens/s"},
                    {"speed-up"},
                    {"guesses"},
                    {"came true"},
                    {"tokens a step"},
                    {"time drafting"},
                    {"text", lab::Align::kLeft}});
  for (const lab::DraftBenchRow& row : rows) {
    const bool plain = row.drafter.empty();
    const double seconds = row.stats.draft_seconds + row.stats.step_seconds;
    table.add_row(
        {plain ? "plain" : row.drafter, format_count(row.tokens_per_second.median),
         fmt::format("{:.2f}", row.speed_up), plain ? "" : std::to_string(row.stats.drafted),
         plain ? "" : fmt::format("{:.0f}%", 100 * row.stats.acceptance()),
         plain ? "1.00" : fmt::format("{:.2f}", row.stats.tokens_per_round()),
         plain ? ""
               : fmt::format("{:.0f}%", 100 * row.stats.draft_seconds / std::max(1e-9, seconds)),
         plain           ? ""
         : row.same_text ? "the same"
                         : "another"});
  }
  print_table(table);
  fmt::print("precision {}\n", name_of(bench.precision));
}

// What run() does with --profile, in place of its measurements.
void profile(const BenchCommand& options) {
  std::vector<lab::Profile> profiles;
  Precision precision;
  {
    const std::unique_ptr<Model> model = load_or_make(options.model);
    lab::BenchOptions bench = options.bench;
    precision = bench.precision = options.precision.value_or(stored_precision(*model));
    if (!options.text.empty()) {
      bench.texts = cut_texts(options, *load_tokenizer(options.model), bench.batch,
                              bench.prompt + bench.generate);
    }
    profiles = lab::profile_inference(*model, bench);
  }
  if (options.train || !is_checkpoint_path(options.model)) {
    const auto [model, config] = load_to_train(options);
    profiles.push_back(lab::profile_training(*model, config, options.bench.repeat));
  }
  const MachineCeilings machine = measure_machine(1.0);
  if (options.json) {
    return print_json({{"profiles", profiles_json(profiles, machine)},
                       {"batch", options.bench.batch},
                       {"precision", name_of(precision)},
                       {"threads", thread_count()},
                       {"backend", backend().description()},
                       {"machine", to_json(machine)}});
  }
  print_machine(machine);
  print_profiles(profiles, machine);
}

// What run() does with --train: optimiser steps alone.
void bench_training(const BenchCommand& options) {
  const auto [model, config] = load_to_train(options);
  const lab::Spread rate = lab::bench_training(*model, config, options.bench.repeat);
  const int64_t peak_bytes = peak_resident_bytes();
  const MachineCeilings machine = measure_machine(1.0);
  // Forward, and twice that backward.
  const TokenCost cost = model->cost(static_cast<double>(config.window) / 2);
  const bool bf16 = config.precision == Precision::bf16;
  const double fraction = 3e-9 * rate.median * (cost.matmul + cost.sequence) /
                          (bf16 ? machine.bf16_gflops : machine.f32_gflops);
  if (options.json) {
    return print_json({{"training",
                        {{"tokens", config.batch_tokens},
                         {"window", config.window},
                         {"tokens_per_second", to_json(rate)},
                         {"fraction_of_matrix_peak", fraction}}},
                       {"parameters", model->parameter_count()},
                       {"peak_rss_bytes", peak_bytes},
                       {"threads", thread_count()},
                       {"precision", name_of(config.precision)},
                       {"backend", backend().description()},
                       {"machine", to_json(machine)}});
  }
  print_machine(machine);
  fmt::print("\ntraining        {} tokens/s ({} to {}), {:.1f}% of matrix peak\n",
             format_count(rate.median), format_count(rate.min), format_count(rate.max),
             100 * fraction);
}

void run(const BenchCommand& options) {
  if (options.machine) {
    const MachineCeilings machine = measure_machine(1.0);
    if (options.json) return print_json(to_json(machine));
    return print_machine(machine);
  }
  if (options.model.empty()) throw UsageError("bench", "needs a model, or --machine");
  if (!options.drafts.empty()) return bench_drafts(options);
  if (options.profile) return profile(options);
  if (options.train) return bench_training(options);
  const double start = now_seconds();
  const std::unique_ptr<Model> model = load_or_make(options.model);
  const double load_seconds = now_seconds() - start;
  lab::BenchOptions bench = options.bench;
  bench.precision = options.precision.value_or(stored_precision(*model));
  if (!options.text.empty()) {
    bench.texts = cut_texts(options, *load_tokenizer(options.model), bench.batch,
                            bench.prompt + bench.generate);
  }
  const lab::BenchResult result = lab::bench_model(*model, bench);
  // Before the ceilings are measured, which takes memory of its own.
  const int64_t peak_bytes = peak_resident_bytes();
  const MachineCeilings machine = measure_machine(1.0);

  const bool bf16 = bench.precision == Precision::bf16;
  const TokenCost cost = text_cost(*model, static_cast<double>(options.bench.prompt));
  const bool int8 = bf16 && mostly_blocks(*model);
  const double peak = 1e9 * (int8   ? machine.int8_gops
                             : bf16 ? machine.bf16_gflops
                                    : machine.f32_gflops);
  // The head works on one token of a prompt only.
  const double head = 2.0 * static_cast<double>(model->head().size());
  const double prompt_flops = cost.matmul + cost.sequence - head;
  const double step_bytes = static_cast<double>(weight_bytes_per_token(*model, bench.precision) +
                                                options.bench.batch * result.state_bytes);
  const double steps = result.decode.median / static_cast<double>(options.bench.batch);
  const double matrix_fraction = result.prefill.median * prompt_flops / peak;
  const double bandwidth_fraction = steps * step_bytes / (1e9 * machine.read_gigabytes_per_second);
  if (options.json) {
    return print_json({{"prefill",
                        {{"tokens", options.bench.prompt},
                         {"tokens_per_second", to_json(result.prefill)},
                         {"fraction_of_matrix_peak", matrix_fraction},
                         {"matrix_peak", int8 ? "int8" : name_of(bench.precision)}}},
                       {"decode",
                        {{"tokens", options.bench.generate},
                         {"tokens_per_second", to_json(result.decode)},
                         {"fraction_of_read_bandwidth", bandwidth_fraction}}},
                       {"batch", options.bench.batch},
                       {"state_bytes", result.state_bytes},
                       {"kept_shares", result.kept_shares},
                       {"load_seconds", load_seconds},
                       {"peak_rss_bytes", peak_bytes},
                       {"weights", weights_json(weight_bytes(*model))},
                       {"threads", thread_count()},
                       {"precision", name_of(bench.precision)},
                       {"cache_type", std::string(dtype_name(options.bench.cache.type))},
                       {"backend", backend().description()},
                       {"machine", to_json(machine)}});
  }
  print_machine(machine);
  fmt::print("\n");
  lab::Table table(
      {{"", lab::Align::kLeft}, {"tokens"}, {"tokens/s"}, {"min"}, {"max"}, {"of the ceiling"}});
  const auto row = [&](const char* name, int64_t tokens, const lab::Spread& spread, double fraction,
                       const char* of) {
    table.add_row({name, fmt::format("{} x {}", options.bench.batch, tokens),
                   format_count(spread.median), format_count(spread.min), format_count(spread.max),
                   fmt::format("{:.1f}% of {}", 100 * fraction, of)});
  };
  row("prompt", options.bench.prompt, result.prefill, matrix_fraction,
      int8 ? "int8 matrix peak" : "matrix peak");
  row("decode", options.bench.generate, result.decode, bandwidth_fraction, "read bandwidth");
  print_table(table);
  fmt::print("\nstate {} a sequence, loaded in {}, {} of memory at most\n",
             format_bytes(static_cast<double>(result.state_bytes)), format_duration(load_seconds),
             format_bytes(static_cast<double>(peak_bytes)));
  fmt::print("weights {}; precision {}\n", weights_text(weight_bytes(*model)),
             name_of(bench.precision));
  if (!result.kept_shares.empty()) fmt::print("{}\n", kept_text(result.kept_shares));
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "Prompt and decode speed of a model");
  auto options = std::make_shared<BenchCommand>();
  command->add_option("model", options->model,
                      "checkpoint directory, or a configuration (random weights)");
  command->add_flag("--machine", options->machine, "only measure the machine's ceilings");
  command->add_flag("--profile", options->profile,
                    "where a prompt, a decoding step and, of a configuration or with --train, a "
                    "training step go, by kernel");
  command->add_flag("--train", options->train, "optimiser steps on random tokens");
  command
      ->add_option("--set", options->settings,
                   "a training setting, KEY=VALUE (batch_tokens, window, precision, ...)")
      ->allow_extra_args(false);
  command->add_option("--prompt", options->bench.prompt, "tokens of the prompt")
      ->transform(positive_integer());
  command->add_option("--generate", options->bench.generate, "tokens to generate")
      ->transform(positive_integer());
  command->add_option("--batch", options->bench.batch, "sequences together")
      ->check(CLI::Range(1, 4096));
  command->add_option("--repeat", options->bench.repeat, "measured runs")
      ->check(CLI::Range(0, 1000));
  command
      ->add_option("--draft", options->drafts,
                   "compare decoding with this drafter (as in generate; may be repeated) with "
                   "plain decoding, on prompts from --text or --prompt-file")
      ->allow_extra_args(false);
  command->add_option("--text", options->text,
                      "text files that prompts, and what is decoded behind them, are cut from "
                      "(default: random tokens, and the likeliest ones)");
  command->add_option("--prompt-file", options->prompt_files,
                      "prompts for --draft, each file one, in place of pieces of --text");
  command
      ->add_option("--stop", options->draft.stop,
                   "end each text of --draft before this (may be repeated)")
      ->allow_extra_args(false);
  command->add_option("--draft-prompts", options->draft_prompts, "number of prompts for --draft")
      ->check(CLI::Range(1, 10000));
  add_speculation_options(*command, options->draft.speculation);
  command->add_option("--temperature", options->draft.temperature, "of the texts of --draft");
  add_precision_option(*command, options->precision);
  add_cache_options(*command, options->bench.cache);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
