// Recomputation of activations: memory for time in training (Chen et al., arXiv 1604.06174).
#pragma once

#include "model/block.h"

namespace pronghorn {

// What block.forward(input, stream) returns, carries and reports as losses. Of the forward only its
// inputs and results are kept; the block runs again in the backward pass. input.context.tape is not
// null; `block` outlives the tape.
Stream recomputed(const Block& block, const LayerInput& input, const Stream& stream);

}  // namespace pronghorn
