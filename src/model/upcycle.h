// Sparse upcycling (arXiv 2212.05055): a mixture of experts made of a dense model.
#pragma once

#include <cstdint>
#include <memory>

#include "model/model.h"

namespace pronghorn {

struct UpcycleOptions {
  int64_t experts = 8, top_k = 2;
  uint64_t seed = 0;  // of the routers
};

// A model whose feed-forwards are mixtures of `experts` copies of those of `dense`, of which each
// token is given to top_k. Weights of the chosen add up to 1, so that it computes what `dense` does
// until training tells the copies apart; routers start as any other projection, and a balance loss
// is set. It shares the numbers of `dense` in whatever encoding they are. Throws Error if a
// feed-forward is not gated, or there is none.
std::unique_ptr<Model> upcycle(const Model& dense, const UpcycleOptions& options);

}  // namespace pronghorn
