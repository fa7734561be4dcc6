// pronghorn generate: continue a text.
#include <cstdio>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "command.h"
#include "decode/generator.h"

namespace pronghorn::app {
namespace {

struct GenerateCommand : Common {
  std::filesystem::path model, adapter, prompt_file, session;
  std::string prompt, draft;
  SpeculationOptions speculation;
  bool stats = false;
  DType cache_type = DType::f32;
  GenerateOptions generate;
};

const char* end_name(Generated::End end) {
  switch (end) {
    case Generated::End::stop_string:
      return "stop_string";
    case Generated::End::end_token:
      return "end_token";
    case Generated::End::length:
      break;
  }
  return "length";
}

// What speculation did, and how fast plain decoding of the same session is.
struct SpeculationReport {
  SpeculationStats stats;
  std::string drafter;
  double plain_seconds = 0;  // 0: not measured
  double seconds = 0;        // with speculation
  bool same_text = true;

  double speed_up() const { return plain_seconds / std::max(1e-9, seconds); }
};

nlohmann::json to_json(const SpeculationReport& report) {
  nlohmann::json positions = nlohmann::json::array();
  for (size_t i = 0; i < report.stats.drafted_at.size(); ++i) {
    if (report.stats.drafted_at[i] == 0) break;
    positions.push_back(
        {{"drafted", report.stats.drafted_at[i]}, {"accepted", report.stats.accepted_at[i]}});
  }
  nlohmann::json json = {{"drafter", report.drafter},
                         {"drafted", report.stats.drafted},
                         {"accepted", report.stats.accepted},
                         {"acceptance", report.stats.acceptance()},
                         {"steps", report.stats.rounds},
                         {"speculative_steps", report.stats.speculated},
                         {"tokens_per_step", report.stats.tokens_per_round()},
                         {"draft_seconds", report.stats.draft_seconds},
                         {"verify_seconds", report.stats.step_seconds},
                         {"positions", positions}};
  if (report.plain_seconds > 0) {
    json["speed_up"] = report.speed_up();
    json["same_text_as_plain"] = report.same_text;
  }
  return json;
}

void print(const SpeculationReport& report) {
  const SpeculationStats& stats = report.stats;
  fmt::print(stderr, "draft {}: {} of {} guesses came true ({:.0f}%), {:.2f} tokens a step",
             report.drafter, stats.accepted, stats.drafted, 100 * stats.acceptance(),
             stats.tokens_per_round());
  if (report.plain_seconds > 0) {
    fmt::print(stderr, ", {:.2f} times as fast as plain decoding ({} text)", report.speed_up(),
               report.same_text ? "the same" : "another");
  }
  fmt::print(stderr, "\n");
}

void run(const GenerateCommand& options) {
  check(options.generate.sampling);
  const std::unique_ptr<Model> model = load_model(options.model, options.adapter);
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  require(tokenizer->vocab_size() <= model->config().vocab_size, options.model.string(),
          "its tokenizer has {} tokens and its model {}", tokenizer->vocab_size(),
          model->config().vocab_size);
  const bool resumes = !options.session.empty() && std::filesystem::exists(options.session);
  Session session = resumes ? Session::load(options.session, *model, options.cache_type)
                            : Session(*model, options.cache_type);
  std::string prompt = options.prompt;
  if (!options.prompt_file.empty()) prompt = read_file(options.prompt_file);
  const std::vector<int32_t> tokens =
      tokenizer->encode(prompt, {.add_special = !resumes,
                                 .parse_special = true,
                                 .after = tokenizer->after(session.recent())});

  std::unique_ptr<Speculation> speculation;
  if (!options.draft.empty()) {
    speculation = std::make_unique<Speculation>(make_drafter(options.draft, *model, *tokenizer),
                                                options.speculation);
  }
  // Only then: what a copy shares must be copied again when it is written.
  std::optional<Session> before;
  if (speculation != nullptr && options.stats) before = session;

  if (!options.json && !resumes) fmt::print("{}", prompt);
  const auto show = [&](std::string_view text) {
    if (options.json) return;
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  const Generated result = pronghorn::generate(*model, *tokenizer, session, tokens,
                                               options.generate, show, speculation.get());
  std::optional<SpeculationReport> report;
  if (speculation != nullptr) {
    report = {speculation->stats(), speculation->drafter().name(), 0, result.decode_seconds, true};
    if (before) {
      Session again = *before;
      const Generated plain =
          pronghorn::generate(*model, *tokenizer, again, tokens, options.generate);
      report->plain_seconds = plain.decode_seconds;
      report->same_text = plain.text == result.text;
    }
  }
  if (!options.session.empty()) session.save(options.session);

  const double prefill =
      static_cast<double>(result.prompt_tokens) / std::max(1e-9, result.prompt_seconds);
  const double decode = static_cast<double>(result.tokens) / std::max(1e-9, result.decode_seconds);
  const std::vector<double> kept = model->measured_shares(session.state());
  if (options.json) {
    nlohmann::json json = {{"text", result.text},
                           {"end", end_name(result.end)},
                           {"prompt_tokens", result.prompt_tokens},
                           {"tokens", result.tokens},
                           {"context", session.length()},
                           {"state_bytes", session.state().bytes()},
                           {"kept_shares", kept},
                           {"prompt_tokens_per_second", prefill},
                           {"decode_tokens_per_second", decode}};
    if (report) json["speculation"] = to_json(*report);
    return print_json(json);
  }
  fmt::print("\n");
  std::fflush(stdout);  // before what goes to stderr
  if (options.stats) {
    fmt::print(stderr, "prompt {} tokens, {} tokens/s; {} tokens at {} tokens/s; state {}\n",
               result.prompt_tokens, format_count(prefill), result.tokens, format_count(decode),
               format_bytes(static_cast<double>(session.state().bytes())));
    if (!kept.empty()) fmt::print(stderr, "{}\n", kept_text(kept));
  }
  if (report) print(*report);
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a model");
  auto options = std::make_shared<GenerateCommand>();
  command->add_option("model", options->model, "checkpoint directory")->required();
  add_adapter_option(*command, options->adapter);
  command->add_option("--prompt", options->prompt, "text to continue");
  command->add_option("--prompt-file", options->prompt_file, "file that holds the prompt");
  command->add_option("-n,--tokens", options->generate.max_tokens, "tokens to generate")
      ->check(natural_number());
  SamplingOptions& sampling = options->generate.sampling;
  command->add_option("--temperature", sampling.temperature, "0 (default): the likeliest token");
  command->add_option("--top-k", sampling.top_k, "only the K likeliest tokens");
  command->add_option("--top-p", sampling.top_p, "only the likeliest that together reach P");
  command->add_option("--min-p", sampling.min_p,
                      "only those at least P as likely as the likeliest");
  command->add_option("--repetition-penalty", sampling.repetition_penalty,
                      "above 1: against repeating recent tokens");
  command->add_option("--seed", sampling.seed, "of the noise; same seed, same text");
  command->add_option("--stop", options->generate.stop, "end before this text (may be repeated)")
      ->allow_extra_args(false);
  command->add_option("--session", options->session,
                      "file to continue from, if it exists, and to save to");
  command->add_flag(
      "--stats", options->stats,
      "print speed and state size on stderr; with --draft also measure plain decoding");
  command->add_option("--draft", options->draft,
                      "guess ahead and check several tokens a step, for the same text sooner: a "
                      "smaller MODEL with the same tokenizer, ngram, suffix, early-exit:E, mtp, or "
                      "several with commas between");
  add_speculation_options(*command, options->speculation);
  add_precision_option(*command, options->generate.precision);
  add_cache_type_option(*command, options->cache_type);
  add_context_option(*command, options->generate.context);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
