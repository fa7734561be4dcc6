#include "ops/diagonal_modes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <memory>
#include <numbers>
#include <vector>

#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

using Complex = std::complex<double>;
constexpr Complex kI(0, 1);

// The numbers of all inputs, in memory of the host.
using Inputs = std::vector<PooledVector<float>>;

// A mode and its derivatives by the real numbers that it is made of: element `element` of input
// `input` each.
template <size_t kCount>
struct Mode {
  struct Source {
    size_t input = 0, element = 0;
    Complex pole_by, read_by;
  };
  Complex pole, read;
  std::array<Source, kCount> sources;
};

double number(const Inputs& inputs, size_t input, size_t element) {
  return static_cast<double>(inputs[input][element]);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Writes a complex number of mode n of channel c, or reads it.
void put(PooledVector<float>& to, int64_t channels, int64_t c, int64_t n, Complex value) {
  to[static_cast<size_t>(2 * n * channels + c)] = static_cast<float>(value.real());
  to[static_cast<size_t>((2 * n + 1) * channels + c)] = static_cast<float>(value.imag());
}

Complex get(const PooledVector<float>& from, int64_t channels, int64_t c, int64_t n) {
  return {from[static_cast<size_t>(2 * n * channels + c)],
          from[static_cast<size_t>((2 * n + 1) * channels + c)]};
}

PooledVector<float> gradient_of(const Tensor& output) {
  if (output.has_grad()) return output.grad().read();
  return PooledVector<float>(static_cast<size_t>(output.size()));
}

// Gradients are d loss / d Re + i d loss / d Im, so that a real number x that makes z has the
// gradient Re(conj(dz / dx) dz).
template <typename ModeAt>
void backward(const Inputs& in, const std::vector<Tensor>& inputs, const DiagonalModes& out,
              const ModeAt& mode_at) {
  const int64_t channels = out.poles.columns(), modes = out.poles.rows() / 2;
  const PooledVector<float> d_poles = gradient_of(out.poles), d_reads = gradient_of(out.reads);
  std::vector<PooledVector<float>> sums;
  std::vector<GradTarget> targets;
  for (const Tensor& input : inputs) {
    targets.push_back(input.requires_grad() ? input.grad_target() : GradTarget{{}, false});
    sums.push_back(targets.back().tensor.defined()
                       ? gradient_so_far(targets.back())
                       : PooledVector<float>(static_cast<size_t>(input.size())));
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t n = 0; n < modes; ++n) {
      const Complex d_pole = get(d_poles, channels, c, n), d_read = get(d_reads, channels, c, n);
      for (const auto& source : mode_at(in, c, n).sources) {
        const Complex d = std::conj(source.pole_by) * d_pole + std::conj(source.read_by) * d_read;
        sums[source.input][source.element] += static_cast<float>(d.real());
      }
    }
  }
  for (size_t k = 0; k < sums.size(); ++k) {
    if (targets[k].tensor.defined()) targets[k].tensor.write(sums[k]);
  }
}

// The modes that mode_at(inputs' numbers, channel, mode's number) gives, with their gradients.
template <typename ModeAt>
DiagonalModes modes_of(const Context& context, const std::vector<Tensor>& inputs, int64_t channels,
                       int64_t modes, const ModeAt& mode_at) {
  const auto in = std::make_shared<Inputs>();
  for (const Tensor& input : inputs) in->push_back(input.read());
  const auto size = static_cast<size_t>(2 * modes * channels);
  PooledVector<float> poles(size), reads(size);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t n = 0; n < modes; ++n) {
      const auto mode = mode_at(*in, c, n);
      put(poles, channels, c, n, mode.pole);
      put(reads, channels, c, n, mode.read);
    }
  }
  const DiagonalModes out = {Tensor::empty({2 * modes, channels}),
                             Tensor::empty({2 * modes, channels})};
  out.poles.write(poles);
  out.reads.write(reads);
  const bool wanted =
      std::ranges::any_of(inputs, [](const Tensor& t) { return t.requires_grad(); });
  if (context.tape != nullptr && wanted) {
    out.poles.set_requires_grad(true);
    out.reads.set_requires_grad(true);
    context.tape->record([=] {
      if (out.poles.has_grad() || out.reads.has_grad()) backward(*in, inputs, out, mode_at);
    });
  }
  return out;
}

// Pole and factor of the input of one mode of S4D, with their derivatives.
struct Discrete {
  Complex pole, pole_by_A, pole_by_dt;
  Complex factor, factor_by_A, factor_by_dt;
};

Discrete discretise(Complex A, double dt, Discretisation discretisation) {
  Discrete mode;
  if (discretisation == Discretisation::zero_order_hold) {
    mode.pole = std::exp(dt * A);
    mode.pole_by_A = dt * mode.pole;
    mode.pole_by_dt = A * mode.pole;
    // A is at least exp(log_A_real) from 0, so f64 leaves enough of the difference.
    mode.factor = (mode.pole - 1.0) / A;
    mode.factor_by_A = (dt * mode.pole - mode.factor) / A;
    mode.factor_by_dt = mode.pole;
    return mode;
  }
  const Complex inverse = 1.0 / (1.0 - dt / 2 * A), square = inverse * inverse;
  mode.pole = (1.0 + dt / 2 * A) * inverse;
  mode.pole_by_A = dt * square;
  mode.pole_by_dt = A * square;
  mode.factor = dt * inverse;
  mode.factor_by_A = dt * dt / 2 * square;
  mode.factor_by_dt = square;
  return mode;
}

}  // namespace

DiagonalModes s4d_modes(const Context& context, const Tensor& log_dt, const Tensor& log_A_real,
                        const Tensor& A_imag, const Tensor& C, Discretisation discretisation) {
  constexpr const char* kWhere = "s4d_modes";
  const int64_t channels = log_A_real.rows(), modes = log_A_real.columns();
  require(log_dt.size() == channels, kWhere, "log_dt of {} for {} channels", log_dt.size(),
          channels);
  require(A_imag.shape() == log_A_real.shape() && C.size() == 2 * log_A_real.size(), kWhere,
          "log_A_real {}, A_imag {} and C {} do not fit", log_A_real.shape(), A_imag.shape(),
          C.shape());
  const auto mode_at = [=](const Inputs& in, int64_t channel, int64_t n) {
    const auto c = static_cast<size_t>(channel), i = static_cast<size_t>(channel * modes + n);
    const double dt = std::exp(number(in, 0, c));
    const Complex A(-std::exp(number(in, 1, i)), number(in, 2, i));
    const Complex read(number(in, 3, 2 * i), number(in, 3, 2 * i + 1));
    const Discrete mode = discretise(A, dt, discretisation);
    const Complex pole_by_A = mode.pole_by_A, read_by_A = read * mode.factor_by_A;
    return Mode<5>{mode.pole,
                   read * mode.factor,
                   {{{0, c, dt * mode.pole_by_dt, dt * read * mode.factor_by_dt},
                     {1, i, A.real() * pole_by_A, A.real() * read_by_A},
                     {2, i, kI * pole_by_A, kI * read_by_A},
                     {3, 2 * i, 0, mode.factor},
                     {3, 2 * i + 1, 0, kI * mode.factor}}}};
  };
  return modes_of(context, {log_dt, log_A_real, A_imag, C}, channels, modes, mode_at);
}

DiagonalModes damped_average_modes(const Context& context, const Tensor& delta, const Tensor& alpha,
                                   const Tensor& beta, const Tensor& gamma) {
  const int64_t channels = delta.rows(), modes = delta.columns();
  require(alpha.shape() == delta.shape() && beta.shape() == delta.shape() &&
              gamma.shape() == delta.shape(),
          "damped_average_modes", "delta {}, alpha {}, beta {} and gamma {} do not fit",
          delta.shape(), alpha.shape(), beta.shape(), gamma.shape());
  const auto mode_at = [=](const Inputs& in, int64_t channel, int64_t n) {
    const auto i = static_cast<size_t>(channel * modes + n);
    const double p = sigmoid(number(in, 0, i)), damping = sigmoid(number(in, 1, i));
    const double enter = number(in, 2, i), leave = number(in, 3, i);
    // diagonal_ssm() doubles what it reads.
    const double scale = 0.5 / std::sqrt(static_cast<double>(modes));
    const double read = scale * p * enter * leave;
    return Mode<4>{1 - p * damping,
                   read,
                   {{{0, i, -p * (1 - p) * damping, (1 - p) * read},
                     {1, i, -p * damping * (1 - damping), 0},
                     {2, i, 0, scale * p * leave},
                     {3, i, 0, scale * p * enter}}}};
  };
  return modes_of(context, {delta, alpha, beta, gamma}, channels, modes, mode_at);
}

DiagonalModes complex_average_modes(const Context& context, const Tensor& alpha,
                                    const Tensor& delta, const Tensor& theta, const Tensor& gamma) {
  const int64_t channels = alpha.rows(), modes = alpha.columns();
  require(delta.shape() == alpha.shape() && theta.size() == channels &&
              gamma.size() == 2 * alpha.size(),
          "complex_average_modes", "alpha {}, delta {}, theta {} and gamma {} do not fit",
          alpha.shape(), delta.shape(), theta.shape(), gamma.shape());
  const auto mode_at = [=](const Inputs& in, int64_t channel, int64_t n) {
    const auto c = static_cast<size_t>(channel), i = static_cast<size_t>(channel * modes + n);
    const double p = sigmoid(number(in, 0, i)), damping = sigmoid(number(in, 1, i));
    const double share = sigmoid(number(in, 2, c));
    const double turn =
        2 * std::numbers::pi * static_cast<double>(n + 1) / static_cast<double>(modes);
    const Complex leave(number(in, 3, 2 * i), number(in, 3, 2 * i + 1));
    const Complex direction = std::polar(1.0, turn * share);
    const Complex pole = (1 - p * damping) * direction;
    const double factor = 0.5 * p / std::sqrt(static_cast<double>(modes));
    return Mode<5>{pole,
                   factor * leave,
                   {{{0, i, -p * (1 - p) * damping * direction, (1 - p) * factor * leave},
                     {1, i, -p * damping * (1 - damping) * direction, 0},
                     {2, c, kI * pole * (turn * share * (1 - share)), 0},
                     {3, 2 * i, 0, factor},
                     {3, 2 * i + 1, 0, kI * factor}}}};
  };
  return modes_of(context, {alpha, delta, theta, gamma}, channels, modes, mode_at);
}

}  // namespace pronghorn
