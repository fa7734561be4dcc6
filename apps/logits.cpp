// pronghorn logits: raw scores, to check a model against its reference implementation.
#include <memory>
#include <sstream>

#include "base/error.h"
#include "command.h"
#include "formats/npy.h"
#include "model/model.h"
#include "model/trained_context.h"

namespace pronghorn::app {
namespace {

struct LogitsOptions : Common {
  std::filesystem::path model, adapter, out;
  std::string tokens;
  Precision precision = Precision::f32;
  CacheOptions cache;
  ContextLimit context = ContextLimit::warn;
};

std::vector<int32_t> parse_tokens(const std::string& text) {
  std::vector<int32_t> tokens;
  std::istringstream in(text);
  std::string word;
  while (in >> word) {
    size_t used = 0;
    long value = -1;
    try {
      value = std::stol(word, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used != word.size() || value < 0 || value > INT32_MAX) {
      throw UsageError("--tokens", fmt::format("'{}' is not a token id", word),
                       "numbers separated by spaces, such as \"1 2 3\"");
    }
    tokens.push_back(static_cast<int32_t>(value));
  }
  if (tokens.empty()) throw UsageError("--tokens", "holds no token");
  return tokens;
}

void run(const LogitsOptions& options) {
  const std::vector<int32_t> tokens = parse_tokens(options.tokens);
  const std::unique_ptr<Model> model = load_model(options.model, options.adapter);
  require_reads_texts(model->config(), options.model.string());
  check_context(*model, std::ssize(tokens), limit_of(options.context, options.cache, *model));
  Context context;
  context.precision = options.precision;
  SequenceState state = model->new_state(options.cache);
  // A diffusion model sees the text whole.
  const Batch batch = model->config().diffusion ? fresh_segments(tokens, std::ssize(tokens))
                                                : continue_sequence(state, tokens);
  const Tensor hidden = model->forward(context, batch);
  const Tensor logits = model->logits(context, hidden);
  write_npy(options.out, logits.values(), logits.shape().to_vector());
  if (options.json) {
    print_json({{"file", options.out.string()},
                {"shape", logits.shape().to_vector()},
                {"dtype", "float32"}});
  } else {
    fmt::print("wrote {} float32 {}\n", options.out.string(), logits.shape());
  }
}

}  // namespace

void add_logits(CLI::App& app) {
  CLI::App* command = app.add_subcommand("logits", "Write the scores of each position as .npy");
  auto options = std::make_shared<LogitsOptions>();
  command->add_option("model", options->model, "checkpoint directory")->required();
  add_adapter_option(*command, options->adapter);
  command->add_option("--tokens", options->tokens, "token ids separated by spaces")->required();
  command->add_option("--out", options->out, "NumPy file: float32 [tokens, vocab_size]")
      ->required();
  add_precision_option(*command, options->precision);
  add_cache_options(*command, options->cache);
  add_context_option(*command, options->context);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
