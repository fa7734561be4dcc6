// S4D layer (Gu et al., arXiv 2206.11893): a linear system with fixed diagonal coefficients for
// each channel, a GELU, and a gated projection that mixes the channels. Parameter names are those
// of the paper's minimal implementation.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "layers/known.h"
#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/diagonal_modes.h"
#include "ops/diagonal_scan.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr int64_t kMostState = 256;

struct S4dConfig {
  int64_t state = 0;
  std::string init, discretisation;
  double least_step = 0, largest_step = 0;

  void fields(ConfigFields& f, const LayerContext&) {
    f.integer("state", state, 64, 2, kMostState, "N: twice the complex modes of a channel; even");
    f.check(state % 2 == 0, "state", "{} is odd", state);
    f.one_of("init", init, {"lin", "inv", "legs"}, "lin",
             "of A: S4D-Lin (`\"lin\"`), S4D-Inv (`\"inv\"`) or S4D-LegS (`\"legs\"`)");
    f.one_of("discretisation", discretisation, {"zoh", "bilinear"}, "zoh",
             "zero-order hold (`\"zoh\"`) or `\"bilinear\"`");
    f.number("time_step_min", least_step, 0.001, limits::kLeastTimeStep, limits::kTimeStep,
             "smallest step size at the start");
    f.number("time_step_max", largest_step, 0.1, least_step, limits::kTimeStep,
             "largest step size at the start");
  }
};

// The positive imaginary parts of the eigenvalues of HiPPO-LegS without its part of rank one
// (section 3.1), increasing. That matrix is -1/2 plus a skew-symmetric S, so they are the roots of
// the eigenvalues of S^T S, each of which occurs twice; Jacobi's rotations find them.
std::vector<double> legs_frequencies(int64_t state) {
  const auto size = static_cast<size_t>(state);
  const auto skew = [](size_t n, size_t k) {
    const double value = std::sqrt((static_cast<double>(n) + 0.5) * (static_cast<double>(k) + 0.5));
    return n == k ? 0 : n > k ? -value : value;
  };
  std::vector<std::vector<double>> square(size, std::vector<double>(size));
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = 0; j < size; ++j) {
      for (size_t k = 0; k < size; ++k) square[i][j] += skew(k, i) * skew(k, j);
    }
  }
  constexpr int kSweeps = 12;  // convergence is quadratic: 8 do for 256
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (size_t p = 0; p + 1 < size; ++p) {
      for (size_t q = p + 1; q < size; ++q) {
        if (square[p][q] == 0) continue;
        const double theta = (square[q][q] - square[p][p]) / (2 * square[p][q]);
        const double t = std::copysign(1, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double cosine = 1 / std::hypot(t, 1.0), sine = t * cosine;
        for (size_t k = 0; k < size; ++k) {
          const double a = square[k][p], b = square[k][q];
          square[k][p] = cosine * a - sine * b;
          square[k][q] = sine * a + cosine * b;
        }
        for (size_t k = 0; k < size; ++k) {
          const double a = square[p][k], b = square[q][k];
          square[p][k] = cosine * a - sine * b;
          square[q][k] = sine * a + cosine * b;
        }
      }
    }
  }
  std::vector<double> roots, frequencies;
  for (size_t i = 0; i < size; ++i) roots.push_back(std::sqrt(std::max(0.0, square[i][i])));
  std::sort(roots.begin(), roots.end());
  for (size_t i = 0; i < size; i += 2) frequencies.push_back((roots[i] + roots[i + 1]) / 2);
  return frequencies;
}

// Of A_imag [channels, state / 2]: section 3.2 and table 1.
Initializer frequencies(const std::string& init, int64_t state) {
  const int64_t modes = state / 2;
  if (init == "legs") {
    return [state, modes, known = std::vector<double>()](Random&, int64_t i) mutable {
      if (known.empty()) known = legs_frequencies(state);
      return static_cast<float>(known[static_cast<size_t>(i % modes)]);
    };
  }
  return [inverse = init == "inv", state, modes](Random&, int64_t i) {
    const auto n = static_cast<double>(i % modes), N = static_cast<double>(state);
    const double frequency =
        inverse ? N / std::numbers::pi * (N / (2 * n + 1) - 1) : std::numbers::pi * n;
    return static_cast<float>(frequency);
  };
}

class S4dMixer final : public Mixer {
 public:
  using Config = S4dConfig;

  S4dMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : width_(context.hidden_size),
        modes_(config.state / 2),
        discretisation_(config.discretisation == "bilinear" ? Discretisation::bilinear
                                                            : Discretisation::zero_order_hold) {
    // A and the step sizes learn slowly and without decay, as in the paper's experiments (at most
    // 0.001, where the others have 0.004).
    constexpr double kSlow = 0.25;
    const ParameterScope kernel = scope.child("kernel");
    log_dt_ = kernel.tensor(
        "log_dt", {width_},
        initializers::uniform(std::log(config.least_step), std::log(config.largest_step)),
        Decay::no, kSlow);
    log_A_real_ = kernel.tensor("log_A_real", {width_, modes_},
                                initializers::constant(std::log(0.5f)), Decay::no, kSlow);
    A_imag_ = kernel.tensor("A_imag", {width_, modes_}, frequencies(config.init, config.state),
                            Decay::no, kSlow);
    // A complex normal number of variance 1.
    C_ = kernel.tensor("C", {width_, modes_, 2}, initializers::normal(std::sqrt(0.5)));
    D_ = scope.tensor("D", {width_}, initializers::normal(1));
    output_ =
        scope.matrix("output_linear.weight", 2 * width_, width_, residual_initializer(context));
    output_bias_ = scope.tensor("output_linear.bias", {2 * width_}, initializers::constant(0));
    scan_ = states.add(diagonal_ssm_journal(width_, modes_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const DiagonalModes modes = modes_of(context);
    const Tensor y = diagonal_ssm(context, x, modes.poles, modes.reads, D_, input.batch, scan_);
    const Tensor both = linear(context, gelu(context, y, false), output_, output_bias_);
    return multiply(context, both.column_slice(0, width_),
                    sigmoid(context, both.column_slice(width_, width_)));
  }

  // Of a complex mode: its update 8 operations, its part of the output 4.
  double sequence_cost(double) const override {
    return 12.0 * static_cast<double>(width_ * modes_);
  }

 private:
  DiagonalModes modes_of(const Context& context) const {
    return known_->get(context, {log_dt_, log_A_real_, A_imag_, C_}, [&] {
      return s4d_modes(context, log_dt_, log_A_real_, A_imag_, C_, discretisation_);
    });
  }

  int64_t width_, modes_;
  Discretisation discretisation_;
  JournalSlot scan_;
  Weight output_;
  Tensor log_dt_, log_A_real_, A_imag_, C_, D_, output_bias_;
  std::unique_ptr<Known<DiagonalModes>> known_ = std::make_unique<Known<DiagonalModes>>();
};

}  // namespace

MixerType s4d_mixer_type() {
  return mixer_type<S4dMixer>("s4d", "diagonal state space model with fixed coefficients",
                              "arXiv 2206.11893", R"({"type": "s4d", "state": 8})");
}

}  // namespace pronghorn
