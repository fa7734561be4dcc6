#include "decode/generator.h"

#include "base/error.h"
#include "base/log.h"
#include "decode/diffusion.h"
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

}  // namespace

std::vector<Generated> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const Generation> generations, Speculation* speculation) {
  if (generations.empty()) return {};
  check_batch(generations);
  if (model.config().diffusion) {
    if (speculation != nullptr) {
      throw UsageError("--draft", "a diffusion model writes several tokens a step by itself",
                       "omit it; --threshold says how sure it must be");
    }
    return generate_by_diffusion(model, tokenizer, generations);
  }
  for (const Generation& generation : generations) {
    if (generation.options.diffusion == DiffusionOptions()) continue;
    throw UsageError("generate", "has settings for filling in masked tokens",
                     "they are for diffusion models; this one predicts the next token");
  }
  TextBatch batch(model, tokenizer, generations.front().options.precision, generations.size(),
                  speculation);
  int64_t unread = 0, done = 0;
  for (const Generation& generation : generations) {
    unread += std::ssize(generation.session->pending()) + std::ssize(generation.prompt);
  }
  Progress progress("reading the prompt", static_cast<double>(unread), "tokens");
  for (const Generation& generation : generations) {
    const int64_t length =
        std::ssize(generation.session->pending()) + std::ssize(generation.prompt);
    TextBatch::Joining joining;
    joining.generation = generation;
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
  for (size_t i = 0; i < generations.size(); ++i) results.push_back(batch.leave(i));
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
