// Attention in the table of laws.
#include <algorithm>
#include <cmath>
#include <limits>

#include "operator_case.h"
#include "ops/attention.h"
#include "ops/pointwise.h"

namespace pronghorn::laws {
namespace {

struct Variant {
  std::string name;
  AttentionOptions options;
  bool sinks = false;
  Mask mask = Mask::causal;
  DType rows = DType::f32;  // of the journal
  int64_t block = 0;        // of Mask::blocks
};

int64_t value_dim(const AttentionOptions& options) {
  return options.value_dim > 0 ? options.value_dim : options.head_dim;
}

bool sees(const Variant& variant, const std::vector<int32_t>& positions, int64_t i, int64_t j) {
  if (j > i && variant.mask == Mask::causal) return false;
  const AttentionOptions& options = variant.options;
  const int64_t row = positions[static_cast<size_t>(i)], key = positions[static_cast<size_t>(j)];
  if (variant.mask == Mask::blocks && key / variant.block > row / variant.block) return false;
  return j < options.prefix ||
         ((options.window == 0 || key > row - options.window) &&
          (options.segment == 0 || key / options.segment >= row / options.segment));
}

// softmax(scale q k^T) v for each row and head over the keys it may see, in one pass over a full
// row of scores (arXiv 1706.03762, equation 1); the scores capped as in arXiv 2408.00118, section
// 2, a sink as one more score without a value (arXiv 2508.10925, section 2.2).
std::vector<double> naive_attention(const Variant& variant, const Values& inputs,
                                    const std::vector<int32_t>& positions) {
  const AttentionOptions& options = variant.options;
  const auto tokens = static_cast<int64_t>(positions.size());
  const int64_t dim = options.head_dim, width = value_dim(options);
  const int64_t group = options.heads / options.kv_heads;
  const double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> output(static_cast<size_t>(tokens * options.heads * width));
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t head = 0; head < options.heads; ++head) {
      const double* q = inputs[0].data() + (i * options.heads + head) * dim;
      const auto key = [&](int64_t j) {
        return inputs[1].data() + (j * options.kv_heads + head / group) * dim;
      };
      const auto value = [&](int64_t j) {
        return options.value_in_key
                   ? key(j)
                   : inputs[2].data() + (j * options.kv_heads + head / group) * width;
      };
      std::vector<double> weight(static_cast<size_t>(tokens), 0.0);
      const double sink = variant.sinks ? inputs.back()[static_cast<size_t>(head)]
                                        : -std::numeric_limits<double>::infinity();
      double largest = sink;
      for (int64_t j = 0; j < tokens; ++j) {
        if (!sees(variant, positions, i, j)) continue;
        double& score = weight[static_cast<size_t>(j)];
        for (int64_t c = 0; c < dim; ++c) score += scale * q[c] * key(j)[c];
        if (options.soft_cap > 0) score = options.soft_cap * std::tanh(score / options.soft_cap);
        largest = std::max(largest, score);
      }
      double sum = std::exp(sink - largest);
      for (int64_t j = 0; j < tokens; ++j) {
        double& w = weight[static_cast<size_t>(j)];
        w = sees(variant, positions, i, j) ? std::exp(w - largest) : 0;
        sum += w;
      }
      double* o = output.data() + (i * options.heads + head) * width;
      for (int64_t j = 0; j < tokens; ++j) {
        const double w = weight[static_cast<size_t>(j)];
        for (int64_t c = 0; w > 0 && c < width; ++c) o[c] += w / sum * value(j)[c];
      }
    }
  }
  return output;
}

// Rows of a journal are rounded to a relative 2^-9 (bf16) or 2^-12 (f16) at most. That moves a
// value by as much, and a score, a sum of 16 products of up to 3 x 1 times 1/4, by up to a few
// times that: results move by about four roundings. A block of 32 such numbers turned has numbers
// of a size up to about 2, so that q8_0 moves them by up to 2 / 254 and q4_0 by up to 2 / 16.
double row_tolerance(DType rows) {
  if (rows == DType::q8_0) return 4 * 2.0 / 254;
  if (rows == DType::q4_0) return 4 * 2.0 / 16;
  if (rows == DType::bf16) return 4 * 0x1p-9;
  if (rows == DType::f16) return 4 * 0x1p-12;
  return OperatorCase().tolerance;
}

OperatorCase make_case(const Variant& variant) {
  OperatorCase result;
  const AttentionOptions& options = variant.options;
  result.name = "attention_" + variant.name;
  // Queries this large make the softmax peaked, as trained heads are.
  result.inputs = {{"q", options.heads * options.head_dim, {}, -3, 3},
                   {"k", options.kv_heads * options.head_dim, {}, -1, 1}};
  if (!options.value_in_key) {
    result.inputs.push_back({"v", options.kv_heads * value_dim(options), {}, -1, 1});
  }
  if (variant.sinks) result.inputs.push_back({"sinks", 0, {options.heads}, -1, 3});
  result.output_width = options.heads * value_dim(options);
  result.journals = {attention_journal(options)};
  result.journals[0].row_type = variant.rows;
  result.sees_later_rows = variant.mask != Mask::causal;
  result.tolerance = row_tolerance(variant.rows);
  // Gradients are of fresh segments, which are not rounded.
  result.gradient_tolerance = 5 * OperatorCase().tolerance;
  result.forward = [variant](const Context& context, const std::vector<Tensor>& inputs,
                             const CheckedBatch& batch) {
    Batch masked;
    masked.positions.assign(batch.positions().begin(), batch.positions().end());
    for (Segment segment : batch.segments()) {
      if (segment.parents.empty()) {
        segment.mask = variant.mask;
        segment.block = variant.block;
      }
      masked.segments.push_back(std::move(segment));
    }
    return attention(context, inputs[0], inputs[1],
                     variant.options.value_in_key ? Tensor() : inputs[2], variant.options, masked,
                     {0, 0}, variant.sinks ? inputs.back() : Tensor());
  };
  result.reference = [variant](const Values& inputs, const std::vector<int32_t>& positions) {
    return naive_attention(variant, inputs, positions);
  };
  return result;
}

// Attention to a window and, merged with it, to a segment and to fixed keys: in float64 one softmax
// over all of them. A key that both the window and the segment hold counts twice.
OperatorCase make_merged_case() {
  constexpr int64_t kFixed = 5;
  const AttentionOptions window{
      .heads = 2, .kv_heads = 2, .head_dim = 10, .value_dim = 6, .soft_cap = 4, .window = 6};
  AttentionOptions segment = window;
  segment.window = 0;
  segment.segment = 16;
  const int64_t dim = window.head_dim, key_width = window.heads * dim;
  const int64_t value_width = window.heads * window.value_dim;
  OperatorCase result;
  result.name = "attention_merged";
  result.inputs = {{"q", key_width, {}, -3, 3},
                   {"k", key_width, {}, -1, 1},
                   {"v", value_width, {}, -1, 1},
                   {"keys", 0, {kFixed, key_width}, -1, 1},
                   {"values", 0, {kFixed, value_width}, -1, 1}};
  result.output_width = value_width;
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
    std::vector<double> output(static_cast<size_t>(tokens * value_width));
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t head = 0; head < window.heads; ++head) {
        double sum = 0;
        double* o = output.data() + i * value_width + head * window.value_dim;
        const double* q = in[0].data() + i * key_width + head * dim;
        const auto attend = [&](const std::vector<double>& keys, const std::vector<double>& values,
                                int64_t j, double times) {
          const double* k = keys.data() + j * key_width + head * dim;
          const double* v = values.data() + j * value_width + head * window.value_dim;
          double score = 0;
          for (int64_t c = 0; c < dim; ++c) {
            score += q[c] * k[c] / std::sqrt(static_cast<double>(dim));
          }
          score = window.soft_cap * std::tanh(score / window.soft_cap);
          sum += times * std::exp(score);
          for (int64_t c = 0; c < window.value_dim; ++c) o[c] += times * std::exp(score) * v[c];
        };
        for (int64_t j = 0; j < kFixed; ++j) attend(in[3], in[4], j, 1);
        for (int64_t j = 0; j <= i; ++j) {
          const int64_t key = positions[static_cast<size_t>(j)];
          const int64_t row = positions[static_cast<size_t>(i)];
          const double times = (key > row - window.window ? 1 : 0) +
                               (key / segment.segment == row / segment.segment ? 1 : 0);
          attend(in[1], in[2], j, times);
        }
        for (int64_t c = 0; c < window.value_dim; ++c) o[c] /= sum;
      }
    }
    return output;
  };
  return result;
}

// Two attentions to the same keys and values, of which the first lends them and the second has
// queries of its own: [rows, 2 heads value_dim].
OperatorCase make_shared_case(std::string name, const AttentionOptions& options) {
  const Variant variant{.name = std::move(name), .options = options};
  OperatorCase result = make_case(variant);
  result.inputs.insert(result.inputs.begin(), result.inputs.front());
  result.inputs[0].name = "first_q";
  result.output_width *= 2;
  AttentionOptions lender = options, borrower = options;
  lender.keys = KeyOwner::lent;
  borrower.keys = KeyOwner::borrowed;
  result.journals = {attention_journal(lender)};
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    const Tensor parts[] = {
        attention(context, in[0], in[2], in[3], lender, batch, {0, 0}),
        attention(context, in[1], in[2], in[3], borrower, batch, {0, 0}),
    };
    return concatenate_columns(context, parts);
  };
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto width = static_cast<int64_t>(options.heads) * value_dim(options);
    const std::vector<double> parts[] = {
        naive_attention(variant, {in[0], in[2], in[3]}, positions),
        naive_attention(variant, {in[1], in[2], in[3]}, positions)};
    std::vector<double> output;
    for (int64_t row = 0; row < std::ssize(positions); ++row) {
      for (const std::vector<double>& part : parts) {
        output.insert(output.end(), part.begin() + row * width, part.begin() + (row + 1) * width);
      }
    }
    return output;
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> attention_cases() {
  const std::vector<Variant> variants = {
      {.name = "multi_head", .options = {.heads = 2, .kv_heads = 2, .head_dim = 16}},
      {.name = "grouped_query", .options = {.heads = 4, .kv_heads = 2, .head_dim = 32}},
      {.name = "multi_query",
       .options = {.heads = 3, .kv_heads = 1, .head_dim = 16, .scale = 0.5f}},
      {.name = "sliding_window",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 16, .window = 7}},
      {.name = "prefix",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 16, .window = 7, .prefix = 5}},
      {.name = "prefix_of_pages",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 8, .window = 9, .prefix = 70},
       .sinks = true},
      {.name = "prefix_of_segments",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 12, .segment = 24, .prefix = 3}},
      {.name = "segments", .options = {.heads = 2, .kv_heads = 2, .head_dim = 12, .segment = 24}},
      {.name = "odd_head_dim", .options = {.heads = 2, .kv_heads = 2, .head_dim = 20}},
      {.name = "narrow_values",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 20, .value_dim = 7}},
      {.name = "wide_values",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 8, .value_dim = 24}},
      {.name = "latent",
       .options = {.heads = 4, .head_dim = 24, .value_dim = 16, .value_in_key = true}},
      {.name = "soft_cap", .options = {.heads = 2, .kv_heads = 1, .head_dim = 16, .soft_cap = 2}},
      {.name = "sinks", .options = {.heads = 4, .kv_heads = 2, .head_dim = 16}, .sinks = true},
      {.name = "sinks_window",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 16, .soft_cap = 3, .window = 9},
       .sinks = true},
      {.name = "full", .options = {.heads = 2, .kv_heads = 1, .head_dim = 16}, .mask = Mask::full},
      {.name = "blocks",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 16},
       .mask = Mask::blocks,
       .block = 12},
      {.name = "bf16_rows",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 16},
       .rows = DType::bf16},
      {.name = "bf16_latent",
       .options = {.heads = 2, .head_dim = 20, .value_dim = 12, .value_in_key = true, .window = 40},
       .rows = DType::bf16},
      {.name = "f16_rows",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 16, .value_dim = 12},
       .rows = DType::f16},
      {.name = "q8_0_rows",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 32, .value_dim = 64},
       .rows = DType::q8_0},
      {.name = "q8_0_latent",
       .options = {.heads = 2, .head_dim = 64, .value_dim = 32, .value_in_key = true, .window = 40},
       .rows = DType::q8_0},
      {.name = "q4_0_rows",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 64},
       .rows = DType::q4_0}};
  std::vector<OperatorCase> cases;
  for (const Variant& variant : variants) cases.push_back(make_case(variant));
  cases.push_back(make_merged_case());
  cases.push_back(make_shared_case("shared", {.heads = 4, .kv_heads = 2, .head_dim = 12}));
  cases.push_back(make_shared_case(
      "shared_window", {.heads = 3, .kv_heads = 1, .head_dim = 8, .value_dim = 14, .window = 11}));
  return cases;
}

}  // namespace pronghorn::laws
