#include "decode/generator.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "decode/diffusion.h"
#include "decode/shared_reading.h"
#include "decode/text_batch.h"

namespace pronghorn {
namespace {

void check_batch(std::span<const Generation> generations) {
  for (size_t i = 0; i < generations.size(); ++i) {
    require(generations[i].options.precision == generations.front().options.precision, "generate",
            "texts of one batch differ in precision");
    for (size_t j = 0; j < i; ++j) {
      require(generations[j].session != generations[i].session, "generate",
              "a session occurs twice in a batch");
    }
  }
}

// What several ranks have read of a text before the rest of it is read here.
struct SharedPrompt {
  std::vector<int32_t> read;
  int64_t given = 0;  // tokens of the prompt
  double seconds = 0;
};

// Takes the prompt into the session, and lets ranks read it if there are several.
SharedPrompt read_on_ranks(const Model& model, const Tokenizer& tokenizer, Generation& generation) {
  const SequenceSharing& sharing = generation.options.sharing;
  if (!sharing.is_on()) return {};
  Session& session = *generation.session;
  session.append_prompt(tokenizer, generation.prompt);
  SharedPrompt shared;
  shared.given = std::ssize(generation.prompt);
  generation.prompt = {};
  check_context(model, session.length(), generation.options.context);
  const std::vector<int32_t> pending(session.pending().begin(), session.pending().end());
  Context context;
  context.precision = generation.options.precision;
  const double start = now_seconds();
  const int64_t count = read_together(model, context, session, sharing);
  shared.seconds = now_seconds() - start;
  shared.read.assign(pending.begin(), pending.begin() + count);
  if (count == 0) {
    spdlog::info("one process reads the prompt alone: it is short, or continues a session");
  }
  return shared;
}

}  // namespace

void check_settings(const Model& model, const GenerateOptions& options, bool drafts) {
  const std::optional<DiffusionConfig>& diffusion = model.config().diffusion;
  if (!diffusion) {
    if (options.diffusion == DiffusionOptions()) return;
    throw UsageError("generate", "has settings for filling in masked tokens",
                     "they are for diffusion models; this one predicts the next token");
  }
  require(!options.sharing.is_on(), "sequence_parallel",
          "the model fills in masked tokens, which needs whole sequences");
  if (drafts) {
    throw UsageError("--draft", "a diffusion model writes several tokens a step by itself",
                     "omit it; --threshold says how sure it must be");
  }
  check_diffusion_options(options.diffusion, *diffusion);
  if (options.grammar != nullptr) {
    throw UsageError("generate",
                     "a diffusion model writes tokens in any order, and no grammar "
                     "can be followed so",
                     "use a model of the next token, or no grammar");
  }
}

std::vector<Generated> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const Generation> generations, Speculation* speculation) {
  if (generations.empty()) return {};
  check_batch(generations);
  for (const Generation& generation : generations) {
    check_settings(model, generation.options, speculation != nullptr);
  }
  if (model.config().diffusion) return generate_by_diffusion(model, tokenizer, generations);
  std::vector<Generation> texts(generations.begin(), generations.end());
  std::vector<SharedPrompt> shared;
  for (Generation& text : texts) shared.push_back(read_on_ranks(model, tokenizer, text));
  TextBatch batch(model, tokenizer, generations.front().options.precision, generations.size(),
                  speculation);
  int64_t unread = 0, done = 0;
  for (const Generation& generation : texts) {
    unread += std::ssize(generation.session->pending()) + std::ssize(generation.prompt);
  }
  Progress progress("reading the prompt", static_cast<double>(unread), "tokens");
  for (size_t i = 0; i < texts.size(); ++i) {
    const Generation& generation = texts[i];
    const int64_t length =
        std::ssize(generation.session->pending()) + std::ssize(generation.prompt);
    TextBatch::Joining joining;
    joining.generation = generation;
    joining.known = shared[i].read;
    joining.runs = reading_plan(length, {}, {}, kPromptPiece);
    joining.on_read = [&](const ReadingRun& piece) {
      done += piece.tokens.size();
      progress.update(static_cast<double>(done));
      if (done == unread) progress.finish();
    };
    batch.join(joining);
  }
  bool goes_on = true;
  while (goes_on) {
    goes_on = batch.step();
    for (size_t i = 0; i < generations.size(); ++i) {
      if (batch.error(i) != nullptr) std::rethrow_exception(batch.error(i));
    }
  }
  std::vector<Generated> results;
  for (size_t i = 0; i < generations.size(); ++i) {
    results.push_back(batch.leave(i));
    results.back().prompt_tokens += shared[i].given;
    results.back().prompt_seconds += shared[i].seconds;
  }
  return results;
}

Generated generate(const Model& model, const Tokenizer& tokenizer, Session& session,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::string_view)>& emit, Speculation* speculation,
                   const std::function<bool()>& interrupted) {
  const Generation generation{&session, prompt, options, emit, interrupted};
  return generate(model, tokenizer, {&generation, 1}, speculation).front();
}

}  // namespace pronghorn
