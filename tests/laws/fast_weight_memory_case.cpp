// Rows of the table of laws for fast-weight memories: TTT's, Titans', and what lies between.
#include "ops/fast_weight_memory.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "laws/fast_weight_memory_reference.h"
#include "laws/operator_case.h"

namespace pronghorn::laws {
namespace {

struct Member {
  std::string name;
  FastWeightMemoryOptions options;
  bool token_idx = false;
  double largest_theta = 0.03;
};

// Hands out the inputs of a case in order.
template <typename Inputs, typename Value>
void distribute(const Member& member, const std::vector<Value>& in, Inputs& to) {
  const FastWeightMemoryOptions& o = member.options;
  size_t next = 0;
  to.q = in[next++];
  to.k = in[next++];
  to.v = in[next++];
  to.theta = in[next++];
  if (o.momentum) to.eta = in[next++];
  if (o.forgetting) to.alpha = in[next++];
  if (member.token_idx) to.token_idx = in[next++];
  if (o.residual_norm) {
    to.norm_weight = in[next++];
    to.norm_bias = in[next++];
  }
  for (int64_t l = 0; l < o.depth; ++l) {
    to.weights.push_back(in[next++]);
    if (o.bias) to.biases.push_back(in[next++]);
  }
}

OperatorCase make_case(const Member& member) {
  const FastWeightMemoryOptions& o = member.options;
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
  if (o.momentum) result.inputs.push_back({"eta", o.heads, {}, 0, 0.9});
  if (o.forgetting) result.inputs.push_back({"alpha", o.heads, {}, 0, 0.2});
  if (member.token_idx) result.inputs.push_back({"token_idx", 0, {o.mini_batch}, -0.05, 0.2});
  if (o.residual_norm) {
    result.inputs.push_back({"norm_weight", 0, {o.heads, o.head_dim}, 0.5, 1.5});
    result.inputs.push_back({"norm_bias", 0, {o.heads, o.head_dim}, -0.5, 0.5});
  }
  for (int64_t l = 0; l < o.depth; ++l) {
    const int64_t in = o.in(l), out = o.out(l);
    const double range = 1.5 / std::sqrt(static_cast<double>(in));
    result.inputs.push_back({fmt::format("W{}", l), 0, {o.heads, in, out}, -range, range});
    if (o.bias) {
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
      // {heads, head_dim, depth, hidden_dim, mini_batch, read_interval, bias, momentum, forgetting,
      //  forget_to_start, online_errors, residual_norm, loss_factor, error_limit, hidden_rate},
      // token_idx, largest theta
      {"ttt_linear", {2, 8, 1, 0, 16, 0, true, false, false, false, false, true, 1}, true, 0.3},
      {"ttt_mlp", {1, 8, 2, 19, 16, 0, true, false, false, false, false, true, 1}, true, 0.2},
      {"linear", {2, 17, 1, 0, 16, 0, false, true, true, false, false, false, 2}},
      {"titans", {1, 16, 2, 33, 16, 0, false, true, true, true, false, false, 2}},
      {"to_zero", {1, 16, 2, 33, 16, 0, false, true, true, false, false, false, 2}},
      {"no_momentum", {3, 5, 2, 12, 16, 0, false, false, true, true, false, false, 2}},
      {"no_forgetting", {1, 12, 2, 7, 16, 0, true, true, false, false, false, false, 2}},
      {"deep", {1, 6, 4, 9, 16, 0, false, true, true, true, false, false, 2}},
      {"everything", {1, 8, 3, 10, 4, 0, true, true, true, true, false, true, 1}, true},
      {"bias_to_zero", {1, 8, 3, 10, 4, 0, true, true, true, false, false, false, 1}, true},
      {"single_tokens", {2, 6, 1, 0, 1, 0, false, true, true, true, false, false, 2}, false, 0.2},
      {"online",
       {1, 16, 2, 33, 16, 0, false, true, true, true, true, false, 2, 1.7f, 0.3f},
       false,
       0.2},
      {"online_linear", {2, 9, 1, 0, 8, 0, true, true, true, false, true, true, 1}, true, 0.2},
      {"online_deep",
       {1, 7, 3, 9, 16, 0, true, false, true, true, true, false, 2, 0, 0.5f},
       false,
       0.1},
      {"online_lagged", {1, 9, 2, 18, 16, 32, false, true, true, true, true, false, 2}},
      // Errors are about sqrt(head_dim / 3) long: some are within the limit, some are not.
      {"limited", {1, 9, 2, 14, 16, 0, false, true, true, false, false, false, 2, 1.7f}},
      {"limited_single",
       {2, 7, 1, 0, 1, 0, false, true, true, false, false, false, 2, 1.5f},
       false,
       0.2},
      {"lagged", {1, 9, 2, 18, 16, 32, false, true, true, true, false, false, 2}},
      {"lagged_bias", {1, 8, 2, 12, 8, 64, true, false, false, false, false, true, 1}, true, 0.2},
  };
  std::vector<OperatorCase> cases;
  for (const Member& member : members) cases.push_back(make_case(member));
  return cases;
}

}  // namespace pronghorn::laws
