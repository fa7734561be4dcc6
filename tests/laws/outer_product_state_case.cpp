// Rows of the table of laws for outer-product states: the members of the family that models use.
#include <cmath>
#include <span>

#include "laws/operator_case.h"
#include "laws/outer_product_state_reference.h"
#include "ops/pointwise.h"

namespace pronghorn::laws {
namespace {

struct Member {
  std::string name;
  OuterProductStateOptions options;
  bool log_decay = true, beta = true, skip = false;
  double lowest_log_decay = -0.5, largest_beta = 1;
};

OperatorCase make_case(const Member& member) {
  const OuterProductStateOptions& o = member.options;
  // Layers normalise the keys of a delta rule; entries this small keep |k| <= 1.
  const double k = 1 / std::sqrt(static_cast<double>(o.key_dim));
  OperatorCase result;
  result.name = "outer_product_state_" + member.name;
  // A token's updates beside one another.
  const int64_t keys = o.updates * o.key_heads * o.key_dim, heads = o.updates * o.value_heads;
  result.inputs = {
      {"q", keys, {}, -1, 1}, {"k", keys, {}, -k, k}, {"v", heads * o.value_dim, {}, -1, 1}};
  if (member.log_decay) {
    const int64_t decays = heads * (o.channel_decay ? o.key_dim : 1);
    result.inputs.push_back({"log_decay", decays, {}, member.lowest_log_decay, 0});
  }
  if (member.beta) {
    result.inputs.push_back({"beta", heads, {}, 0, member.largest_beta});
  }
  if (member.skip) result.inputs.push_back({"skip", 0, {o.value_heads}, -1, 1});
  result.output_width = heads * o.value_dim;
  result.journals = {outer_product_state_journal(o)};
  result.forward = [member](const Context& context, const std::vector<Tensor>& in,
                            const CheckedBatch& batch) {
    size_t next = 3;
    const int64_t updates = member.options.updates, rows = batch.rows();
    const auto apart = [&](const Tensor& x) {
      if (updates == 1) return x;
      return concatenate_columns(context, std::span(&x, 1))
          .reshape({rows * updates, x.columns() / updates});
    };
    OuterProductStateInputs inputs{apart(in[0]), apart(in[1]), apart(in[2]), {}, {}, {}};
    if (member.log_decay) inputs.log_decay = apart(in[next++]);
    if (member.beta) inputs.beta = apart(in[next++]);
    if (member.skip) inputs.skip = in[next++];
    const Tensor out = outer_product_state(context, inputs, member.options, batch, {0, 0});
    return out.reshape({rows, updates * out.columns()});
  };
  result.reference = [member](const Values& in, const std::vector<int32_t>& positions) {
    size_t next = 3;
    OuterProductValues values{in[0], in[1], in[2], {}, {}, {}};
    if (member.log_decay) values.log_decay = in[next++];
    if (member.beta) values.beta = in[next++];
    if (member.skip) values.skip = in[next++];
    std::vector<double> state;
    const int64_t tokens = std::ssize(positions) * member.options.updates;
    return outer_product_reference(member.options, values, tokens, state);
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> outer_product_state_cases() {
  const std::vector<Member> members = {
      {.name = "mamba2",
       .options = {.value_heads = 4, .key_heads = 1, .key_dim = 16, .value_dim = 32},
       .skip = true},
      {.name = "odd_groups",
       .options =
           {.value_heads = 6, .key_heads = 2, .key_dim = 12, .value_dim = 17, .query_scale = 0.5f},
       .skip = true},
      {.name = "retnet",
       .options =
           {.value_heads = 2, .key_heads = 2, .key_dim = 16, .value_dim = 32, .query_scale = 0.25f},
       .beta = false,
       .lowest_log_decay = -0.1},
      {.name = "strong_decay",
       .options = {.value_heads = 2, .key_heads = 1, .key_dim = 8, .value_dim = 16},
       .lowest_log_decay = -100},
      {.name = "gated_delta",
       .options = {.value_heads = 2,
                   .key_heads = 2,
                   .key_dim = 16,
                   .value_dim = 32,
                   .query_scale = 0.25f,
                   .delta_rule = true}},
      {.name = "gated_delta_grouped",
       .options =
           {.value_heads = 4, .key_heads = 2, .key_dim = 19, .value_dim = 21, .delta_rule = true},
       .skip = true,
       .lowest_log_decay = -0.1,
       .largest_beta = 2},
      {.name = "delta",
       .options =
           {.value_heads = 2, .key_heads = 2, .key_dim = 16, .value_dim = 64, .delta_rule = true},
       .log_decay = false},
      {.name = "gla",
       .options = {.value_heads = 2,
                   .key_heads = 2,
                   .key_dim = 16,
                   .value_dim = 32,
                   .query_scale = 0.25f,
                   .channel_decay = true},
       .beta = false},
      {.name = "channels_strong_decay",
       .options = {.value_heads = 2,
                   .key_heads = 2,
                   .key_dim = 11,
                   .value_dim = 16,
                   .channel_decay = true},
       .skip = true,
       .lowest_log_decay = -100},
      {.name = "kda",
       .options = {.value_heads = 4,
                   .key_heads = 2,
                   .key_dim = 12,
                   .value_dim = 19,
                   .query_scale = 0.25f,
                   .delta_rule = true,
                   .channel_decay = true},
       .largest_beta = 2},
      // Several writes a token, with decays between them.
      {.name = "four_updates",
       .options = {.value_heads = 4, .key_heads = 2, .key_dim = 11, .value_dim = 17, .updates = 4},
       .skip = true},
      {.name = "delta_updates",
       .options = {.value_heads = 2,
                   .key_heads = 2,
                   .key_dim = 16,
                   .value_dim = 20,
                   .delta_rule = true,
                   .updates = 2},
       .log_decay = false},
      {.name = "most_updates",
       .options = {.value_heads = 1,
                   .key_heads = 1,
                   .key_dim = 8,
                   .value_dim = 16,
                   .updates = kMostUpdates}},
  };
  std::vector<OperatorCase> cases;
  for (const Member& member : members) cases.push_back(make_case(member));
  return cases;
}

}  // namespace pronghorn::laws
