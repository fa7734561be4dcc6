// Compressive memories in the table of laws.
#include <cmath>
#include <numeric>

#include "operator_case.h"
#include "ops/compressive_memory.h"

namespace pronghorn::laws {
namespace {

double sigma(double x) { return x > 0 ? x + 1 : std::exp(x); }  // ELU(x) + 1

// One memory, token by token (arXiv 2404.07143, equations 3 to 5): M and z of the segments before
// are read, and what a token writes is added when its segment ends.
struct NaiveMemory {
  NaiveMemory(int64_t keys, int64_t values)
      : key_dim(keys),
        value_dim(values),
        m(static_cast<size_t>(keys * values)),
        z(static_cast<size_t>(keys)),
        next_m(m),
        next_z(z) {}

  std::vector<double> look_up(const double* x) const {
    std::vector<double> out(static_cast<size_t>(value_dim));
    double total = 0;
    for (int64_t i = 0; i < key_dim; ++i) {
      total += sigma(x[i]) * z[static_cast<size_t>(i)];
      for (int64_t c = 0; c < value_dim; ++c) {
        out[static_cast<size_t>(c)] += sigma(x[i]) * m[static_cast<size_t>(i * value_dim + c)];
      }
    }
    for (double& value : out) value = total > 0 ? value / total : 0;
    return out;
  }
  void write(const double* k, const double* v, bool delta_rule) {
    const std::vector<double> known = look_up(k);
    for (int64_t i = 0; i < key_dim; ++i) {
      next_z[static_cast<size_t>(i)] += sigma(k[i]);
      for (int64_t c = 0; c < value_dim; ++c) {
        const double u = v[c] - (delta_rule ? known[static_cast<size_t>(c)] : 0);
        next_m[static_cast<size_t>(i * value_dim + c)] += sigma(k[i]) * u;
      }
    }
  }
  void end_segment() {
    m = next_m;
    z = next_z;
  }

  int64_t key_dim, value_dim;
  std::vector<double> m, z, next_m, next_z;
};

OperatorCase memory_case(std::string name, const CompressiveMemoryOptions& options) {
  const int64_t key_dim = options.key_dim, value_dim = options.value_dim;
  const int64_t group = options.heads / options.kv_heads;
  OperatorCase result;
  result.name = "compressive_memory_" + name;
  result.inputs = {{"q", options.heads * key_dim, {}, -2, 2},
                   {"k", options.kv_heads * key_dim, {}, -2, 2},
                   {"v", options.kv_heads * value_dim, {}, -1, 1}};
  result.output_width = options.heads * value_dim;
  result.journals = {compressive_memory_journal(options)};
  // With the delta rule segments feed on one another, through a quotient each.
  result.tolerance = 4e-5;
  result.gradient_tolerance = 4e-4;
  result.forward = [=](const Context& context, const std::vector<Tensor>& in,
                       const CheckedBatch& batch) {
    return compressive_memory(context, in[0], in[1], in[2], options, batch, {0, 0});
  };
  result.reference = [=](const Values& in, const std::vector<int32_t>& positions) {
    const auto rows = std::ssize(positions);
    std::vector<double> out;
    std::vector<NaiveMemory> memories(static_cast<size_t>(options.kv_heads),
                                      NaiveMemory(key_dim, value_dim));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t g = 0; g < options.kv_heads; ++g) {
        NaiveMemory& memory = memories[static_cast<size_t>(g)];
        if (i > 0 && i % options.segment == 0) memory.end_segment();
        memory.write(in[1].data() + (i * options.kv_heads + g) * key_dim,
                     in[2].data() + (i * options.kv_heads + g) * value_dim, options.delta_rule);
      }
      for (int64_t h = 0; h < options.heads; ++h) {
        const std::vector<double> read = memories[static_cast<size_t>(h / group)].look_up(
            in[0].data() + (i * options.heads + h) * key_dim);
        out.insert(out.end(), read.begin(), read.end());
      }
    }
    return out;
  };
  return result;
}

}  // namespace

std::vector<OperatorCase> compressive_memory_cases() {
  return {memory_case("linear",
                      {.heads = 4, .kv_heads = 2, .key_dim = 10, .value_dim = 7, .segment = 32}),
          memory_case("delta", {.heads = 3,
                                .kv_heads = 1,
                                .key_dim = 6,
                                .value_dim = 9,
                                .segment = 16,
                                .delta_rule = true}),
          memory_case("delta_wide", {.heads = 2,
                                     .kv_heads = 2,
                                     .key_dim = 19,
                                     .value_dim = 17,
                                     .segment = 48,
                                     .delta_rule = true})};
}

}  // namespace pronghorn::laws
