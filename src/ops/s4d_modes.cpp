#include "ops/s4d_modes.h"

#include <cmath>
#include <complex>
#include <memory>
#include <vector>

#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "s4d_modes";

using Complex = std::complex<double>;

// Pole and factor of the input of one mode, with their derivatives.
struct Mode {
  Complex pole, pole_by_A, pole_by_dt;
  Complex factor, factor_by_A, factor_by_dt;
};

Mode discretise(Complex A, double dt, Discretisation discretisation) {
  Mode mode;
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

// The parameters in memory of the host.
struct Parameters {
  // Calls body(place in [channels, modes], channel, mode's number, A, dt, C) for all modes.
  template <typename Body>
  void for_each(const Body& body) const {
    for (int64_t c = 0; c < channels; ++c) {
      const double dt = std::exp(static_cast<double>(log_dt[static_cast<size_t>(c)]));
      for (int64_t n = 0; n < modes; ++n) {
        const auto i = static_cast<size_t>(c * modes + n);
        const Complex A(-std::exp(static_cast<double>(log_A_real[i])), A_imag[i]);
        body(i, c, n, A, dt, Complex(C[2 * i], C[2 * i + 1]));
      }
    }
  }

  int64_t channels = 0, modes = 0;
  PooledVector<float> log_dt, log_A_real, A_imag, C;
};

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

// Gradients are d loss / d Re + i d loss / d Im, so that a holomorphic f passes conj(f') on.
void backward(const Parameters& in, Discretisation discretisation, const DiagonalModes& out,
              const Tensor& log_dt, const Tensor& log_A_real, const Tensor& A_imag,
              const Tensor& C) {
  const PooledVector<float> d_poles = gradient_of(out.poles), d_reads = gradient_of(out.reads);
  const Tensor inputs[] = {log_dt, log_A_real, A_imag, C};
  std::vector<PooledVector<float>> sums;
  std::vector<GradTarget> targets;
  for (const Tensor& input : inputs) {
    targets.push_back(input.requires_grad() ? input.grad_target() : GradTarget{{}, false});
    sums.push_back(targets.back().tensor.defined()
                       ? gradient_so_far(targets.back())
                       : PooledVector<float>(static_cast<size_t>(input.size())));
  }
  in.for_each([&](size_t i, int64_t c, int64_t n, Complex A, double dt, Complex read) {
    const Mode mode = discretise(A, dt, discretisation);
    const Complex d_pole = get(d_poles, in.channels, c, n);
    const Complex d_read = get(d_reads, in.channels, c, n), d_factor = std::conj(read) * d_read;
    const Complex d_A = std::conj(mode.pole_by_A) * d_pole + std::conj(mode.factor_by_A) * d_factor;
    const double d_dt =
        (std::conj(mode.pole_by_dt) * d_pole + std::conj(mode.factor_by_dt) * d_factor).real();
    const Complex d_C = std::conj(mode.factor) * d_read;
    sums[0][static_cast<size_t>(c)] += static_cast<float>(d_dt * dt);
    sums[1][i] += static_cast<float>(d_A.real() * A.real());
    sums[2][i] += static_cast<float>(d_A.imag());
    sums[3][2 * i] += static_cast<float>(d_C.real());
    sums[3][2 * i + 1] += static_cast<float>(d_C.imag());
  });
  for (size_t k = 0; k < sums.size(); ++k) {
    if (targets[k].tensor.defined()) targets[k].tensor.write(sums[k]);
  }
}

}  // namespace

DiagonalModes s4d_modes(const Context& context, const Tensor& log_dt, const Tensor& log_A_real,
                        const Tensor& A_imag, const Tensor& C, Discretisation discretisation) {
  const int64_t channels = log_A_real.rows(), modes = log_A_real.columns();
  require(log_dt.size() == channels, kWhere, "log_dt of {} for {} channels", log_dt.size(),
          channels);
  require(A_imag.shape() == log_A_real.shape() && C.size() == 2 * log_A_real.size(), kWhere,
          "log_A_real {}, A_imag {} and C {} do not fit", shape_string(log_A_real.shape()),
          shape_string(A_imag.shape()), shape_string(C.shape()));
  const auto in = std::make_shared<const Parameters>(
      Parameters{channels, modes, log_dt.read(), log_A_real.read(), A_imag.read(), C.read()});
  const auto size = static_cast<size_t>(2 * modes * channels);
  PooledVector<float> poles(size), reads(size);
  in->for_each([&](size_t, int64_t c, int64_t n, Complex A, double dt, Complex read) {
    const Mode mode = discretise(A, dt, discretisation);
    put(poles, channels, c, n, mode.pole);
    put(reads, channels, c, n, read * mode.factor);
  });
  const DiagonalModes out = {Tensor::empty({2 * modes, channels}),
                             Tensor::empty({2 * modes, channels})};
  out.poles.write(poles);
  out.reads.write(reads);
  if (needs_gradient(context, out.poles, log_dt, log_A_real, A_imag, C)) {
    out.reads.set_requires_grad(true);
    context.tape->record([=] {
      if (!out.poles.has_grad() && !out.reads.has_grad()) return;
      backward(*in, discretisation, out, log_dt, log_A_real, A_imag, C);
    });
  }
  return out;
}

}  // namespace pronghorn
