// The language-model loss, fused with the output projection so that the logits of a whole batch
// never exist at once.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

struct CrossEntropy {
  double nll = 0;       // sum of -ln p(target) over the counted rows, each times its weight; nats
  double z_loss = 0;    // sum of (ln Z)^2 over the counted rows, likewise
  int64_t count = 0;    // rows with a target
  int64_t correct = 0;  // of these, rows whose largest logit is the target
};

// logits = x head^T, row by row against `targets` (-1: row not counted). With a tape it also
// computes, in the same pass, the gradients of
//   loss = gradient_scale * (sum nll + z_loss_weight * sum (ln Z)^2)
// and records adding them to x and to the head. soft_cap: logits become cap tanh(logit / cap); 0:
// they stay. gradient_scale is usually 1 / tokens in the step, z_loss_weight 0 for none (arXiv
// 2204.02311, section 5). weights: what each row's part of the loss is multiplied by; empty: 1.
// x [rows, width], head [vocab_size, width].
CrossEntropy linear_cross_entropy(const Context& context, const Tensor& x, const Weight& head,
                                  std::span<const int32_t> targets, double gradient_scale,
                                  double z_loss_weight, float soft_cap = 0,
                                  std::span<const float> weights = {});

}  // namespace pronghorn
