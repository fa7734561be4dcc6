// DeepSeek sparse attention in the table of laws: an indexer's choice, and attention to that.
#include <cmath>
#include <memory>

#include "choices.h"
#include "operator_case.h"
#include "ops/attention.h"
#include "ops/indexer.h"

namespace pronghorn::laws {
namespace {

// Scores of the keys up to row i: I_ij = sum_h w_ih relu(q_ih . k_j) (arXiv 2512.02556, equation
// 1). The indexer's q and weights are the first columns of q, its keys the first of k, so that
// every input has a gradient.
std::vector<double> index_scores(const IndexerOptions& options, const double* q, const double* k,
                                 int64_t key_width, int64_t i) {
  std::vector<double> scores;
  for (int64_t j = 0; j <= i; ++j) {
    double sum = 0;
    for (int64_t h = 0; h < options.heads; ++h) {
      double product = 0;
      for (int64_t c = 0; c < options.head_dim; ++c) {
        product += q[h * options.head_dim + c] * k[j * key_width + c];
      }
      sum += q[options.heads * options.head_dim + h] * std::max(0.0, product);
    }
    scores.push_back(sum);
  }
  return scores;
}

OperatorCase dsa_case(std::string name, const AttentionOptions& options,
                      const IndexerOptions& indexer) {
  const int64_t key_width = options.kv_heads * options.head_dim;
  const int64_t q_width = options.heads * options.head_dim;
  const int64_t value_dim = options.value_dim > 0 ? options.value_dim : options.head_dim;
  const int64_t value_width = options.kv_heads * value_dim;
  OperatorCase result;
  result.name = "dsa_" + name;
  result.inputs = {{"q", q_width, {}, -2, 2}, {"k", key_width, {}, -1, 1}};
  if (!options.value_in_key) result.inputs.push_back({"v", value_width, {}, -1, 1});
  result.output_width = options.heads * value_dim;
  result.journals = {attention_journal(options), indexer_journal(indexer)};
  result.gradient_tolerance = 1e-4;  // as of the other choices: sums of products of exponentials
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    const int64_t width = indexer.heads * indexer.head_dim;
    const IndexerInputs inputs = {in[0].column_slice(0, width),
                                  in[1].column_slice(0, indexer.head_dim),
                                  in[0].column_slice(width, indexer.heads)};
    const BlockLists lists = choose_keys(inputs, indexer, batch, {0, 1});
    return attention(context, in[0], in[1], options.value_in_key ? Tensor() : in[2], options, batch,
                     {0, 0}, {}, lists);
  };
  const auto choices = std::make_shared<Choices>();
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto rows = std::ssize(positions);
    const Chosen& chosen = choices->at(in, [&] {
      Chosen all;
      for (int64_t i = 0; i < rows; ++i) {
        const std::vector<double> scores =
            index_scores(indexer, in[0].data() + i * q_width, in[1].data(), key_width, i);
        all.push_back({best(scores, i, indexer.top, [](int64_t) { return false; })});
      }
      return all;
    });
    const int64_t group = options.heads / options.kv_heads;
    std::vector<double> out(static_cast<size_t>(rows * options.heads * value_dim));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t h = 0; h < options.heads; ++h) {
        const double* q = in[0].data() + i * q_width + h * options.head_dim;
        double* o = out.data() + (i * options.heads + h) * value_dim;
        double total = 0;
        const auto each = [&](const auto& body) {
          for (const int64_t j : chosen[static_cast<size_t>(i)][0]) {
            const double* k = in[1].data() + j * key_width + h / group * options.head_dim;
            const double product = std::inner_product(q, q + options.head_dim, k, 0.0);
            body(j, std::exp(product / std::sqrt(static_cast<double>(options.head_dim))));
          }
        };
        each([&](int64_t, double weight) { total += weight; });
        each([&](int64_t j, double weight) {
          const double* v = options.value_in_key
                                ? in[1].data() + j * key_width
                                : in[2].data() + j * value_width + h / group * value_dim;
          for (int64_t c = 0; c < value_dim; ++c) o[c] += weight / total * v[c];
        });
      }
    }
    return out;
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> indexer_cases() {
  return {dsa_case("latent", {.heads = 4, .head_dim = 14, .value_dim = 9, .value_in_key = true},
                   {.heads = 3, .head_dim = 10, .top = 24}),
          // One list for heads that have keys of their own; more than a tile, and not all of it.
          dsa_case("heads", {.heads = 4, .kv_heads = 2, .head_dim = 10, .value_dim = 7},
                   {.heads = 2, .head_dim = 8, .top = 70}),
          dsa_case("two_keys", {.heads = 2, .kv_heads = 2, .head_dim = 12},
                   {.heads = 1, .head_dim = 5, .top = 2})};
}

}  // namespace pronghorn::laws
