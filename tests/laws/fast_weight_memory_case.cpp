// Rows of the table of laws for fast-weight memories: the settings of TTT's and of Titans' rule
// that layers use.
#include "ops/fast_weight_memory.h"

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <variant>

#include "laws/fast_weight_memory_reference.h"
#include "laws/operator_case.h"

namespace pronghorn::laws {
namespace {

struct Member {
  std::string name;
  FastWeightMemoryOptions options;
  double largest_theta = 0.03;
};

bool is_ttt(const Member& member) { return std::holds_alternative<TttRule>(member.options.rule); }

TitansRule titans_rule(const Member& member) {
  return is_ttt(member) ? TitansRule{} : std::get<TitansRule>(member.options.rule);
}

// Hands out the inputs of a case in order.
template <typename Inputs, typename Value>
void distribute(const Member& member, const std::vector<Value>& in, Inputs& to) {
  const TitansRule rule = titans_rule(member);
  size_t next = 0;
  to.q = in[next++];
  to.k = in[next++];
  to.v = in[next++];
  to.theta = in[next++];
  if (rule.momentum) to.eta = in[next++];
  if (rule.forgetting) to.alpha = in[next++];
  if (is_ttt(member)) {
    to.token_idx = in[next++];
    to.norm_weight = in[next++];
    to.norm_bias = in[next++];
  }
  for (int64_t l = 0; l < member.options.depth; ++l) {
    to.weights.push_back(in[next++]);
    if (is_ttt(member)) to.biases.push_back(in[next++]);
  }
}

OperatorCase make_case(const Member& member) {
  const FastWeightMemoryOptions& o = member.options;
  const TitansRule rule = titans_rule(member);
  const int64_t width = o.heads * o.head_dim;
  // Gradients of a mini-batch add up at the same weights: steps of size theta diverge where
  // 2 theta sum |k|^2 passes 2, so keys and rates are as small as layers make them.
  const double k = 1 / std::sqrt(static_cast<double>(o.head_dim));
  OperatorCase result;
  result.name = "fast_weight_memory_" + member.name;
  result.inputs = {{"q", width, {}, -1, 1},
                   {"k", width, {}, -k, k},
                   {"v", width, {}, -1, 1},
                   {"theta", o.heads, {}, 0.2 * member.largest_theta, member.largest_theta}};
  if (rule.momentum) result.inputs.push_back({"eta", o.heads, {}, 0, 0.9});
  if (rule.forgetting) result.inputs.push_back({"alpha", o.heads, {}, 0, 0.2});
  if (is_ttt(member)) {
    result.inputs.push_back({"token_idx", 0, {o.mini_batch}, -0.05, 0.2});
    result.inputs.push_back({"norm_weight", 0, {o.heads, o.head_dim}, 0.5, 1.5});
    result.inputs.push_back({"norm_bias", 0, {o.heads, o.head_dim}, -0.5, 0.5});
  }
  for (int64_t l = 0; l < o.depth; ++l) {
    const int64_t in = o.in(l), out = o.out(l);
    const double range = 1.5 / std::sqrt(static_cast<double>(in));
    result.inputs.push_back({fmt::format("W{}", l), 0, {o.heads, in, out}, -range, range});
    if (is_ttt(member)) {
      result.inputs.push_back({fmt::format("b{}", l), 0, {o.heads, out}, -0.3, 0.3});
    }
  }
  result.output_width = width;
  result.journals = {fast_weight_memory_journal(o)};
  result.forward = [member](const Context& context, const std::vector<Tensor>& in,
                            const CheckedBatch& batch) {
    FastWeightMemoryInputs inputs;
    distribute(member, in, inputs);
    return fast_weight_memory(context, inputs, member.options, batch, {0, 0});
  };
  result.reference = [member](const Values& in, const std::vector<int32_t>& positions) {
    FastWeightMemoryValues values;
    distribute(member, in, values);
    return fast_weight_memory_reference(member.options, values, positions.size());
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> fast_weight_memory_cases() {
  const std::vector<Member> members = {
      {.name = "ttt_linear",
       .options = {.heads = 2, .head_dim = 8, .rule = TttRule{}},
       .largest_theta = 0.3},
      {.name = "ttt_mlp",
       .options = {.head_dim = 8, .depth = 2, .hidden_dim = 19, .rule = TttRule{}},
       .largest_theta = 0.2},
      {.name = "ttt_short",
       .options = {.head_dim = 8, .depth = 2, .hidden_dim = 10, .mini_batch = 4, .rule = TttRule{}},
       .largest_theta = 0.2},
      {.name = "linear",
       .options = {.heads = 2,
                   .head_dim = 17,
                   .rule = TitansRule{.momentum = true, .forgetting = true}}},
      {.name = "titans",
       .options = {.head_dim = 16,
                   .depth = 2,
                   .hidden_dim = 33,
                   .rule = TitansRule{.momentum = true, .forgetting = true}}},
      {.name = "to_start",
       .options = {.head_dim = 16,
                   .depth = 2,
                   .hidden_dim = 33,
                   .rule =
                       TitansRule{.momentum = true, .forgetting = true, .forget_to_start = true}}},
      {.name = "no_momentum",
       .options = {.heads = 3,
                   .head_dim = 5,
                   .depth = 2,
                   .hidden_dim = 12,
                   .rule = TitansRule{.forgetting = true, .forget_to_start = true}}},
      {.name = "no_forgetting",
       .options =
           {.head_dim = 12, .depth = 2, .hidden_dim = 7, .rule = TitansRule{.momentum = true}}},
      {.name = "deep",
       .options = {.head_dim = 6,
                   .depth = 4,
                   .hidden_dim = 9,
                   .mini_batch = 4,
                   .rule =
                       TitansRule{.momentum = true, .forgetting = true, .forget_to_start = true}}},
      {.name = "single_tokens",
       .options = {.heads = 2,
                   .head_dim = 6,
                   .mini_batch = 1,
                   .rule =
                       TitansRule{.momentum = true, .forgetting = true, .forget_to_start = true}},
       .largest_theta = 0.2},
      {.name = "online",
       .options = {.head_dim = 16,
                   .depth = 2,
                   .hidden_dim = 33,
                   .rule = TitansRule{.momentum = true,
                                      .forgetting = true,
                                      .forget_to_start = true,
                                      .online_errors = true,
                                      .error_limit = 1.7f,
                                      .hidden_rate = 0.3f}},
       .largest_theta = 0.2},
      {.name = "online_linear",
       .options = {.heads = 2,
                   .head_dim = 9,
                   .mini_batch = 8,
                   .rule = TitansRule{.momentum = true, .forgetting = true, .online_errors = true}},
       .largest_theta = 0.2},
      {.name = "online_deep",
       .options = {.head_dim = 7,
                   .depth = 3,
                   .hidden_dim = 9,
                   .rule = TitansRule{.forgetting = true,
                                      .forget_to_start = true,
                                      .online_errors = true,
                                      .hidden_rate = 0.5f}},
       .largest_theta = 0.1},
      {.name = "online_lagged",
       .options = {.head_dim = 9,
                   .depth = 2,
                   .hidden_dim = 18,
                   .rule = TitansRule{.momentum = true,
                                      .forgetting = true,
                                      .forget_to_start = true,
                                      .online_errors = true,
                                      .read_interval = 32}}},
      // Errors are about sqrt(head_dim / 3) long: some are within the limit, some are not.
      {.name = "limited",
       .options = {.head_dim = 9,
                   .depth = 2,
                   .hidden_dim = 14,
                   .rule = TitansRule{.momentum = true, .forgetting = true, .error_limit = 1.7f}}},
      {.name = "limited_single",
       .options = {.heads = 2,
                   .head_dim = 7,
                   .mini_batch = 1,
                   .rule = TitansRule{.momentum = true, .forgetting = true, .error_limit = 1.5f}},
       .largest_theta = 0.2},
      {.name = "lagged",
       .options = {.head_dim = 9,
                   .depth = 2,
                   .hidden_dim = 18,
                   .mini_batch = 8,
                   .rule = TitansRule{.momentum = true, .forgetting = true, .read_interval = 64}}},
  };
  std::vector<OperatorCase> cases;
  for (const Member& member : members) cases.push_back(make_case(member));
  return cases;
}

}  // namespace pronghorn::laws
