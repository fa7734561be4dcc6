// TimestepNorm (Megalodon, arXiv 2404.08801, section 3.2): a group norm whose mean and variance are
// those of all rows of the sequence so far. All in f32.
#pragma once

#include <cstdint>
#include <utility>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Mean and variance of each group of `group` adjacent columns of a row: each [rows, columns /
// group].
std::pair<Tensor, Tensor> group_moments(const Context& context, const Tensor& x, int64_t group);

// (x - mean) / sqrt(variance + epsilon) weight + bias, with the mean and the variance of its group
// for each column: mean and variance [rows, groups]; weight and bias [columns].
Tensor group_norm(const Context& context, const Tensor& x, const Tensor& mean,
                  const Tensor& variance, const Tensor& weight, const Tensor& bias, float epsilon);

// The journals that timestep_norm() keeps, two of this shape (running_sum_journal() of the groups):
// sums of the rows' means, and of the squares of all rows' numbers less the mean, over the columns
// of a group.
JournalShape timestep_norm_journal(int64_t groups);

struct TimestepNormSlots {
  JournalSlot means, variances;
};

// group_norm() of x [rows, columns] with the mean and variance of the rows of the sequence up to
// its own, group by group: with m_t and s_t those of row t alone (group_moments), t from 1 on,
//   M_t = M_t-1 + m_t                                           mean_t = M_t / t
//   S_t = S_t-1 + s_t + (1 - 1 / t) (m_t - mean_t-1)^2          variance_t = S_t / t
// (Welford, Technometrics 4, 1962). M and S are running_sum(), so that no length of a sequence
// makes them drift. groups divides the columns. A token's bits do not depend on how its sequence is
// cut, at any length. With a tape, segments must have no state.
Tensor timestep_norm(const Context& context, const Tensor& x, const Tensor& weight,
                     const Tensor& bias, int64_t groups, float epsilon, const CheckedBatch& batch,
                     const TimestepNormSlots& slots);

}  // namespace pronghorn
