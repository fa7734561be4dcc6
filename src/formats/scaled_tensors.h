// Tensors that checkpoints hold in few bits, with their scales in tensors beside them.
#pragma once

#include <map>
#include <string>

#include "formats/safetensors.h"

namespace pronghorn {

// Replaces, in the tensors of a checkpoint,
// - F8_E4M3 tensors NAME with NAME_scale_inv or NAME_scale, if either is there, by their products
//   in BF16. A scale is one number or, of tensors of the same rank, one for each block: whole axes,
//   128 numbers (the last block may be shorter), or equal shares. NAME "x.weight" may have an
//   "x.input_scale" of its activations, which is dropped: activations are not rounded here.
// - U8 tensors NAME_blocks [.., rows, groups, 16] and NAME_scales [.., rows, groups] by
//   NAME_blocks [.., rows, 32 groups] in the blocks of MXFP4, the same numbers; the name
//   stays, since NAME has columns for rows where it is published. Source: Open Compute Project,
//   Microscaling Formats 1.0; two numbers a byte, the first in the lower half.
// where: of messages. Throws Error for scales that do not fit.
void unite_scaled_tensors(std::map<std::string, SafetensorsEntry, std::less<>>& entries,
                          const std::string& where);

}  // namespace pronghorn
