// Attention in the table of laws.
#include <algorithm>
#include <cmath>
#include <limits>

#include "operator_case.h"
#include "ops/attention.h"

namespace pronghorn::laws {
namespace {

// softmax(scale q k^T) v for each row and head over the keys it may see, in one pass over a full
// row of scores (arXiv 1706.03762, equation 1).
std::vector<double> naive_attention(const AttentionOptions& options, const Values& inputs,
                                    const std::vector<int32_t>& positions) {
  const auto tokens = static_cast<int64_t>(positions.size());
  const int64_t dim = options.head_dim, group = options.heads / options.kv_heads;
  const double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> output(static_cast<size_t>(tokens * options.heads * dim));
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t head = 0; head < options.heads; ++head) {
      const double* q = inputs[0].data() + (i * options.heads + head) * dim;
      const auto at = [&](int which, int64_t j) {
        return inputs[static_cast<size_t>(which)].data() +
               (j * options.kv_heads + head / group) * dim;
      };
      std::vector<double> weight(static_cast<size_t>(i + 1), 0.0);
      double largest = -std::numeric_limits<double>::infinity();
      const auto sees = [&](int64_t j) {
        const int64_t key = positions[static_cast<size_t>(j)];
        const int64_t row = positions[static_cast<size_t>(i)];
        return (options.window == 0 || key > row - options.window) &&
               (options.segment == 0 || key / options.segment >= row / options.segment);
      };
      for (int64_t j = 0; j <= i; ++j) {
        double& score = weight[static_cast<size_t>(j)];
        for (int64_t c = 0; c < dim; ++c) score += scale * q[c] * at(1, j)[c];
        if (sees(j)) largest = std::max(largest, score);
      }
      double sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        double& w = weight[static_cast<size_t>(j)];
        w = sees(j) ? std::exp(w - largest) : 0;
        sum += w;
      }
      double* o = output.data() + (i * options.heads + head) * dim;
      for (int64_t j = 0; j <= i; ++j) {
        for (int64_t c = 0; c < dim; ++c)
          o[c] += weight[static_cast<size_t>(j)] / sum * at(2, j)[c];
      }
    }
  }
  return output;
}

OperatorCase make_case(const std::string& name, const AttentionOptions& options) {
  OperatorCase result;
  result.name = "attention_" + name;
  const int64_t width = options.heads * options.head_dim;
  const int64_t kv_width = options.kv_heads * options.head_dim;
  // Queries this large make the softmax peaked, as trained heads are.
  result.inputs = {{"q", width, {}, -3, 3}, {"k", kv_width, {}, -1, 1}, {"v", kv_width, {}, -1, 1}};
  result.output_width = width;
  result.journals = {attention_journal(options)};
  result.forward = [options](const Context& context, const std::vector<Tensor>& inputs,
                             const CheckedBatch& batch) {
    return attention(context, inputs[0], inputs[1], inputs[2], options, batch, {0, 0});
  };
  result.reference = [options](const Values& inputs, const std::vector<int32_t>& positions) {
    return naive_attention(options, inputs, positions);
  };
  return result;
}

// Attention to a window and, joined to it, to a segment and to fixed keys: in float64 one softmax
// over all of them. A key that both the window and the segment hold counts twice.
OperatorCase make_joined_case() {
  constexpr int64_t kFixed = 5;
  const AttentionOptions window{.heads = 2, .kv_heads = 2, .head_dim = 10, .window = 6};
  const AttentionOptions segment{.heads = 2, .kv_heads = 2, .head_dim = 10, .segment = 16};
  const int64_t dim = window.head_dim, width = window.heads * dim;
  OperatorCase result;
  result.name = "attention_joined";
  result.inputs = {{"q", width, {}, -3, 3},
                   {"k", width, {}, -1, 1},
                   {"v", width, {}, -1, 1},
                   {"keys", 0, {kFixed, width}, -1, 1},
                   {"values", 0, {kFixed, width}, -1, 1}};
  result.output_width = width;
  result.journals = {attention_journal(window), attention_journal(segment)};
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    const AttentionResult parts[] = {
        partial_attention(context, in[0], in[1], in[2], window, batch, {0, 0}),
        partial_attention(context, in[0], in[1], in[2], segment, batch, {0, 1})};
    return merge_attention(context, in[0], parts, in[3], in[4], window);
  };
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto tokens = static_cast<int64_t>(positions.size());
    std::vector<double> output(static_cast<size_t>(tokens * width));
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t column = 0; column < width; column += dim) {
        double sum = 0;
        double* o = output.data() + i * width + column;
        const auto attend = [&](const std::vector<double>& k, const std::vector<double>& v,
                                int64_t j, double times) {
          double score = 0;
          for (int64_t c = column; c < column + dim; ++c) {
            score += in[0][static_cast<size_t>(i * width + c)] *
                     k[static_cast<size_t>(j * width + c)] / std::sqrt(static_cast<double>(dim));
          }
          sum += times * std::exp(score);
          for (int64_t c = 0; c < dim; ++c) {
            o[c] += times * std::exp(score) * v[static_cast<size_t>(j * width + column + c)];
          }
        };
        for (int64_t j = 0; j < kFixed; ++j) attend(in[3], in[4], j, 1);
        for (int64_t j = 0; j <= i; ++j) {
          const int64_t key = positions[static_cast<size_t>(j)];
          const int64_t row = positions[static_cast<size_t>(i)];
          const double times = (key > row - window.window ? 1 : 0) +
                               (key / segment.segment == row / segment.segment ? 1 : 0);
          attend(in[1], in[2], j, times);
        }
        for (int64_t c = 0; c < dim; ++c) o[c] /= sum;
      }
    }
    return output;
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> attention_cases() {
  return {make_case("multi_head", {.heads = 2, .kv_heads = 2, .head_dim = 16}),
          make_case("grouped_query", {.heads = 4, .kv_heads = 2, .head_dim = 32}),
          make_case("multi_query", {.heads = 3, .kv_heads = 1, .head_dim = 16, .scale = 0.5f}),
          make_case("sliding_window", {.heads = 2, .kv_heads = 1, .head_dim = 16, .window = 7}),
          make_case("segments", {.heads = 2, .kv_heads = 2, .head_dim = 12, .segment = 24}),
          make_case("odd_head_dim", {.heads = 2, .kv_heads = 2, .head_dim = 20}),
          make_joined_case()};
}

}  // namespace pronghorn::laws
