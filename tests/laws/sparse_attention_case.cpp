// Attention to some blocks of keys in the table of laws: by lists, MoBA, native sparse attention.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>

#include "choices.h"
#include "operator_case.h"
#include "ops/attention.h"
#include "ops/compressed_keys.h"
#include "ops/key_blocks.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn::laws {
namespace {

int64_t value_dim(const AttentionOptions& options) {
  return options.value_dim > 0 ? options.value_dim : options.head_dim;
}

// A matrix of doubles, as keys or values of several heads are.
struct Rows {
  const std::vector<double>& data;
  int64_t width, offset = 0;
  const double* head(int64_t row, int64_t h, int64_t dim) const {
    return data.data() + row * width + offset + h * dim;
  }
};

double score(const AttentionOptions& options, const double* q, const double* k) {
  const auto dim = static_cast<double>(options.head_dim);
  double sum = 0;
  for (int64_t c = 0; c < options.head_dim; ++c) sum += q[c] * k[c];
  sum *= options.scale != 0 ? double{options.scale} : 1 / std::sqrt(dim);
  return options.soft_cap > 0 ? options.soft_cap * std::tanh(sum / options.soft_cap) : sum;
}

// Softmax over the keys j < keys that sees() lets a head of row i see, one score at a time. The
// probabilities are given to `tell`.
using Sees = std::function<bool(int64_t i, int64_t head, int64_t j)>;
using Tell = std::function<void(int64_t i, int64_t head, const std::vector<double>& p)>;
void naive(const AttentionOptions& options, const std::vector<double>& q, int64_t rows,
           const Rows& keys, const Rows& values, int64_t count, const Sees& sees,
           std::vector<double>& out, int64_t out_width, int64_t out_column, const Tell& tell = {}) {
  const int64_t group = options.heads / options.kv_heads, width = value_dim(options);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t head = 0; head < options.heads; ++head) {
      const double* query = q.data() + (i * options.heads + head) * options.head_dim;
      std::vector<double> p(static_cast<size_t>(count));
      double sum = 0;
      for (int64_t j = 0; j < count; ++j) {
        if (!sees(i, head, j)) continue;
        // Scores stay below 20: no shift is needed in float64.
        sum += p[static_cast<size_t>(j)] =
            std::exp(score(options, query, keys.head(j, head / group, options.head_dim)));
      }
      double* o = out.data() + i * out_width + out_column + head * width;
      for (int64_t j = 0; j < count; ++j) {
        double& weight = p[static_cast<size_t>(j)];
        if (sum > 0) weight /= sum;
        const double* v = values.head(j, head / group, width);
        for (int64_t c = 0; c < width; ++c) o[c] += weight * v[c];
      }
      if (tell) tell(i, head, p);
    }
  }
}

// Lists that no number decides: about half of the blocks before a row's own, and the own mostly.
bool is_listed(int64_t index, int64_t list, int64_t block, int64_t own) {
  if (block == own) return (index + list) % 7 != 3;
  return block < own && (index * 5 + list * 3 + block * 11 + index / 9) % 4 < 2;
}

struct ListVariant {
  std::string name;
  AttentionOptions options;
  int64_t lists, block;
};

OperatorCase list_case(const ListVariant& variant) {
  const AttentionOptions& options = variant.options;
  const int64_t block = variant.block, lists = variant.lists;
  OperatorCase result;
  result.name = "attention_lists_" + variant.name;
  const int64_t key_width = options.kv_heads * options.head_dim;
  const int64_t value_width = options.kv_heads * value_dim(options);
  result.inputs = {{"q", options.heads * options.head_dim, {}, -3, 3}, {"k", key_width, {}, -1, 1}};
  if (!options.value_in_key) result.inputs.push_back({"v", value_width, {}, -1, 1});
  result.output_width = options.heads * value_dim(options);
  result.journals = {attention_journal(options)};
  result.gradient_tolerance = 1e-4;
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    constexpr int64_t kWidth = 14;
    BlockLists chosen;
    chosen.lists = lists;
    chosen.width = kWidth;
    chosen.block = block;
    chosen.blocks.assign(static_cast<size_t>(batch.rows() * lists * kWidth), -1);
    for (const Segment& segment : batch.segments()) {
      const int64_t before = segment.state == nullptr ? 0 : segment.state->length();
      for (int64_t i = 0; i < segment.length; ++i) {
        const int64_t index = index_in_sequence(segment, i, before);
        for (int64_t list = 0; list < lists; ++list) {
          int32_t* to = chosen.blocks.data() + ((segment.first_row + i) * lists + list) * kWidth;
          for (int64_t b = 0; b <= index / block; ++b) {
            if (is_listed(index, list, b, index / block)) *to++ = static_cast<int32_t>(b);
          }
        }
      }
    }
    return attention(context, in[0], in[1], options.value_in_key ? Tensor() : in[2], options, batch,
                     {0, 0}, {}, chosen);
  };
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto rows = std::ssize(positions);
    std::vector<double> out(static_cast<size_t>(rows * options.heads * value_dim(options)));
    const auto sees = [&](int64_t i, int64_t head, int64_t j) {
      const int64_t list = head / (options.heads / lists);
      if (j > i || !is_listed(i, list, j / block, i / block)) return false;
      const int64_t row = positions[static_cast<size_t>(i)],
                    key = positions[static_cast<size_t>(j)];
      return options.window == 0 || j < options.prefix || key > row - options.window;
    };
    const Rows keys{in[1], key_width};
    // A value that is in its key begins where that does: there is one key-value head then.
    const Rows values = options.value_in_key ? keys : Rows{in[2], value_width};
    naive(options, in[0], rows, keys, values, rows, sees, out, options.heads * value_dim(options),
          0);
    return out;
  };
  return result;
}

// MoBA (arXiv 2502.13189, equations 2 to 6): a query's own block, and those of the earlier ones
// with the largest product of the query and the mean of the block's keys.
OperatorCase moba_case(std::string name, const AttentionOptions& options) {
  OperatorCase result;
  result.name = "moba_" + name;
  const int64_t key_width = options.kv_heads * options.head_dim;
  const int64_t value_width = options.kv_heads * value_dim(options);
  const int64_t group = options.heads / options.kv_heads;
  result.inputs = {{"q", options.heads * options.head_dim, {}, -3, 3},
                   {"k", key_width, {}, -1, 1},
                   {"v", value_width, {}, -1, 1}};
  result.output_width = options.heads * value_dim(options);
  result.journals = {attention_journal(options)};
  result.gradient_tolerance = 1e-4;
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    return attention(context, in[0], in[1], in[2], options, batch, {0, 0});
  };
  const auto choices = std::make_shared<Choices>();
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto rows = std::ssize(positions);
    const Rows keys{in[1], key_width}, values{in[2], value_width};
    const Chosen& chosen = choices->at(in, [&] {
      Chosen all;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t own = i / options.block;
        std::vector<std::vector<int64_t>>& lists = all.emplace_back();
        for (int64_t head = 0; head < options.heads; ++head) {
          std::vector<double> scores(static_cast<size_t>(own + 1));
          const double* q = in[0].data() + (i * options.heads + head) * options.head_dim;
          for (int64_t j = 0; j < own * options.block; ++j) {
            const double* k = keys.head(j, head / group, options.head_dim);
            scores[static_cast<size_t>(j / options.block)] +=
                std::inner_product(q, q + options.head_dim, k, 0.0);
          }
          lists.push_back(
              best(scores, own, options.top_blocks, [&](int64_t b) { return b == own; }));
        }
      }
      return all;
    });
    std::vector<double> out(static_cast<size_t>(rows * options.heads * value_dim(options)));
    naive(
        options, in[0], rows, keys, values, rows,
        [&](int64_t i, int64_t head, int64_t j) {
          return j <= i && contains(chosen[static_cast<size_t>(i)][static_cast<size_t>(head)],
                                    j / options.block);
        },
        out, options.heads * value_dim(options), 0);
    return out;
  };
  return result;
}

// Entries from the rows of a block by one matrix [width, block width], attention to them, and
// attention to the blocks that its probabilities choose (NSA, arXiv 2502.11089, equations 7 to 12):
// [rows, 2 heads value_dim].
OperatorCase nsa_case(std::string name, const CompressedKeysOptions& options) {
  const AttentionOptions& heads = options.attention;
  const int64_t width = options.width(), output = heads.heads * value_dim(heads);
  const int64_t key_width = heads.kv_heads * heads.head_dim;
  const int64_t value_width = heads.kv_heads * value_dim(heads);
  OperatorCase result;
  result.name = "nsa_" + name;
  result.inputs = {{"q", heads.heads * heads.head_dim, {}, -3, 3},
                   {"raw", width, {}, -1, 1},
                   {"matrix", 0, {width, options.block * width}, -0.3, 0.3},
                   {"k", key_width, {}, -1, 1},
                   {"v", value_width, {}, -1, 1}};
  result.output_width = 2 * output;
  result.journals = {compressed_keys_journal(options), attention_journal(heads)};
  // Entries are sums of many products, and exponentials are taken of their products with q.
  result.tolerance = 4e-5;
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    CompressedKeys compressed(context, in[1], options, batch, {0, 0});
    const auto count = std::ssize(compressed.positions());
    Tensor entries;
    if (count > 0) {
      const Tensor rows = compressed.block_rows().reshape({count, options.block * width});
      entries = linear(context, rows, Weight(in[2]));
    }
    compressed.set(entries);
    const Tensor parts[] = {compressed.attend(context, in[0]),
                            attention(context, in[0], in[3], in[4], heads, batch, {0, 1}, {},
                                      compressed.choose(in[0]))};
    return concatenate_columns(context, parts);
  };
  const auto choices = std::make_shared<Choices>();
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto rows = std::ssize(positions);
    const int64_t count = rows < options.block ? 0 : (rows - options.block) / options.stride + 1;
    std::vector<double> entries(static_cast<size_t>(count * width));
    for (int64_t e = 0; e < count; ++e) {
      const double* from = in[1].data() + e * options.stride * width;
      for (int64_t c = 0; c < width; ++c) {
        const double* weights = in[2].data() + c * options.block * width;
        entries[static_cast<size_t>(e * width + c)] =
            std::inner_product(from, from + options.block * width, weights, 0.0);
      }
    }
    std::vector<double> out(static_cast<size_t>(rows * 2 * output));
    // importance[row][list][block]
    std::vector<std::vector<std::vector<double>>> importance(
        static_cast<size_t>(rows),
        std::vector<std::vector<double>>(
            static_cast<size_t>(heads.kv_heads),
            std::vector<double>(static_cast<size_t>(rows / options.select_block + 1))));
    const int64_t group = heads.heads / heads.kv_heads;
    naive(
        heads, in[0], rows, {entries, width}, {entries, width, key_width}, count,
        [&](int64_t i, int64_t, int64_t e) { return e * options.stride + options.block <= i + 1; },
        out, 2 * output, 0,
        [&](int64_t i, int64_t head, const std::vector<double>& p) {
          std::vector<double>& to =
              importance[static_cast<size_t>(i)][static_cast<size_t>(head / group)];
          for (int64_t e = 0; e < count; ++e) {
            for (int64_t at = e * options.stride; at < e * options.stride + options.block;
                 at += options.stride) {
              const auto b = static_cast<size_t>(at / options.select_block);
              if (b < to.size()) to[b] += p[static_cast<size_t>(e)];
            }
          }
        });
    const Chosen& chosen = choices->at(in, [&] {
      Chosen all;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t own = i / options.select_block;
        std::vector<std::vector<int64_t>>& lists = all.emplace_back();
        for (const std::vector<double>& scores : importance[static_cast<size_t>(i)]) {
          lists.push_back(best(scores, own, options.select_top, [&](int64_t b) {
            return b < options.select_first || b > own - options.select_last;
          }));
        }
      }
      return all;
    });
    naive(
        heads, in[0], rows, {in[3], key_width}, {in[4], value_width}, rows,
        [&](int64_t i, int64_t head, int64_t j) {
          return j <= i &&
                 contains(chosen[static_cast<size_t>(i)][static_cast<size_t>(head / group)],
                          j / options.select_block);
        },
        out, 2 * output, output);
    return out;
  };
  return result;
}

CompressedKeysOptions compressed(const AttentionOptions& heads, int64_t block, int64_t stride,
                                 int64_t select_block, int64_t select_top) {
  CompressedKeysOptions options;
  options.attention = heads;
  options.block = block;
  options.stride = stride;
  options.select_block = select_block;
  options.select_top = select_top;
  return options;
}

}  // namespace

std::vector<OperatorCase> sparse_attention_cases() {
  const std::vector<ListVariant> lists = {
      {"of_tiles", {.heads = 4, .kv_heads = 2, .head_dim = 12}, 2, 64},
      {"of_heads", {.heads = 4, .kv_heads = 2, .head_dim = 10, .value_dim = 7}, 4, 64},
      {"of_two_tiles", {.heads = 2, .kv_heads = 1, .head_dim = 16, .soft_cap = 3}, 2, 128},
      {"of_parts", {.heads = 6, .kv_heads = 1, .head_dim = 8}, 3, 16},
      {"of_a_window",
       {.heads = 2, .kv_heads = 2, .head_dim = 12, .window = 70, .prefix = 5},
       2,
       16},
      {"of_latents", {.heads = 3, .head_dim = 14, .value_dim = 9, .value_in_key = true}, 1, 32}};
  std::vector<OperatorCase> cases;
  for (const ListVariant& variant : lists) cases.push_back(list_case(variant));
  cases.push_back(moba_case(
      "grouped",
      {.heads = 4, .kv_heads = 2, .head_dim = 12, .value_dim = 10, .block = 64, .top_blocks = 2}));
  cases.push_back(
      moba_case("long", {.heads = 2, .kv_heads = 2, .head_dim = 9, .block = 128, .top_blocks = 1}));
  cases.push_back(nsa_case(
      "grouped",
      compressed({.heads = 4, .kv_heads = 2, .head_dim = 5, .value_dim = 4}, 8, 4, 16, 4)));
  cases.push_back(
      nsa_case("tiles", compressed({.heads = 3, .kv_heads = 1, .head_dim = 6}, 4, 4, 32, 4)));
  cases.push_back(
      nsa_case("long", compressed({.heads = 2, .kv_heads = 2, .head_dim = 3}, 32, 16, 64, 3)));
  return cases;
}

}  // namespace pronghorn::laws
