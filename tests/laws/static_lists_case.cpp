// Attention by where keys are alone, in the table of laws: Longformer's windows with gaps and
// BigBird's drawn blocks.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "operator_case.h"
#include "ops/attention.h"
#include "ops/static_lists.h"

namespace pronghorn::laws {
namespace {

// Whether a row sees an earlier one, as the papers say it, apart from what is drawn.
bool is_in_pattern(const StaticPattern& pattern, int64_t list, int64_t own, int64_t block) {
  if (block < pattern.first) return true;
  const int64_t dilation = pattern.dilations[static_cast<size_t>(list)], back = own - block;
  return back % dilation == 0 && back / dilation < pattern.window;
}

OperatorCase static_case(std::string name, const AttentionOptions& options,
                         const StaticPattern& pattern) {
  const int64_t dim = options.head_dim, q_width = options.heads * dim;
  const int64_t kv_width = options.kv_heads * dim;
  OperatorCase result;
  result.name = "static_lists_" + name;
  result.inputs = {
      {"q", q_width, {}, -3, 3}, {"k", kv_width, {}, -1, 1}, {"v", kv_width, {}, -1, 1}};
  result.output_width = q_width;
  result.journals = {attention_journal(options)};
  result.gradient_tolerance = 1e-4;  // as of attention to other lists
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    return attention(context, in[0], in[1], in[2], options, batch, {0, 0}, {},
                     static_lists(pattern, batch, {0, 0}));
  };
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto rows = std::ssize(positions);
    const int64_t group = options.heads / options.kv_heads;
    std::vector<double> out(static_cast<size_t>(rows * q_width));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t h = 0; h < options.heads; ++h) {
        const int64_t list = h / (options.heads / pattern.lists()), own = i / pattern.block;
        const std::vector<int32_t> listed = static_list(pattern, list, own);
        const double* q = in[0].data() + (i * options.heads + h) * dim;
        double* o = out.data() + (i * options.heads + h) * dim;
        double total = 0;
        const auto each = [&](const auto& body) {
          for (int64_t j = 0; j <= i; ++j) {
            const int64_t block = j / pattern.block;
            const bool drawn = pattern.random > 0 && std::ranges::binary_search(listed, block);
            if (!drawn && !is_in_pattern(pattern, list, own, block)) continue;
            const double* k = in[1].data() + (j * options.kv_heads + h / group) * dim;
            const double product = std::inner_product(q, q + dim, k, 0.0);
            body(j, std::exp(product / std::sqrt(static_cast<double>(dim))));
          }
        };
        each([&](int64_t, double weight) { total += weight; });
        each([&](int64_t j, double weight) {
          const double* v = in[2].data() + (j * options.kv_heads + h / group) * dim;
          for (int64_t c = 0; c < dim; ++c) o[c] += weight / total * v[c];
        });
      }
    }
    return out;
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> static_lists_cases() {
  const AttentionOptions grouped = {.heads = 4, .kv_heads = 2, .head_dim = 10};
  return {static_case("window", grouped, {.dilations = {1, 1}, .window = 13, .first = 3}),
          static_case("gaps", grouped, {.dilations = {2, 5}, .window = 20, .first = 2}),
          static_case("of_all_heads", {.heads = 3, .kv_heads = 3, .head_dim = 6},
                      {.dilations = {3}, .window = 30}),
          static_case(
              "drawn", {.heads = 4, .kv_heads = 2, .head_dim = 8},
              {.block = 16, .dilations = {1, 1}, .window = 2, .first = 1, .random = 2, .seed = 5}),
          static_case("drawn_tiles", {.heads = 2, .kv_heads = 1, .head_dim = 12},
                      {.block = 64, .dilations = {1}, .window = 1, .random = 1, .seed = 1})};
}

}  // namespace pronghorn::laws
