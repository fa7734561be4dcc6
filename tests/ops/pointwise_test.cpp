#include "ops/pointwise.h"

#include <gmock/gmock.h>

#include <numbers>

#include "base/error.h"
#include "ops/operator_check.h"
#include "ops/optimizer_kernels.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::Input;
using check::OperatorCheck;
using check::Values;
using Row = std::vector<double>;

// Not a multiple of any vector's lanes.
constexpr int64_t kColumns = 37;
constexpr float kEpsilon = 1e-5f;

std::vector<Input> matrices(int64_t rows, int count, int64_t columns = kColumns) {
  return std::vector<Input>(static_cast<size_t>(count), Input{{rows, columns}});
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid_of(x); }
double softplus(double x) { return std::log1p(std::exp(x)); }

// An operator of one input, element by element.
OperatorCheck unary(std::string name, std::function<Tensor(const Context&, const Tensor&)> forward,
                    std::function<double(double)> function) {
  OperatorCheck check;
  check.name = std::move(name);
  check.inputs = [](int64_t rows) { return std::vector<Input>{{{rows, kColumns}, -6, 6}}; };
  check.forward = [forward](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{forward(context, in[0])};
  };
  check.reference = [function](const Values& in, int64_t) {
    Row y;
    for (const double x : in[0]) y.push_back(function(x));
    return Values{y};
  };
  return check;
}

TEST(Pointwise, Add) {
  OperatorCheck check;
  check.name = "add";
  check.inputs = [](int64_t rows) { return matrices(rows, 2); };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{add(context, in[0], in[1])};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[0];
    for (size_t i = 0; i < y.size(); ++i) y[i] += in[1][i];
    return Values{y};
  };
  check_operator(check);
}

TEST(Pointwise, Multiply) {
  OperatorCheck check;
  check.name = "multiply";
  check.inputs = [](int64_t rows) { return matrices(rows, 2); };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{multiply(context, in[0], in[1])};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[0];
    for (size_t i = 0; i < y.size(); ++i) y[i] *= in[1][i];
    return Values{y};
  };
  check_operator(check);
}

TEST(Pointwise, OneTensorAsBothInputs) {
  check_operator(unary(
      "multiply(x, x)", [](const Context& c, const Tensor& x) { return multiply(c, x, x); },
      [](double x) { return x * x; }));
  check_operator(unary(
      "add(x, x)", [](const Context& c, const Tensor& x) { return add(c, x, x); },
      [](double x) { return 2 * x; }));
  check_operator(unary(
      "swiglu(x, x)", [](const Context& c, const Tensor& x) { return swiglu(c, x, x); },
      [](double x) { return silu(x) * x; }));
}

TEST(Pointwise, AddBias) {
  OperatorCheck check;
  check.name = "add_bias";
  check.inputs = [](int64_t rows) { return std::vector<Input>{{{rows, kColumns}}, {{kColumns}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{add_bias(context, in[0], in[1])};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[0];
    for (size_t i = 0; i < y.size(); ++i) y[i] += in[1][i % kColumns];
    return Values{y};
  };
  check_operator(check);
}

TEST(Pointwise, Unary) {
  check_operator(unary(
      "scale", [](const Context& c, const Tensor& x) { return scale(c, x, -0.75f); },
      [](double x) { return -0.75 * x; }));
  check_operator(unary(
      "sigmoid", [](const Context& c, const Tensor& x) { return sigmoid(c, x); }, sigmoid_of));
  check_operator(unary(
      "gelu", [](const Context& c, const Tensor& x) { return gelu(c, x, false); },
      [](double x) { return x * 0.5 * std::erfc(-x / std::numbers::sqrt2); }));
  check_operator(unary(
      "gelu tanh", [](const Context& c, const Tensor& x) { return gelu(c, x, true); },
      [](double x) {
        const double inner = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
        return 0.5 * x * (1 + std::tanh(inner));
      }));
  const auto activation = [](Activation kind) {
    return [kind](const Context& c, const Tensor& x) { return activate(c, x, kind); };
  };
  check_operator(unary("silu", activation(Activation::silu), silu));
  check_operator(
      unary("relu", activation(Activation::relu), [](double x) { return std::max(x, 0.0); }));
  check_operator(unary("relu squared", activation(Activation::relu_squared),
                       [](double x) { return std::max(x, 0.0) * x; }));
  check_operator(unary("exp", activation(Activation::exp), [](double x) { return std::exp(x); }));
  check_operator(unary("softplus", activation(Activation::softplus), softplus));
  check_operator(unary("log_sigmoid", activation(Activation::log_sigmoid),
                       [](double x) { return -softplus(-x); }));
  check_operator(unary("elu plus one", activation(Activation::elu_plus_one),
                       [](double x) { return x > 0 ? x + 1 : std::exp(x); }));
  check_operator(unary("swoosh_r", activation(Activation::swoosh_r), [](double x) {
    return std::log(1 + std::exp(x - 1)) - 0.08 * x - 0.313261687;
  }));
  check_operator(unary("swoosh_l", activation(Activation::swoosh_l),
                       [](double x) { return std::log(1 + std::exp(x - 4)) - 0.08 * x - 0.035; }));
  // A cap in the middle of the inputs, and one far above them, where the result is nearly the
  // input.
  for (const double cap : {1.5, 40.0}) {
    check_operator(unary(
        fmt::format("soft_cap {}", cap),
        [cap](const Context& c, const Tensor& x) {
          return soft_cap(c, x, static_cast<float>(cap));
        },
        [cap](double x) { return cap * std::tanh(x / cap); }));
  }
}

TEST(Pointwise, Gated) {
  using Pair = std::pair<Activation, std::function<double(double)>>;
  for (const auto& [kind, function] : std::vector<Pair>{
           {Activation::silu, silu},
           {Activation::relu_squared, [](double x) { return std::max(x, 0.0) * x; }},
           {Activation::gelu,
            [](double x) { return x * 0.5 * std::erfc(-x / std::numbers::sqrt2); }}}) {
    OperatorCheck check;
    check.name = fmt::format("gated {}", static_cast<int>(kind));
    check.inputs = [](int64_t rows) { return matrices(rows, 2); };
    check.forward = [kind = kind](const Context& context, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{gated(context, in[0], in[1], kind)};
    };
    check.reference = [function = function](const Values& in, int64_t) {
      Row y = in[1];
      for (size_t i = 0; i < y.size(); ++i) y[i] *= function(in[0][i]);
      return Values{y};
    };
    check_operator(check);
  }
}

TEST(Pointwise, Swiglu) {
  OperatorCheck check;
  check.name = "swiglu";
  check.inputs = [](int64_t rows) { return matrices(rows, 2); };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{swiglu(context, in[0], in[1])};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[1];
    for (size_t i = 0; i < y.size(); ++i) y[i] *= silu(in[0][i]);
    return Values{y};
  };
  check_operator(check);
}

// {h = x + delta, norm(h)} with the inputs x, delta (if residual), weight, bias (if with_bias).
Values norm_reference(const Values& in, int64_t rows, bool residual, bool centered,
                      bool with_bias) {
  Row h = in[0];
  if (residual) {
    for (size_t i = 0; i < h.size(); ++i) h[i] += in[1][i];
  }
  const Row& weight = in[residual ? 2 : 1];
  Row y = h;
  for (int64_t row = 0; row < rows; ++row) {
    double* values = y.data() + row * kColumns;
    double mean = 0, square = 0;
    for (int64_t c = 0; c < kColumns; ++c) mean += values[c] / kColumns;
    if (!centered) mean = 0;
    for (int64_t c = 0; c < kColumns; ++c) {
      square += (values[c] - mean) * (values[c] - mean) / kColumns;
    }
    const double inverse = 1 / std::sqrt(square + static_cast<double>(kEpsilon));
    for (int64_t c = 0; c < kColumns; ++c) {
      values[c] = (values[c] - mean) * inverse * weight[static_cast<size_t>(c)];
      if (with_bias) values[c] += in.back()[static_cast<size_t>(c)];
    }
  }
  return residual ? Values{h, y} : Values{y};
}

// BiasNorm of x, or of x + delta beside that sum, by its definition; inputs: x, delta, log_scale,
// bias.
Values bias_norm_reference(const Values& in, int64_t rows, bool residual) {
  Row h = in[0];
  if (residual) {
    for (size_t i = 0; i < h.size(); ++i) h[i] += in[1][i];
  }
  const double scale = std::exp(in[residual ? 2 : 1][0]);
  const Row& bias = in.back();
  Row y = h;
  for (int64_t row = 0; row < rows; ++row) {
    double* values = y.data() + row * kColumns;
    double square = 0;
    for (int64_t c = 0; c < kColumns; ++c) {
      const double shifted = values[c] - bias[static_cast<size_t>(c)];
      square += shifted * shifted / kColumns;
    }
    const double inverse = 1 / std::sqrt(square + static_cast<double>(kEpsilon));
    for (int64_t c = 0; c < kColumns; ++c) values[c] *= inverse * scale;
  }
  return residual ? Values{h, y} : Values{y};
}

TEST(Pointwise, BiasNorm) {
  for (const bool residual : {false, true}) {
    OperatorCheck check;
    check.name = residual ? "bias_norm residual" : "bias_norm";
    check.inputs = [=](int64_t rows) {
      std::vector<Input> inputs = matrices(rows, residual ? 2 : 1);
      inputs.push_back({{1}, -1, 1});
      inputs.push_back({{kColumns}, -0.5, 0.5});
      return inputs;
    };
    check.forward = [=](const Context& c, const std::vector<Tensor>& in) {
      if (!residual) return std::vector<Tensor>{bias_norm(c, in[0], in[1], in[2], kEpsilon)};
      const auto [h, y] = add_bias_norm(c, in[0], in[1], in[2], in[3], kEpsilon);
      return std::vector<Tensor>{h, y};
    };
    check.reference = [=](const Values& in, int64_t rows) {
      return bias_norm_reference(in, rows, residual);
    };
    check_operator(check);
  }
}

// Without a bias and a scale it is RMSNorm, bit for bit but for the product with ones; a bias lets
// the length of a row through.
TEST(Pointwise, BiasNormKeepsWhatTheBiasSaysOfTheLength) {
  const std::vector<float> row = {1, -2, 3, 0.5f}, bias = {0, 0, 0, 8};
  const Tensor x = Tensor::from(row, {1, 4}), zero = Tensor::zeros({1});
  const Tensor twice = scale({}, x, 2);
  const auto largest = [](const Tensor& y) { return y.values()[2]; };
  const Tensor plain = bias_norm({}, x, zero, Tensor::zeros({4}), 0);
  EXPECT_EQ(largest(plain), largest(rms_norm({}, x, Tensor::full({4}, 1), 0)));
  EXPECT_FLOAT_EQ(largest(bias_norm({}, twice, zero, Tensor::zeros({4}), 0)), largest(plain));
  const Tensor shift = Tensor::from(bias, {4});
  EXPECT_GT(largest(bias_norm({}, twice, zero, shift, 0)),
            1.5f * largest(bias_norm({}, x, zero, shift, 0)));
}

TEST(Pointwise, Norms) {
  for (const bool residual : {false, true}) {
    for (const bool centered : {false, true}) {
      for (const bool with_bias : {false, true}) {
        if (with_bias && !centered) continue;
        OperatorCheck check;
        check.name = fmt::format("norm{}{}{}", residual ? " residual" : "",
                                 centered ? " centered" : "", with_bias ? " bias" : "");
        check.inputs = [=](int64_t rows) {
          std::vector<Input> inputs = matrices(rows, residual ? 2 : 1);
          inputs.push_back({{kColumns}});
          if (with_bias) inputs.push_back({{kColumns}});
          return inputs;
        };
        check.forward = [=](const Context& c, const std::vector<Tensor>& in) {
          const Tensor weight = in[residual ? 2 : 1], bias = with_bias ? in.back() : Tensor();
          if (!residual) {
            return std::vector<Tensor>{centered ? layer_norm(c, in[0], weight, bias, kEpsilon)
                                                : rms_norm(c, in[0], weight, kEpsilon)};
          }
          const auto [h, y] = centered ? add_layer_norm(c, in[0], in[1], weight, bias, kEpsilon)
                                       : add_rms_norm(c, in[0], in[1], weight, kEpsilon);
          return std::vector<Tensor>{h, y};
        };
        check.reference = [=](const Values& in, int64_t rows) {
          return norm_reference(in, rows, residual, centered, with_bias);
        };
        check_operator(check);
      }
    }
  }
}

TEST(Pointwise, ResidualNormSharesItsGradient) {
  const Tensor x = Tensor::full({3, 8}, 0.5f), delta = Tensor::full({3, 8}, 0.25f);
  const Tensor weight = Tensor::full({8}, 1.0f);
  x.set_requires_grad(true);
  delta.set_requires_grad(true);
  Tape tape;
  const auto [h, y] = add_rms_norm({&tape}, x, delta, weight, kEpsilon);
  h.give_grad(Tensor::full({3, 8}, 2.0f));  // the norm itself is not used
  tape.run_backward();
  EXPECT_EQ(x.grad().data(), delta.grad().data());
  const GradTarget target = x.grad_target();  // writing to one leaves the other
  EXPECT_TRUE(target.accumulate);
  target.tensor.fill(7);
  EXPECT_EQ(delta.grad().values()[0], 2.0f);
  EXPECT_EQ(x.grad().values()[0], 7.0f);
}

TEST(Pointwise, GatedNorm) {
  constexpr int64_t kGroup = 13, kGroups = 3;
  for (const GateOrder order : {GateOrder::gate_then_norm, GateOrder::norm_then_gate}) {
    for (const int64_t weights : {kGroup, kGroup * kGroups}) {
      OperatorCheck check;
      check.name = fmt::format("gated norm {} {}", static_cast<int>(order), weights);
      check.inputs = [=](int64_t rows) {
        std::vector<Input> inputs = matrices(rows, 2, kGroup * kGroups);
        inputs.push_back({{weights}});
        return inputs;
      };
      check.forward = [=](const Context& c, const std::vector<Tensor>& in) {
        return std::vector<Tensor>{gated_rms_norm(c, in[0], in[1], in[2], kGroup, kEpsilon, order)};
      };
      check.reference = [=](const Values& in, int64_t) {
        const bool first = order == GateOrder::gate_then_norm;
        Row y = in[0];
        for (size_t begin = 0; begin < y.size(); begin += kGroup) {
          double square = 0;
          for (size_t i = begin; i < begin + kGroup; ++i) {
            if (first) y[i] *= silu(in[1][i]);
            square += y[i] * y[i] / kGroup;
          }
          for (size_t i = begin; i < begin + kGroup; ++i) {
            y[i] /= std::sqrt(square + static_cast<double>(kEpsilon));
            y[i] *= in[2][i % static_cast<size_t>(weights)];
            if (!first) y[i] *= silu(in[1][i]);
          }
        }
        return Values{y};
      };
      check_operator(check);
    }
  }
}

TEST(Pointwise, L2Normalize) {
  constexpr int64_t kGroup = 19;
  OperatorCheck check;
  check.name = "l2_normalize";
  check.inputs = [](int64_t rows) { return matrices(rows, 1, 2 * kGroup); };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{l2_normalize(context, in[0], kGroup, kEpsilon)};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[0];
    for (size_t begin = 0; begin < y.size(); begin += kGroup) {
      double square = static_cast<double>(kEpsilon);
      for (size_t i = begin; i < begin + kGroup; ++i) square += y[i] * y[i];
      for (size_t i = begin; i < begin + kGroup; ++i) y[i] /= std::sqrt(square);
    }
    return Values{y};
  };
  check_operator(check);
}

TEST(Pointwise, DecayGate) {
  constexpr float kLow = 0.3f, kHigh = 2.0f;
  constexpr int64_t kHeads = 21;
  OperatorCheck check;
  check.name = "decay_gate";
  check.inputs = [](int64_t rows) {
    return std::vector<Input>{{{rows, kHeads}, -3, 3}, {{kHeads}, -1, 1}, {{kHeads}, -2, 2}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const auto [dt, log_decay] = decay_gate(context, in[0], in[1], in[2], kLow, kHigh);
    return std::vector<Tensor>{dt, log_decay};
  };
  check.reference = [](const Values& in, int64_t) {
    Row dt, log_decay;
    for (size_t i = 0; i < in[0].size(); ++i) {
      const size_t head = i % kHeads;
      dt.push_back(std::clamp(softplus(in[0][i] + in[1][head]), static_cast<double>(kLow),
                              static_cast<double>(kHigh)));
      log_decay.push_back(-std::exp(in[2][head]) * dt.back());
    }
    return Values{dt, log_decay};
  };
  check_operator(check);
}

TEST(Pointwise, ConcatenateColumns) {
  OperatorCheck check;
  check.name = "concatenate_columns";
  check.inputs = [](int64_t rows) {
    return std::vector<Input>{{{rows, 3}}, {{rows, 20}}, {{rows, 7}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{concatenate_columns(context, in)};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Row y;
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      for (size_t part = 0; part < 3; ++part) {
        const size_t width = part == 0 ? 3 : part == 1 ? 20 : 7;
        for (size_t c = 0; c < width; ++c) y.push_back(in[part][row * width + c]);
      }
    }
    return Values{y};
  };
  check_operator(check);
}

TEST(Pointwise, ConcatenateRows) {
  OperatorCheck check;
  check.name = "concatenate_rows";
  check.inputs = [](int64_t rows) {
    return std::vector<Input>{{{rows, 7}}, {{2, 7}}, {{rows + 1, 7}}};
  };
  // The second part is there twice: its gradients add up.
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        concatenate_rows(context, std::vector<Tensor>{in[1], in[0], in[1], in[2]})};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y;
    for (const size_t part : {1, 0, 1, 2}) y.insert(y.end(), in[part].begin(), in[part].end());
    return Values{y};
  };
  check_operator(check);
}

TEST(Pointwise, Embedding) {
  constexpr int64_t kVocabulary = 11, kWidth = 150;
  OperatorCheck check;
  check.name = "embedding";
  // The number of rows is that of the tokens; tokens repeat.
  static thread_local int64_t tokens_now = 0;
  const auto token = [](int64_t i) { return static_cast<int32_t>((i * i + 1) % kVocabulary); };
  check.inputs = [](int64_t rows) {
    tokens_now = rows;
    return std::vector<Input>{{{kVocabulary, kWidth}}};
  };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < tokens_now; ++i) tokens.push_back(token(i));
    return std::vector<Tensor>{embedding(context, in[0], tokens)};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    Row y;
    for (int64_t i = 0; i < rows; ++i) {
      const auto first = in[0].begin() + token(i) * kWidth;
      y.insert(y.end(), first, first + kWidth);
    }
    return Values{y};
  };
  check_operator(check);

  const Tensor table = Tensor::zeros({4, 2});
  const std::vector<int32_t> beyond = {4}, negative = {-1};
  EXPECT_THROW(embedding({}, table, beyond), Error);
  EXPECT_THROW(embedding({}, table, negative), Error);
}

TEST(Pointwise, ExtremesStayFinite) {
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const std::vector<float> extremes = {-1e4f, -100.0f, -30.0f, 0.0f, 30.0f, 100.0f, 1e4f};
    const Tensor x = Tensor::from(extremes, {1, 7});
    x.set_requires_grad(true);
    const auto all_finite = [](const Tensor& tensor) {
      for (const double value : check::flatten(tensor)) {
        if (!std::isfinite(value)) return false;
      }
      return true;
    };
    Tape tape;
    const Context context{&tape};
    const Tensor zeros = Tensor::zeros({7});
    const auto [dt, log_decay] = decay_gate(context, x, zeros, zeros, 0.0f, 1e9f);
    for (const Tensor& y :
         {sigmoid(context, x), gelu(context, x, false), gelu(context, x, true),
          swiglu(context, x, x), dt, log_decay, l2_normalize(context, x, 7, kEpsilon),
          soft_cap(context, x, 2), activate(context, x, Activation::silu),
          activate(context, x, Activation::relu_squared),
          activate(context, x, Activation::softplus), activate(context, x, Activation::log_sigmoid),
          activate(context, x, Activation::elu_plus_one),
          activate(context, x, Activation::swoosh_r), activate(context, x, Activation::swoosh_l)}) {
      EXPECT_TRUE(all_finite(y));
      y.give_grad(Tensor::full({1, 7}, 1.0f));
    }
    tape.run_backward();
    EXPECT_TRUE(all_finite(x.grad()));
    EXPECT_NEAR(dt.values()[1], 0, 1e-30);  // softplus(-100)
    EXPECT_EQ(dt.values()[6], 1e4f);
    EXPECT_EQ(gelu({}, x, false).values()[0], 0.0f);
    EXPECT_EQ(gelu({}, x, true).values()[6], 1e4f);
  }
}

TEST(Pointwise, NanIsNotHidden) {
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const Tensor x = Tensor::full({1, 18}, std::numeric_limits<float>::quiet_NaN());
    const Tensor zeros = Tensor::zeros({18});
    const auto [dt, log_decay] = decay_gate({}, x, zeros, zeros, 0.0f, 1.0f);
    for (const Tensor& y :
         {sigmoid({}, x), gelu({}, x, false), gelu({}, x, true), swiglu({}, x, x), dt, log_decay,
          rms_norm({}, x, zeros, kEpsilon), soft_cap({}, x, 2), activate({}, x, Activation::relu),
          activate({}, x, Activation::relu_squared), activate({}, x, Activation::exp),
          activate({}, x, Activation::softplus), activate({}, x, Activation::log_sigmoid),
          activate({}, x, Activation::elu_plus_one), activate({}, x, Activation::swoosh_r),
          activate({}, x, Activation::swoosh_l),
          bias_norm({}, x, Tensor::zeros({1}), zeros, kEpsilon)}) {
      for (const float value : y.values()) EXPECT_TRUE(std::isnan(value));
    }
  }
}

TEST(Pointwise, ShapesAreChecked) {
  const Tensor x = Tensor::zeros({2, 6}), other = Tensor::zeros({3, 6}), five = Tensor::zeros({5});
  EXPECT_THROW(add({}, x, other), Error);
  EXPECT_THROW(multiply({}, x, other), Error);
  EXPECT_THROW(swiglu({}, x, other), Error);
  EXPECT_THROW(add_bias({}, x, five), Error);
  EXPECT_THROW(rms_norm({}, x, five, kEpsilon), Error);
  EXPECT_THROW(bias_norm({}, x, Tensor::zeros({1}), five, kEpsilon), Error);
  EXPECT_THROW(bias_norm({}, x, Tensor::zeros({6}), Tensor::zeros({6}), kEpsilon), Error);
  EXPECT_THROW(l2_normalize({}, x, 4, kEpsilon), Error);
  EXPECT_THROW(soft_cap({}, x, 0), Error);
  EXPECT_THROW(gated({}, x, other, Activation::relu), Error);
  EXPECT_THROW(concatenate_columns({}, std::vector<Tensor>{x, other}), Error);
  EXPECT_THROW(concatenate_columns({}, {}), Error);
  EXPECT_THROW(concatenate_rows({}, std::vector<Tensor>{x, x.column_slice(0, 2)}), Error);
  EXPECT_THROW(concatenate_rows({}, {}), Error);
}

TEST(Pointwise, NoGradientsWithoutTape) {
  const Tensor x = Tensor::zeros({2, 6}), fixed = Tensor::zeros({2, 6});
  x.set_requires_grad(true);
  EXPECT_FALSE(add({}, x, x).requires_grad());
  Tape tape;
  EXPECT_FALSE(add({&tape}, fixed, fixed).requires_grad());
  EXPECT_TRUE(tape.empty());
  const Tensor y = swiglu({&tape}, x, fixed);  // only one of the inputs wants a gradient
  y.give_grad(Tensor::full({2, 6}, 1.0f));
  tape.run_backward();
  EXPECT_TRUE(x.has_grad());
  EXPECT_FALSE(fixed.has_grad());
}

TEST(OptimizerKernels, AdamW) {
  constexpr int64_t kCount = 40001;
  AdamW settings;
  settings.learning_rate = 0.01;
  settings.weight_decay = 0.1;
  settings.gradient_scale = 0.5;
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    std::vector<std::vector<float>> of_threads;
    for (const int threads : {1, 4}) {
      set_thread_count(threads);
      Random random(3);
      std::vector<float> p(kCount), g(kCount), m(kCount), v(kCount);
      for (float& value : p) value = static_cast<float>(random.normal());
      std::vector<double> exact_p(p.begin(), p.end()), exact_m(kCount), exact_v(kCount);
      for (int64_t step = 1; step <= 3; ++step) {
        for (float& value : g) value = static_cast<float>(random.normal());
        settings.step = step;
        adamw_update(p, g, m, v, settings);
        for (size_t i = 0; i < kCount; ++i) {
          const double gradient = 0.5 * static_cast<double>(g[i]);
          exact_m[i] = 0.9 * exact_m[i] + 0.1 * gradient;
          exact_v[i] = 0.999 * exact_v[i] + 0.001 * gradient * gradient;
          const double m_hat = exact_m[i] / (1 - std::pow(0.9, step));
          const double v_hat = exact_v[i] / (1 - std::pow(0.999, step));
          exact_p[i] -= 0.01 * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * exact_p[i]);
        }
      }
      double error = 0;
      for (size_t i = 0; i < kCount; ++i) {
        error = std::max(error, std::abs(static_cast<double>(p[i]) - exact_p[i]));
      }
      EXPECT_LT(error, 2e-6);  // three roundings of parameters of up to 5
      of_threads.push_back(p);
    }
    EXPECT_EQ(of_threads[0], of_threads[1]);
  }
  std::vector<float> four(4), three(3);
  EXPECT_THROW(adamw_update(four, three, four, four, settings), Error);
  settings.step = 0;
  EXPECT_THROW(adamw_update(four, four, four, four, settings), Error);
}

TEST(OptimizerKernels, SumOfSquares) {
  Random random(4);
  std::vector<float> values(70001);
  double exact = 0;
  for (float& value : values) {
    value = static_cast<float>(random.normal());
    exact += static_cast<double>(value) * static_cast<double>(value);
  }
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    set_thread_count(1);
    const double serial = sum_of_squares(values);
    set_thread_count(4);
    EXPECT_EQ(serial, sum_of_squares(values));
    EXPECT_NEAR(serial, exact, 1e-12 * exact);  // float64 sums in another order
  }
  EXPECT_EQ(sum_of_squares({}), 0);
}

}  // namespace
}  // namespace pronghorn
