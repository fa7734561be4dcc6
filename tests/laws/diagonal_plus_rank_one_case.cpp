// Rows of the table of laws for states whose transition is diagonal plus rank one.
#include "ops/diagonal_plus_rank_one.h"

#include <cmath>

#include "laws/operator_case.h"

namespace pronghorn::laws {
namespace {

// Token by token from the definition. in: q, log_decay, k, v, a, b.
std::vector<double> reference(const DiagonalPlusRankOneOptions& options, const Values& in,
                              int64_t tokens) {
  const int64_t heads = options.heads, keys = options.key_dim, values = options.value_dim;
  std::vector<double> state(static_cast<size_t>(heads * keys * values));
  std::vector<double> out(static_cast<size_t>(tokens * heads * values));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      double* s = state.data() + h * keys * values;
      const int64_t at = (t * heads + h) * keys;
      const double *q = in[0].data() + at, *log_decay = in[1].data() + at, *k = in[2].data() + at;
      const double *a = in[4].data() + at, *b = in[5].data() + at;
      const double* v = in[3].data() + (t * heads + h) * values;
      for (int64_t c = 0; c < values; ++c) {
        double z = 0;
        for (int64_t r = 0; r < keys; ++r) z += s[r * values + c] * a[r];
        double o = 0;
        for (int64_t r = 0; r < keys; ++r) {
          double& cell = s[r * values + c];
          cell = std::exp(log_decay[r]) * cell + b[r] * z + k[r] * v[c];
          o += cell * options.query_scale * q[r];
        }
        out[static_cast<size_t>((t * heads + h) * values + c)] = o;
      }
    }
  }
  return out;
}

OperatorCase make_case(const char* name, const DiagonalPlusRankOneOptions& o,
                       double lowest_log_decay) {
  // a and b this small keep the transition from growing, as RWKV-7's do: |a| |b| <= 1.
  const double unit = 1 / std::sqrt(static_cast<double>(o.key_dim));
  const int64_t keys = o.heads * o.key_dim, values = o.heads * o.value_dim;
  OperatorCase row;
  row.name = std::string("diagonal_plus_rank_one_") + name;
  row.inputs = {{"q", keys, {}, -1, 1},       {"log_decay", keys, {}, lowest_log_decay, 0},
                {"k", keys, {}, -unit, unit}, {"v", values, {}, -1, 1},
                {"a", keys, {}, -unit, unit}, {"b", keys, {}, -unit, unit}};
  row.output_width = values;
  row.journals = {diagonal_plus_rank_one_journal(o)};
  row.forward = [o](const Context& context, const std::vector<Tensor>& in,
                    const CheckedBatch& batch) {
    return diagonal_plus_rank_one(context, {in[0], in[1], in[2], in[3], in[4], in[5]}, o, batch,
                                  {0, 0});
  };
  row.reference = [o](const Values& in, const std::vector<int32_t>& positions) {
    return reference(o, in, static_cast<int64_t>(positions.size()));
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> diagonal_plus_rank_one_cases() {
  return {make_case("rwkv7", {.heads = 2, .key_dim = 16, .value_dim = 64}, -0.6),
          make_case("odd_widths", {.heads = 3, .key_dim = 19, .value_dim = 21, .query_scale = 0.5f},
                    -0.1),
          make_case("strong_decay", {.heads = 1, .key_dim = 8, .value_dim = 16}, -100)};
}

}  // namespace pronghorn::laws
