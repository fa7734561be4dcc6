// ZipformerPooling: a span that runs at a fraction of the rate of the rows around it, as the stacks
// of Zipformer do (arXiv 2310.11230, section 3.1). `rate` rows become one, with learned weights;
// what the span makes of that is given back to all of them and joins them by a learned bypass.
#pragma once

#include <cstdint>
#include <span>

#include "layers/layer.h"
#include "layers/parameters.h"
#include "layers/span_choice.h"
#include "layers/states.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

// Rows are numbered from 0 in each sequence, w = softmax(pool), c the bypass scale:
//
//   enters       p_g = sum_j w_j x_{e(g) - rate + 1 + j}, e(g) the last row of group g
//   comes back   z_t = x_t + c (y_{g(t)} - x_t), y the span's result
//
// Where rows see all of their segment, e(g) = g rate + rate - 1, the last group ending with the
// last row, and g(t) is the group that t is in. Where they see earlier rows only, g(t) is the last
// group that has ended, t included, so that nothing comes back before its time; the first
// rate - 1 rows, before any group has ended, stay as they are.
//
// The span may be narrower or wider than the rows around it (section 3.1: each stack has a width of
// its own). A narrower one is given the first columns of these and changes them alone; a wider one
// is given zeros in the columns that they do not have, and what it leaves there is dropped.
//
// Groups are counted by position, so all results are the same however a sequence is cut. Both ends
// are short convolutions (ops/short_convolution.h), pooling with w and holding y with ones, and
// keep their journals.
class ZipformerPooling {
 public:
  ZipformerPooling(const SubsampleConfig& config, const SpanPlace& place, int64_t hidden_size,
                   const ParameterScope& scope, const StateScope& states);

  // x [rows, hidden_size] of at least one row; what is pooled has the columns of the span. The
  // scores are 1 for rows that end a group, which enter, and -1 for the others. Throws Error for
  // masks other than causal and full, one of the two for the whole batch, and for causal rows that
  // leave out positions.
  SpanChoice choose(const LayerInput& input, const Tensor& x) const;

  // x: the rows in front of the span. ends: those that entered. y [ends, width]: what the span made
  // of them. Returns [rows, hidden_size].
  Tensor join(const Context& context, const CheckedBatch& batch, const Tensor& x,
              std::span<const int32_t> ends, const Tensor& y) const;

  // The bypass scale [columns that the span and the rows around it both have], in training within
  // its limits.
  Tensor bypass_scale(const Context& context) const;

  // Floating-point operations of a row.
  double cost() const { return 4.0 * static_cast<double>(rate_ * hold_.rows()); }

 private:
  // Whether a causal row at this position ends a group.
  bool ends_group(int32_t position) const { return (position + int64_t{1}) % group_ == 0; }

  int64_t rate_;
  int64_t width_, common_;  // columns of the span, and those that it shares
  int64_t stride_, group_;  // positions from one row to the next, around the span and in it
  int64_t bypass_steps_;
  JournalSlot pool_state_, hold_state_;
  Tensor pool_;          // [rate]
  Tensor bypass_scale_;  // [common]
  Tensor hold_, unit_;   // ones: [common, rate], [common]
};

}  // namespace pronghorn
