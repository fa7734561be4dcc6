// A head for multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): it guesses a
// token further ahead than the model does, from the model's last hidden state and the token in
// between.
#pragma once

#include <vector>

#include "model/block.h"

namespace pronghorn {

// With h_t the hidden state of token t (of the model, or of the head before) and e the embedding of
// the next token that h_t does not know:
//   x_t = P [norm_h(h_t) ; norm_e(e)]        h'_t = norm(block(x)_t)
// The embedding and the output head are the model's.
class MtpHead {
 public:
  MtpHead(const ModelConfig& model, const LayerContext& context, const ParameterScope& scope);

  // hidden, embeddings [rows, hidden_size]; returns h' of the same shape.
  Tensor forward(const LayerInput& input, const Tensor& hidden, const Tensor& embeddings) const;

  const std::vector<JournalShape>& journals() const { return block_.journals(); }

 private:
  Norm hidden_norm_, embedding_norm_;
  Weight projection_;
  Block block_;
  Norm norm_;
};

}  // namespace pronghorn
