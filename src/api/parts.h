// What the classes of the public surface are made of.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "decode/generator.h"
#include "decode/speculation.h"
#include "formats/chat_format.h"
#include "formats/tokenizer.h"
#include "grammar/grammar_store.h"
#include "model/model.h"
#include "model/weight_bytes.h"
#include "pronghorn/pronghorn.h"
#include "train/tasks.h"

namespace pronghorn {

struct LanguageModel::Parts {
  std::unique_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;  // models made of one another share it
  ChatFormat format;
  std::vector<int32_t> end_tokens;  // that the checkpoint's files name
  std::shared_ptr<GrammarStore> grammars;

  // Throws UsageError for ids outside the vocabulary.
  void check_ids(std::span<const int32_t> ids) const;
};

struct TextSession::Parts {
  std::shared_ptr<const LanguageModel::Parts> language_model;
  Session session;
  DType cache_type = DType::f32;
  // The whole text: a session itself knows the end of it.
  std::vector<int32_t> ids = {};

  // Leaves the last token to be read, by whoever wants scores after it, if the model has read all.
  void unread_last(const Model& model, const Tokenizer& tokenizer);
};

// What internal code calls them.
GenerateOptions generate_options(const ContinueOptions& options, const LanguageModel::Parts& parts);
Continuation continuation_of(const Generated& generated);
// Null without a drafter in the options.
std::unique_ptr<Speculation> speculation_of(const ContinueOptions& options,
                                            const LanguageModel::Parts& parts);

// The same, but for the text that needles are hidden in.
TaskOptions task_options(const SyntheticTask& task);

// Hides messages and progress bars unless show_messages() has been called.
void set_up_messages();

inline Precision precision_of(Rounding rounding, const Model& model) {
  switch (rounding) {
    case Rounding::f32:
      return Precision::f32;
    case Rounding::bf16:
      return Precision::bf16;
    case Rounding::stored:
      break;
  }
  return stored_precision(model);
}

inline DType dtype_of(CacheType cache) {
  switch (cache) {
    case CacheType::bf16:
      return DType::bf16;
    case CacheType::f16:
      return DType::f16;
    case CacheType::q8_0:
      return DType::q8_0;
    case CacheType::q4_0:
      return DType::q4_0;
    case CacheType::f32:
      break;
  }
  return DType::f32;
}

}  // namespace pronghorn
