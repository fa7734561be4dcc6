// RWKV-7 (arXiv 2503.14456) as its authors publish it (github.com/BlinkDL/RWKV-LM, the World
// models): one .pth file of torch.save with names of its own and no configuration: the shapes of
// its tensors say all sizes.
#pragma once

#include "formats/checkpoint_reader.h"
#include "model/config.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// The model that the tensors of a .pth file are of, of the family "rwkv7". Throws Error if they are
// not of RWKV-7, or tensors that say sizes are missing or have other axes.
ModelConfig read_rwkv7_file(const CheckpointReader& file);

// How such files hold its tensors.
TensorRules rwkv7_file_tensors();

}  // namespace pronghorn
