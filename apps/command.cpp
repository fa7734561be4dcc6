#include "command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cctype>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/terminal.h"
#include "base/threads.h"

namespace pronghorn::app {

void add_common_options(CLI::App& command, Common& common) {
  command.add_flag("--json", common.json, "print one JSON document on stdout");
  command
      .add_option_function<int>(
          "--threads", [](const int& threads) { set_thread_count(threads); },
          "threads to use (default: all processors)")
      ->check(CLI::Range(1, 1024));
  command.add_flag_callback(
      "-q,--quiet", [] { show_messages(false); },
      "no progress bars, only warnings and errors on stderr");
}

void print_json(const nlohmann::json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

void print_table(const lab::Table& table) {
  fmt::print("{}", table.text(terminal_shows_styles(STDOUT_FILENO), 120));
  if (table.has_best()) fmt::print("* best of its column\n");
}

namespace {

// Writes the digits of the count in place of what was given.
CLI::Validator whole_number(int64_t minimum, std::string name) {
  return {[minimum, name](std::string& text) -> std::string {
            const std::optional<int64_t> value = parse_count(text);
            if (!value || *value < minimum) {
              return fmt::format("'{}' is not a {} (such as 500, 2k, 20M, 1.5G)", text, name);
            }
            text = std::to_string(*value);
            return {};
          },
          ""};
}

}  // namespace

std::optional<int64_t> parse_count(std::string_view text) {
  constexpr std::string_view kUnits = "kMGT";
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (text.empty() || !is_digit(text.front())) return {};
  size_t places = 0;  // by which the unit moves the point
  for (size_t i = 0; i < kUnits.size(); ++i) {
    // An unit of small letters, too: nobody counts thousandths of a token.
    if (std::tolower(static_cast<unsigned char>(text.back())) != std::tolower(kUnits[i])) continue;
    places = 3 * (i + 1);
    text.remove_suffix(1);
    break;
  }
  const size_t point = text.find('.');
  std::string digits(text.substr(0, point));
  if (point != text.npos) {
    const std::string_view decimals = text.substr(point + 1);
    if (decimals.empty() || decimals.size() > places) return {};
    digits += decimals;
    places -= decimals.size();
  }
  digits.append(places, '0');
  int64_t value = 0;
  const char* const last = digits.data() + digits.size();
  const auto [end, code] = std::from_chars(digits.data(), last, value);
  if (code != std::errc() || end != last) return {};
  return value;
}

std::string kept_text(std::span<const double> shares) {
  if (shares.empty()) return {};
  std::string text;
  for (const double share : shares) {
    text += fmt::format("{}{:.1f}%", text.empty() ? "kept " : ", ", 100 * share);
  }
  return text + " of the tokens";
}

void add_speculation_options(CLI::App& command, SpeculationOptions& options) {
  command
      .add_option("--draft-tokens", options.control.draft_tokens,
                  "guess that many tokens a step (default: as many as pay)")
      ->check(CLI::Range(int64_t{0}, kMaxDraft));
  command
      .add_option("--draft-tree", options.control.branches,
                  "guess up to that many tokens for one place (default 1: a chain)")
      ->check(CLI::Range(int64_t{1}, static_cast<int64_t>(Acceptance::kRanks)));
  command.add_flag("--draft-block", options.block,
                   "judge sampled guesses by block verification: accepts more, but the text for a "
                   "seed depends on the drafter");
}

CLI::Validator number_in_range(double least, double most) {
  return {[least, most](std::string& text) -> std::string {
            double value = 0;
            const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
            const bool whole = code == std::errc() && end == text.data() + text.size();
            if (whole && value >= least && value <= most) return {};
            return fmt::format("'{}' is not a number from {} to {}", text, least, most);
          },
          ""};
}

CLI::Validator seed_number() {
  return {[](std::string& text) -> std::string {
            uint64_t value = 0;
            const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (code == std::errc() && end == text.data() + text.size()) return {};
            return fmt::format("'{}' is not a whole number from 0 to {}", text, UINT64_MAX);
          },
          ""};
}

CLI::Validator not_empty() {
  return {[](std::string& text) { return std::string(text.empty() ? "is empty" : ""); }, ""};
}

CLI::Validator positive_integer() { return whole_number(1, "whole number above 0"); }

CLI::Validator natural_number() { return whole_number(0, "whole number of 0 or more"); }

void add_task_options(CLI::App& command, SyntheticTask& task) {
  command.add_option(
      "--task", task.name,
      "a synthetic task (see pronghorn list), or images: what is on them, captions of them, or "
      "sound: what is said");
  command.add_option("--task-length", task.length, "tokens of a task's sequence")
      ->transform(positive_integer());
  command.add_option("--task-vocab", task.vocab_size, "vocabulary of the task")
      ->transform(natural_number());
  command.add_option("--task-items", task.items, "things to remember in the task")
      ->transform(natural_number());
  command
      .add_option("--task-questions", task.questions, "times at most that a needle is asked for")
      ->transform(positive_integer());
  command
      .add_option("--task-haystacks", task.haystacks,
                  "haystacks at most in a sequence, each with a needle")
      ->transform(positive_integer());
  command
      .add_option("--task-curriculum", task.curriculum, "tokens over which both come down to one")
      ->transform(natural_number());
}

void add_sequence_parallel_option(CLI::App& command, std::string& kind) {
  command
      .add_option(
          "--sequence-parallel", kind,
          "under mpirun, all processes share each sequence: heads across them (ulysses), or "
          "pieces, with keys that go around and states that are handed on (ring)")
      ->check(CLI::IsMember({"ulysses", "ring"}))
      ->option_text("ulysses|ring");
}

void add_adapter_option(CLI::App& command, std::filesystem::path& adapter) {
  command.add_option("--adapter", adapter, "directory of a LoRA adapter for the model")
      ->check(not_empty());
}

namespace {

constexpr const char* kStoredDefault =
    "; default: bf16 for a model stored in bf16 or less, else f32";

// Names: the type that f32 and bf16 are of. defaults: what is said of the default; empty: nothing.
template <typename Names, typename Target>
void add_precision(CLI::App& command, Target& precision, const std::string& defaults) {
  command
      .add_option_function<std::string>(
          "--precision",
          [&precision](const std::string& name) {
            precision = name == "bf16" ? Names::bf16 : Names::f32;
          },
          "operands of matrix products: bf16 (faster; with quantised weights 8-bit integers, or "
          "bf16 for prompts where AMX is) or f32 (exact)" +
              defaults)
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->option_text("f32|bf16");
}

}  // namespace

void add_precision_option(CLI::App& command, Precision& precision) {
  add_precision<Precision>(command, precision, "");
}

void add_precision_option(CLI::App& command, std::optional<Precision>& precision) {
  add_precision<Precision>(command, precision, kStoredDefault);
}

void add_precision_option(CLI::App& command, Rounding& rounding) {
  add_precision<Rounding>(command, rounding, kStoredDefault);
}

void add_context_option(CLI::App& command, ContextLimit& limit) {
  command.add_flag_callback(
      "--strict-context", [&limit] { limit = ContextLimit::error; },
      "a text beyond the context that the model was trained for is an error, not a warning");
}

const char* end_name(Generated::End end) {
  switch (end) {
    case Generated::End::stop_string:
      return "stop_string";
    case Generated::End::end_token:
      return "end_token";
    case Generated::End::interrupted:
      return "interrupted";
    case Generated::End::length:
      break;
  }
  return "length";
}

void add_stop_option(CLI::App& command, std::vector<std::string>& stop) {
  command.add_option("--stop", stop, "end before this text or special token (may be repeated)")
      ->allow_extra_args(false);
}

void add_sampling_options(CLI::App& command, SamplingOptions& sampling) {
  command.add_option("--temperature", sampling.temperature, "0 (default): the likeliest token")
      ->check(number_in_range(0, 1e6));
  command.add_option("--top-k", sampling.top_k, "only the K likeliest tokens (0: all)")
      ->transform(natural_number());
  command.add_option("--top-p", sampling.top_p, "only the likeliest that together reach P")
      ->check(number_in_range(1e-9, 1));
  command.add_option("--min-p", sampling.min_p, "only those at least P as likely as the likeliest")
      ->check(number_in_range(0, 1));
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "above 1: against repeating recent tokens")
      ->check(number_in_range(1e-6, 1e6));
  command.add_option("--seed", sampling.seed, "of the noise; same seed, same text")
      ->check(seed_number());
}

namespace {

// An option that takes one of some names.
template <typename Value>
void add_named_option(CLI::App& command, const std::string& option, Value& value,
                      const std::vector<std::pair<std::string, Value>>& names,
                      const std::string& meaning) {
  std::vector<std::string> known;
  for (const auto& [name, unused] : names) known.push_back(name);
  command
      .add_option_function<std::string>(
          option,
          [&value, names](const std::string& given) {
            for (const auto& [name, named] : names) {
              if (name == given) value = named;
            }
          },
          meaning)
      ->check(CLI::IsMember(known))
      ->option_text(fmt::format("{}", fmt::join(known, "|")));
}

}  // namespace

void add_diffusion_options(CLI::App& command, DiffusionOptions& options) {
  command
      .add_option("--steps", options.steps,
                  "diffusion models: steps for each part of the text (default: one per token)")
      ->transform(natural_number());
  command
      .add_option("--block", options.part,
                  "diffusion models: tokens of a part, which is filled in before what follows it "
                  "(default: the model's blocks, or 32)")
      ->transform(natural_number());
  command
      .add_option("--threshold", options.threshold,
                  "diffusion models: a step takes all tokens that are at least so probable")
      ->check(number_in_range(0, 1));
  add_named_option<UnmaskOrder>(command, "--remask", options.order,
                                {{"confidence", UnmaskOrder::confidence},
                                 {"entropy", UnmaskOrder::entropy},
                                 {"margin", UnmaskOrder::margin},
                                 {"random", UnmaskOrder::random}},
                                "diffusion models: what decides which tokens stay masked");
  add_named_option<CanvasCache>(
      command, "--canvas-cache", options.cache,
      {{"none", CanvasCache::none}, {"prefix", CanvasCache::prefix}, {"dual", CanvasCache::dual}},
      "diffusion models that see texts whole: reuse keys and values of what is before a part, or "
      "around it, while it is filled in (sooner, and approximate)");
}

void add_writing_options(CLI::App& command, WritingOptions& options) {
  command.add_option("model", options.model, "checkpoint directory or .gguf file")->required();
  add_adapter_option(command, options.adapter);
  add_sampling_options(command, options.generate.sampling);
  add_stop_option(command, options.generate.stop);
  command.add_option("--draft", options.draft,
                     "guess ahead and check several tokens a step, for the same text sooner: a "
                     "smaller MODEL with the same tokenizer, ngram, suffix, early-exit:E, mtp, or "
                     "several with commas between");
  add_speculation_options(command, options.speculation);
  add_diffusion_options(command, options.generate.diffusion);
  add_precision_option(command, options.precision);
  add_cache_options(command, options.cache);
  add_context_option(command, options.generate.context);
  add_common_options(command, options);
}

void add_cache_options(CLI::App& command, CacheOptions& cache) {
  command
      .add_option_function<std::string>(
          "--cache-type",
          [&cache](const std::string& name) {
            for (const DType type : kRowTypes) {
              if (name == dtype_name(type)) cache.type = type;
            }
          },
          "how attention keeps keys and values: f32 (default), bf16 or f16 in half the memory, "
          "q8_0 in a quarter, q4_0 in an eighth")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8_0", "q4_0"}))
      ->option_text("f32|bf16|f16|q8_0|q4_0");
  CLI::Option* window =
      command
          .add_option("--attention-window", cache.window,
                      "attention keeps the last N tokens and those of --attention-sinks alone: "
                      "texts without end in constant memory (StreamingLLM)")
          ->transform(positive_integer())
          ->option_text("N");
  command
      .add_option("--attention-sinks", cache.sinks,
                  "first tokens of a text that --attention-window keeps in sight (default 4)")
      ->transform(natural_number())
      ->needs(window)
      ->option_text("N");
  CLI::Option* pages =
      command
          .add_option("--quest-pages", cache.quest_pages,
                      "in decoding, heads look at N pages of 16 tokens, those that may matter most")
          ->transform(positive_integer())
          ->excludes(window)
          ->option_text("N");
  CLI::Option* snapkv =
      command
          .add_option("--snapkv", cache.snapkv,
                      "every 256 tokens attention keeps the N that the last 32 look at most, those "
                      "of the last 64 besides, and drops the others (SnapKV)")
          ->transform(positive_integer())
          ->option_text("N");
  CLI::Option* h2o =
      command
          .add_option("--h2o", cache.h2o,
                      "every 64 tokens attention keeps the N that have been looked at most and "
                      "the last N, and drops the others (heavy hitters, H2O)")
          ->transform(positive_integer())
          ->option_text("N");
  // Guesses are taken back, and rows that were dropped do not come back.
  CLI::Option* draft = command.get_option_no_throw("--draft");
  for (CLI::Option* way : {snapkv, h2o}) {
    way->excludes(window)->excludes(pages);
    if (draft != nullptr) way->excludes(draft);
  }
  snapkv->excludes(h2o);
}

ContextLimit limit_of(ContextLimit given, const CacheOptions& cache, const Model& model) {
  const int64_t held = cache.window + cache.sinks;
  const bool stays = cache.window > 0 && held <= trained_context(model.config()).tokens;
  return stays ? ContextLimit::ignore : given;
}

std::string_view name_of(Precision precision) {
  return precision == Precision::bf16 ? "bf16" : "f32";
}

std::string weights_text(std::span<const WeightBytes> parts) {
  std::vector<std::string> texts;
  for (const WeightBytes& part : parts) {
    texts.push_back(fmt::format("{} {}{}", format_bytes(static_cast<double>(part.bytes)), part.what,
                                part.mapped ? " (mapped)" : ""));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

nlohmann::json weights_json(std::span<const WeightBytes> parts) {
  nlohmann::json list = nlohmann::json::array();
  for (const WeightBytes& part : parts) {
    list.push_back({{"what", part.what}, {"bytes", part.bytes}, {"mapped", part.mapped}});
  }
  return list;
}

TrainBudget BudgetOptions::budget() const {
  const int given = (steps > 0) + (tokens > 0) + !time.empty();
  if (given != 1) {
    throw UsageError("budget", given == 0 ? "none given" : "more than one given",
                     "give one of --time 60s, --tokens N, --steps N");
  }
  TrainBudget budget;
  if (steps > 0) budget.steps = steps;
  if (tokens > 0) budget.tokens = tokens;
  if (!time.empty()) budget.seconds = parse_seconds(time, "--time");
  return budget;
}

void add_budget_options(CLI::App& command, BudgetOptions& options, bool steps) {
  command.add_option("--time", options.time, "train for so long: 60s, 5m, 1.5h");
  command.add_option("--tokens", options.tokens, "train on that many tokens: 500000, 20M")
      ->transform(positive_integer());
  if (steps) {
    command.add_option("--steps", options.steps, "train that many steps")
        ->transform(positive_integer());
  }
}

TrainRun LearningOptions::run(const std::string& label) const {
  TrainRun run;
  run.budget = budget.budget();
  run.seed = seed;
  run.directory = directory;
  run.label = label;
  return run;
}

void add_learning_options(CLI::App& command, LearningOptions& options, const std::string& seeded) {
  command.add_option("--data", options.data, "text files or folders (.txt, .jsonl, .gz)")
      ->required();
  command.add_option("-o,--out", options.directory, "directory for the model and its state")
      ->required();
  add_budget_options(command, options.budget, true);
  command.add_option("--held-out", options.held_out, "share of the text held out")
      ->check(CLI::Range(0.0, 0.5));
  command.add_option("--seed", options.seed, "of " + seeded + " and of the order of the data")
      ->transform(natural_number());
  command
      .add_option("--set", options.settings,
                  "a training setting, KEY=VALUE (window, batch_tokens, learning_rate, ...)")
      ->allow_extra_args(false);
  add_common_options(command, options);
}

void require_finished(const TrainResult& result, const std::filesystem::path& directory) {
  if (!result.interrupted) return;
  throw Error(directory.string(), fmt::format("interrupted at step {}", result.steps),
              "its model is saved; go on with pronghorn train");
}

double parse_seconds(const std::string& text, std::string_view option) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  if (unit == "m" || unit == "min") value *= 60;
  if (unit == "h") value *= 3600;
  const bool known = unit.empty() || unit == "s" || unit == "m" || unit == "min" || unit == "h";
  if (used == 0 || !known || !(value > 0) || !std::isfinite(value)) {
    throw UsageError(option, fmt::format("'{}' is not a time", text), "for example 60s, 5m, 1.5h");
  }
  return value;
}

nlohmann::json parse_settings(const std::vector<std::string>& settings) {
  nlohmann::json json = nlohmann::json::object();
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw UsageError("--set", fmt::format("'{}' is not KEY=VALUE", setting),
                       "for example --set learning_rate=1e-3");
    }
    const std::string value = setting.substr(equals + 1);
    nlohmann::json parsed = nlohmann::json::parse(value, nullptr, false);
    if (parsed.is_discarded()) {
      const std::optional<int64_t> count = parse_count(value);
      parsed = count ? nlohmann::json(*count) : nlohmann::json(value);
    }
    json[setting.substr(0, equals)] = std::move(parsed);
  }
  return json;
}

}  // namespace pronghorn::app
