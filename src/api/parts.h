// What the classes of the public surface are made of.
#pragma once

#include <memory>
#include <vector>

#include "decode/generator.h"
#include "formats/tokenizer.h"
#include "model/model.h"
#include "model/weight_bytes.h"
#include "pronghorn/pronghorn.h"

namespace pronghorn {

struct LanguageModel::Parts {
  std::unique_ptr<const Model> model;
  std::unique_ptr<const Tokenizer> tokenizer;
  std::vector<int32_t> end_tokens;  // that the checkpoint's files name
};

struct TextSession::Parts {
  std::shared_ptr<const LanguageModel::Parts> language_model;
  Session session;
};

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
    case CacheType::f32:
      break;
  }
  return DType::f32;
}

}  // namespace pronghorn
