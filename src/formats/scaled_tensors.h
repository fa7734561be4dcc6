// Tensors that checkpoints hold in few bits, with their scales in tensors beside them.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "formats/safetensors.h"

namespace pronghorn {

// Replaces, in the tensors of a checkpoint,
// - F8_E4M3 tensors NAME with NAME_scale_inv or NAME_scale, if either is there, by their products
//   in BF16. A scale is one number or, of tensors of the same rank, one for each block of the last
//   two axes, of which the last may be shorter. The size of blocks is what config.json says
//   (quantization_config.weight_block_size, or block_structure of compressed-tensors); where it
//   says nothing, whole axes, one number, and blocks of 128 if no equal shares could be meant. NAME
//   "x.weight" may have an "x.input_scale" or "x.activation_scale", which is dropped: activations
//   are not rounded here.
// - U8 tensors NAME_blocks [.., rows, groups, 16] and NAME_scales [.., rows, groups] by
//   NAME_blocks [.., rows, 32 groups] in the blocks of MXFP4, the same numbers; the name
//   stays, since NAME has columns for rows where it is published. Source: Open Compute Project,
//   Microscaling Formats 1.0; two numbers a byte, the first in the lower half.
// directory: of the checkpoint. Throws Error for scales that do not fit.
void unite_scaled_tensors(std::map<std::string, SafetensorsEntry, std::less<>>& entries,
                          const std::filesystem::path& directory);

}  // namespace pronghorn
