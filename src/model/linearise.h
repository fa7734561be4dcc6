// Linearisation: some of a transformer's layers of softmax attention become layers with a state
// (LoLCATs, arXiv 2410.10254; Mamba in the Llama, 2408.15237).
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/model.h"

namespace pronghorn {

struct LineariseOptions {
  std::string pattern;  // of all layers: l becomes linear, a stays attention: "2[3l a]"
  nlohmann::json
      mixer;  // what l has: a type and settings; those of heads are attention's unless given
  uint64_t seed = 0;  // of weights that attention has no counterpart of
};

struct Linearised {
  std::unique_ptr<Model> model;  // to be trained
  std::vector<int64_t> layers;   // whose mixers are new
  int64_t taken = 0, fresh = 0;  // tensors of new mixers: attention's, and random ones
};

// A model whose layers `l` have the mixer in place of attention. Matrices of the new mixers are
// those of attention of the same name (out_proj: o_proj, i_proj: v_proj) where they fit, with the
// heads of grouped keys and values repeated; all other numbers are the model's. model: with its
// numbers in f32, as for training. Throws Error where the pattern does not fit, a layer that is to
// become linear is not attention alone, and for heads for multi-token prediction, prefixes and
// subsampled spans.
Linearised linearise(const Model& model, const LineariseOptions& options);

}  // namespace pronghorn
