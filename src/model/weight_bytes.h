// Memory of a model's weights: what they take, and what a token reads of them.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "tensor/dtype.h"
#include "tensor/weight.h"

namespace pronghorn {

// All that the parameters take now, by kind, kinds in the order in which they were met: stored
// matrices by encoding, packed copies by format, and the f32 numbers of what is not a matrix.
std::vector<WeightBytes> weight_bytes(const Model& model);

// The precision that is fastest and rounds nothing of what is stored: bf16 where most numbers of
// the matrices are stored in bf16 or in fewer bits, otherwise f32.
Precision stored_precision(const Model& model);

// Bytes that stay in memory for the parameters once products were computed in this precision only.
// Pages of a mapped file are not counted: they come and go.
int64_t resident_weight_bytes(const Model& model, Precision precision);

// Bytes of parameters that a forward of one token reads, its scores included: all but the heads of
// multi-token prediction, and of an embedding table that is not the head too one row.
int64_t weight_bytes_per_token(const Model& model, Precision precision);

}  // namespace pronghorn
