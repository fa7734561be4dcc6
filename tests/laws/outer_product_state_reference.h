// The gated outer-product recurrence token by token in float64, straight from its definition.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/outer_product_state.h"

namespace pronghorn::laws {

// Inputs of one sequence, row-major; log_decay, beta and skip may be empty. `state` [value_heads,
// key_dim, value_dim] is empty (zeros) or where to start from; it is left as it is after the last
// token. Returns o [tokens, value_heads value_dim].
struct OuterProductValues {
  std::vector<double> q, k, v, log_decay, beta, skip;
};

inline std::vector<double> outer_product_reference(const OuterProductStateOptions& options,
                                                   const OuterProductValues& in, int64_t tokens,
                                                   std::vector<double>& state) {
  const int64_t heads = options.value_heads, key_dim = options.key_dim;
  const int64_t value_dim = options.value_dim, group = heads / options.key_heads;
  state.resize(static_cast<size_t>(heads * key_dim * value_dim));
  std::vector<double> out(static_cast<size_t>(tokens * heads * value_dim));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      double* s = state.data() + h * key_dim * value_dim;
      const double* q = in.q.data() + (t * options.key_heads + h / group) * key_dim;
      const double* k = in.k.data() + (t * options.key_heads + h / group) * key_dim;
      const double* v = in.v.data() + (t * heads + h) * value_dim;
      const auto gate = static_cast<size_t>(t * heads + h);
      const auto decay = [&](int64_t r) {
        if (in.log_decay.empty()) return 1.0;
        const size_t channel = gate * static_cast<size_t>(key_dim) + static_cast<size_t>(r);
        return std::exp(in.log_decay[options.channel_decay ? channel : gate]);
      };
      const double beta = in.beta.empty() ? 1 : in.beta[gate];
      const double skip = in.skip.empty() ? 0 : in.skip[static_cast<size_t>(h)];
      for (int64_t c = 0; c < value_dim; ++c) {
        double old = 0;
        for (int64_t r = 0; r < key_dim; ++r) {
          s[r * value_dim + c] *= decay(r);
          old += s[r * value_dim + c] * k[r];
        }
        const double u = beta * (options.delta_rule ? v[c] - old : v[c]);
        double o = 0;
        for (int64_t r = 0; r < key_dim; ++r) {
          s[r * value_dim + c] += k[r] * u;
          o += s[r * value_dim + c] * options.query_scale * q[r];
        }
        out[static_cast<size_t>((t * heads + h) * value_dim + c)] = o + skip * v[c];
      }
    }
  }
  return out;
}

}  // namespace pronghorn::laws
