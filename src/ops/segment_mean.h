// The mean over a sequence: how a model of whole sequences gathers what its rows found.
#pragma once

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Each row becomes the mean of the rows of its segment: [rows, columns], as x. Sums go from the
// first row to the last, in float64. Throws Error for segments with a state, of which the mean of
// earlier rows is not known.
Tensor segment_mean(const Context& context, const Tensor& x, const CheckedBatch& batch);

// The same for the rows of another batch of the same sequences: each row of `to` becomes the mean
// of the rows of x in that segment of `batch`: [rows of `to`, columns].
Tensor segment_mean(const Context& context, const Tensor& x, const CheckedBatch& batch,
                    const CheckedBatch& to);

}  // namespace pronghorn
