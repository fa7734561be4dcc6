// Ternary matrices as transformers packs them for BitNet.
#pragma once

#include "model/transform.h"

namespace pronghorn {

// Two published tensors, a U8 matrix [rows / 4, columns] of four numbers a byte and a factor [1],
// -> the matrix [rows, columns] of -1, 0 and 1 times the factor, in the factor's dtype. The other
// way round it throws Error for a matrix of other numbers.
Transform four_per_byte();

}  // namespace pronghorn
