// Rows of the table of laws for log-linear attention: the reference keeps the buckets of a Fenwick
// tree and carries them as a binary counter does (arXiv 2506.04761, section 3.2).
#include <algorithm>
#include <cmath>

#include "laws/operator_case.h"
#include "ops/log_linear_state.h"

namespace pronghorn::laws {
namespace {

struct Member {
  std::string name;
  LogLinearOptions options;
  bool skip = false;
  double lowest_log_decay = -0.2;
};

// One head: states [levels][key_dim value_dim].
class Buckets {
 public:
  Buckets(const LogLinearOptions& options, bool delta_rule)
      : options_(options),
        delta_rule_(delta_rule),
        states_(static_cast<size_t>(options.levels),
                std::vector<double>(
                    static_cast<size_t>(options.state.key_dim * options.state.value_dim))) {}

  void write(int64_t t, const double* k, const double* v, double decay, double beta) {
    if (t > 0 && t % options_.bucket == 0) carry(t / options_.bucket - 1);
    const int64_t keys = options_.state.key_dim, values = options_.state.value_dim;
    for (std::vector<double>& state : states_) {
      for (int64_t c = 0; c < values; ++c) {
        double held = 0;
        for (int64_t r = 0; r < keys; ++r) {
          double& s = state[static_cast<size_t>(r * values + c)];
          s *= decay;
          held += s * k[r];
        }
        const double written = &state == &states_[0] ? v[c] : 0;
        const double u = beta * (written - (delta_rule_ ? held : 0));
        for (int64_t r = 0; r < keys; ++r) state[static_cast<size_t>(r * values + c)] += k[r] * u;
      }
    }
  }

  double read(size_t level, const double* q, int64_t column) const {
    double sum = 0;
    for (int64_t r = 0; r < options_.state.key_dim; ++r) {
      sum += states_[level][static_cast<size_t>(r * options_.state.value_dim + column)] * q[r];
    }
    return sum * options_.state.query_scale;
  }

 private:
  // Bucket `full` is full: all levels up to its lowest bit that is not set become one.
  void carry(int64_t full) {
    int64_t ones = 0;
    while (full >> ones & 1) ++ones;
    const auto to = static_cast<size_t>(std::min(ones + 1, options_.levels - 1));
    for (size_t level = 0; level < to; ++level) {
      for (size_t i = 0; i < states_[level].size(); ++i) states_[to][i] += states_[level][i];
      states_[level].assign(states_[level].size(), 0);
    }
  }

  LogLinearOptions options_;
  bool delta_rule_;
  std::vector<std::vector<double>> states_;
};

std::vector<double> reference(const Member& member, const Values& in, int64_t tokens) {
  const OuterProductStateOptions& o = member.options.state;
  const int64_t heads = o.value_heads, levels = member.options.levels;
  std::vector<double> out(static_cast<size_t>(tokens * heads * o.value_dim));
  for (int64_t h = 0; h < heads; ++h) {
    Buckets buckets(member.options, o.delta_rule);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t key = (t * o.key_heads + h / (heads / o.key_heads)) * o.key_dim;
      const int64_t value = (t * heads + h) * o.value_dim;
      const auto gate = static_cast<size_t>(t * heads + h);
      buckets.write(t, in[1].data() + key, in[2].data() + value, std::exp(in[3][gate]),
                    in[4][gate]);
      for (int64_t c = 0; c < o.value_dim; ++c) {
        double sum =
            member.skip ? in[6][static_cast<size_t>(h)] * in[2][static_cast<size_t>(value + c)] : 0;
        for (int64_t l = 0; l < levels; ++l) {
          sum += in[5][static_cast<size_t>((t * levels + l) * heads + h)] *
                 buckets.read(static_cast<size_t>(l), in[0].data() + key, c);
        }
        out[static_cast<size_t>(value + c)] = sum;
      }
    }
  }
  return out;
}

OperatorCase make_case(const Member& member) {
  const OuterProductStateOptions& o = member.options.state;
  const double k = 1 / std::sqrt(static_cast<double>(o.key_dim));
  OperatorCase result;
  result.name = "log_linear_state_" + member.name;
  result.inputs = {{"q", o.key_heads * o.key_dim, {}, -1, 1},
                   {"k", o.key_heads * o.key_dim, {}, -k, k},
                   {"v", o.value_heads * o.value_dim, {}, -1, 1},
                   {"log_decay", o.value_heads, {}, member.lowest_log_decay, 0},
                   {"beta", o.value_heads, {}, 0, 1},
                   {"weights", member.options.levels * o.value_heads, {}, 0, 1}};
  if (member.skip) result.inputs.push_back({"skip", 0, {o.value_heads}, -1, 1});
  result.output_width = o.value_heads * o.value_dim;
  result.journals = log_linear_state_journals(member.options);
  result.forward = [member](const Context& context, const std::vector<Tensor>& in,
                            const CheckedBatch& batch) {
    OuterProductStateInputs inputs{in[0], in[1], in[2], in[3], in[4], {}};
    if (member.skip) inputs.skip = in[6];
    std::vector<JournalSlot> slots;
    for (int64_t l = 0; l < member.options.levels; ++l) slots.push_back({0, l});
    return log_linear_state(context, inputs, in[5], member.options, batch, slots);
  };
  result.reference = [member](const Values& in, const std::vector<int32_t>& positions) {
    return reference(member, in, static_cast<int64_t>(positions.size()));
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> log_linear_state_cases() {
  return {
      make_case(
          {.name = "mamba2",
           .options = {.state = {.value_heads = 2, .key_heads = 1, .key_dim = 8, .value_dim = 16},
                       .levels = 6},
           .skip = true}),
      // More tokens than the tree has buckets for.
      make_case({.name = "gated_delta",
                 .options = {.state = {.value_heads = 2,
                                       .key_heads = 2,
                                       .key_dim = 16,
                                       .value_dim = 16,
                                       .query_scale = 0.25f,
                                       .delta_rule = true},
                             .levels = 4}}),
      make_case({.name = "buckets",
                 .options = {.state = {.value_heads = 4,
                                       .key_heads = 2,
                                       .key_dim = 7,
                                       .value_dim = 9,
                                       .delta_rule = true},
                             .levels = 3,
                             .bucket = 4}}),
  };
}

}  // namespace pronghorn::laws
