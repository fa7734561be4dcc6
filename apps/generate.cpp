// pronghorn generate: continue a text.
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "command.h"
#include "decode/generator.h"

namespace pronghorn::app {
namespace {

struct GenerateCommand : Common {
  std::filesystem::path model, prompt_file, session;
  std::string prompt;
  bool stats = false;
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

void run(const GenerateCommand& options) {
  check(options.generate.sampling);
  const std::unique_ptr<Model> model = Model::load(options.model);
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.model);
  require(tokenizer->vocab_size() <= model->config().vocab_size, options.model.string(),
          "its tokenizer has {} tokens and its model {}", tokenizer->vocab_size(),
          model->config().vocab_size);
  const bool resumes = !options.session.empty() && std::filesystem::exists(options.session);
  Session session = resumes ? Session::load(options.session, *model) : Session(*model);
  std::string prompt = options.prompt;
  if (!options.prompt_file.empty()) prompt = read_file(options.prompt_file);
  const std::vector<int32_t> tokens = tokenizer->encode(prompt, !resumes);

  if (!options.json && !resumes) fmt::print("{}", prompt);
  const Generated result = pronghorn::generate(*model, *tokenizer, session, tokens,
                                               options.generate, [&](std::string_view text) {
                                                 if (options.json) return;
                                                 fmt::print("{}", text);
                                                 std::fflush(stdout);
                                               });
  if (!options.session.empty()) session.save(options.session);

  const double prefill =
      static_cast<double>(result.prompt_tokens) / std::max(1e-9, result.prompt_seconds);
  const double decode = static_cast<double>(result.tokens) / std::max(1e-9, result.decode_seconds);
  const std::vector<double> kept = model->measured_shares(session.state());
  if (options.json) {
    return print_json({{"text", result.text},
                       {"end", end_name(result.end)},
                       {"prompt_tokens", result.prompt_tokens},
                       {"tokens", result.tokens},
                       {"context", session.length()},
                       {"state_bytes", session.state().bytes()},
                       {"kept_shares", kept},
                       {"prompt_tokens_per_second", prefill},
                       {"decode_tokens_per_second", decode}});
  }
  fmt::print("\n");
  if (options.stats) {
    fmt::print(stderr, "prompt {} tokens, {} tokens/s; {} tokens at {} tokens/s; state {}\n",
               result.prompt_tokens, format_count(prefill), result.tokens, format_count(decode),
               format_bytes(static_cast<double>(session.state().bytes())));
    if (!kept.empty()) fmt::print(stderr, "{}\n", kept_text(kept));
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a model");
  auto options = std::make_shared<GenerateCommand>();
  command->add_option("model", options->model, "checkpoint directory")->required();
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
  command->add_option("--stop", options->generate.stop, "end before this text (may be repeated)");
  command->add_option("--session", options->session,
                      "file to continue from, if it exists, and to save to");
  command->add_flag("--stats", options->stats, "print speed and state size on stderr");
  add_precision_option(*command, options->generate.precision);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
