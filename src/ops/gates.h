// Gates and normalisers of the linear-attention family. All compute a row from that row alone, in
// f32.
#pragma once

#include <cstdint>
#include <utility>

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Behind each group of `group` adjacent columns of x [rows, groups group] one column of ones:
// [rows, groups (group + 1)]. Values with a 1 after them are read back with the sum of the weights
// of the values (arXiv 2006.16236, equation 9).
Tensor append_ones(const Context& context, const Tensor& x, int64_t group);

// Each group of `group` columns of x [rows, groups (group + 1)] over max(|s|, least), s the column
// after it: [rows, groups group]. least > 0.
Tensor divide_by_sums(const Context& context, const Tensor& x, int64_t group, float least);

// x with each column times weight[column]; weight [columns].
Tensor scale_columns(const Context& context, const Tensor& x, const Tensor& weight);

// x with each group of `group` adjacent columns times a factor of the row: gates of heads. x [rows,
// groups group], factors [rows, groups].
Tensor scale_groups(const Context& context, const Tensor& x, const Tensor& factors, int64_t group);

// Decay f = bound + (1 - bound) sigmoid(x) and the input gate that is tied to it (HGRN2, arXiv
// 2404.07904, section 3.2): {ln f, 1 - f}. x [rows, columns], bound [columns] in [0, 1).
std::pair<Tensor, Tensor> lower_bounded_gate(const Context& context, const Tensor& x,
                                             const Tensor& bound);

// The sum of rows 1 ... row of the softmax over the rows of x [rows, columns], column by column
// (HGRN, arXiv 2311.04823, section 3.2): lower bounds of decays that rise with a layer's index.
// Returns [columns].
Tensor cumulative_softmax(const Context& context, const Tensor& x, int64_t row);

// vector[i / times] for i < times * size: values of heads for their columns.
Tensor repeat_each(const Context& context, const Tensor& vector, int64_t times);

}  // namespace pronghorn
