// Depthwise convolutions over a grid of rows: the 3 x 3 filter in front of VMamba's scans.
#pragma once

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// y[r] = act(bias + sum_j weight[:, j] x[row at place(r) + offset j]) within each segment, where a
// place outside of the grid counts as zeros (VMamba, arXiv 2401.10166, section 4.2). x [rows,
// channels]; weight [channels, side^2] with an odd side, the taps row after row, the place itself
// in the middle; bias [channels] or undefined; silu: act is silu, else nothing. The places are the
// batch's two coordinates, row and column of a grid. Throws Error unless the rows of each segment
// are all places of a grid, once each, and for segments with a state.
Tensor grid_convolution(const Context& context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, bool silu, const CheckedBatch& batch);

}  // namespace pronghorn
