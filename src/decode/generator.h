// Generator: continues texts with a model, several together and with or without speculation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode/diffusion.h"
#include "decode/sampling.h"
#include "decode/session.h"
#include "decode/speculation.h"
#include "formats/tokenizer.h"
#include "grammar/token_grammar.h"
#include "model/model.h"
#include "model/trained_context.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {

// A part of a text between two marks that is cut when it gets long: the reasoning before an answer.
// The marks are the texts of two tokens, however they are written. Where it opens, and opens again
// within the same bound, decode/part_finder.h says.
struct BoundedPart {
  int32_t begin = -1, end = -1;  // the tokens
  bool begun = false;            // the prompt has begun it
  // After so many of it, `end` is written, where the grammar allows it and no character is cut.
  int64_t tokens = 0;
  std::string call = {}, call_end = {};  // marks of calls, behind which it may open; empty: none
};

struct GenerateOptions {
  int64_t max_tokens = 128;
  SamplingOptions sampling;
  std::vector<std::string> stop;  // the text ends before the first of these that is complete
  // The text ends with the tokenizer's end token and with each of these, unless stop_at_eos is
  // false.
  std::vector<int32_t> end_tokens;
  bool stop_at_eos = true;
  int64_t min_tokens = 0;  // that many are written before one that ends the text can be
  // What the text must follow, over the tokens of the model's vocabulary; null: anything. Where it
  // is complete the text may end, and where nothing can follow it ends, without an end token.
  std::shared_ptr<TokenGrammar> grammar;
  // Special tokens that are written as the text that they have, which otherwise stand for none.
  std::vector<int32_t> shown_tokens;
  std::optional<BoundedPart> reasoning;
  // Generated::written is filled in, with that many tokens beside the one written; -1: it is not.
  int likeliest = -1;
  Precision precision = Precision::f32;
  ContextLimit context = ContextLimit::warn;  // texts longer than what the model was trained for
  DiffusionOptions diffusion;                 // of a model that fills in masked tokens
  // Ranks that read the beginning of a text together (decode/shared_reading.h); this is the first.
  SequenceSharing sharing;
};

struct Generated {
  // Whole characters. What the tokens of a text that ended by its length begin and do not complete
  // stays in the session: the next tokens go on with it.
  std::string text;
  std::vector<int32_t> ids;           // of the tokens written, an end token included
  std::vector<WrittenToken> written;  // the same with log-probabilities, if asked for
  std::string stop;                   // the stop string that ended it
  int64_t prompt_tokens = 0, tokens = 0;
  int64_t steps = 0;                  // of the model, after the prompt
  int64_t drafted = 0, accepted = 0;  // guesses checked, and of these those that came true
  // Of the model reading the prompt; from then to the end.
  double prompt_seconds = 0, decode_seconds = 0;
  enum class End : uint8_t { length, stop_string, end_token, interrupted } end = End::length;
};

// One of the texts that are written together.
struct Generation {
  Session* session = nullptr;
  std::span<const int32_t> prompt;
  GenerateOptions options;
  // Called with pieces of whole characters as soon as it is certain that no stop string begins in
  // them; may be empty.
  std::function<void(std::string_view)> emit;
  // Asked before each token; true ends the text there. May be empty.
  std::function<bool()> interrupted;
  // Of a diffusion model: called after each step with what is being written, -1 being a token that
  // is still masked. May be empty.
  std::function<void(std::span<const int32_t>)> on_canvas = {};
};

// Appends each prompt to its session and continues it; a step of the model serves all texts that
// have not ended. What is written does not depend, bit for bit, on the other texts, nor on the
// drafter of `speculation` (null: plain decoding, one token per step), unless it says so
// (SpeculationOptions::block). Tokens in the padded part of a vocabulary, beyond the tokenizer's,
// stand for no text. Throws Error if a session has nothing to continue from, occurs
// twice, or precisions differ. A diffusion model writes by generate_by_diffusion(); it throws
// UsageError for a drafter.
std::vector<Generated> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const Generation> generations,
                                Speculation* speculation = nullptr);

// The same for one text.
Generated generate(const Model& model, const Tokenizer& tokenizer, Session& session,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::string_view)>& emit = {},
                   Speculation* speculation = nullptr,
                   const std::function<bool()>& interrupted = {});

// What generate() throws for settings that do not fit the model, before anything is written.
// drafts: whether there is a drafter.
void check_settings(const Model& model, const GenerateOptions& options, bool drafts);

}  // namespace pronghorn
