// Fast-weight memories token by token in float64: the weights themselves, updated by every token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <variant>
#include <vector>

#include "ops/fast_weight_memory.h"

namespace pronghorn::laws {

// Inputs of one sequence, row-major; absent ones are empty. weights[l] [heads, in, out], biases[l]
// [heads, out].
struct FastWeightMemoryValues {
  std::vector<double> q, k, v, theta, eta, alpha, token_idx, norm_weight, norm_bias;
  std::vector<std::vector<double>> weights, biases;
};

// The memory of one head.
class MemoryReference {
 public:
  using Vector = std::vector<double>;
  // A matrix [in, out] with its bias [out] as last row.
  struct Layer {
    size_t in, out;
    Vector numbers;
    double& at(size_t i, size_t o) { return numbers[i * out + o]; }
    double at(size_t i, size_t o) const { return numbers[i * out + o]; }
  };
  using Network = std::vector<Layer>;

  MemoryReference(const FastWeightMemoryOptions& options, const FastWeightMemoryValues& in,
                  int64_t head)
      : options_(options), width_(static_cast<size_t>(options.head_dim)) {
    if (const auto* rule = std::get_if<TitansRule>(&options.rule)) {
      titans_ = *rule;
    } else {
      ttt_ = true;
    }
    const auto h = static_cast<size_t>(head);
    for (size_t l = 0; l < in.weights.size(); ++l) {
      const auto hidden = static_cast<size_t>(options.hidden_dim);
      Layer layer{l == 0 ? width_ : hidden, l + 1 == in.weights.size() ? width_ : hidden, {}};
      const size_t size = layer.in * layer.out;
      const auto from = in.weights[l].begin() + static_cast<int64_t>(h * size);
      layer.numbers.assign(from, from + static_cast<int64_t>(size));
      for (size_t o = 0; o < layer.out; ++o) {
        layer.numbers.push_back(ttt_ ? in.biases[l][h * layer.out + o] : 0);
      }
      start_.push_back(layer);
    }
    if (ttt_) {
      for (size_t c = 0; c < width_; ++c) {
        norm_weight_.push_back(in.norm_weight[h * width_ + c]);
        norm_bias_.push_back(in.norm_bias[h * width_ + c]);
      }
    }
    carried_ = start_;
    target_ = titans_.forget_to_start ? start_ : zeros();
    steps_ = zeros();
    carried_momentum_ = zeros();
    step_momentum_ = zeros();
  }

  // The weights that are read are carried + tau steps: what the mini-batch started from, decayed
  // and moved on by its momentum, and the steps of this mini-batch.
  Vector token(size_t index, const double* q, const double* k, const double* v, double theta,
               double eta, double alpha, const Vector& token_idx) {
    const auto batch = static_cast<size_t>(options_.mini_batch);
    const auto tau = [&](size_t place) {
      return token_idx.empty()
                 ? 1.0
                 : std::max(0.0, 1 / (static_cast<double>(place) + 1) + token_idx[place]);
    };
    if (index > 0 && index % batch == 0) {
      carried_ = sum(carried_, tau(batch - 1), steps_);
      carried_momentum_ = sum(carried_momentum_, 1, step_momentum_);
      steps_ = zeros();
      step_momentum_ = zeros();
      start_ = carried_;
    }
    Network before = start_;
    if (titans_.online_errors && index % batch > 0) {
      before.back() = sum(carried_, tau(index % batch - 1), steps_).back();
    }
    const Network gradient = loss_gradient(before, k, v);
    for (size_t l = 0; l < start_.size(); ++l) {
      for (size_t i = 0; i < start_[l].numbers.size(); ++i) {
        const bool fixed = !ttt_ && i >= start_[l].in * start_[l].out;
        double& s = carried_momentum_[l].numbers[i];
        double& w = carried_[l].numbers[i];
        s = (titans_.momentum ? eta : 0) * s;
        w = (1 - alpha) * w + alpha * target_[l].numbers[i] + s;
        double& s_step = step_momentum_[l].numbers[i];
        double& w_step = steps_[l].numbers[i];
        s_step =
            (titans_.momentum ? eta : 0) * s_step - (fixed ? 0 : theta * gradient[l].numbers[i]);
        w_step = (1 - alpha) * w_step + s_step;
      }
    }
    const auto interval = static_cast<size_t>(titans_.read_interval);
    if (interval > 0 && index % interval == 0) anchor_ = start_;
    const Network weights = interval > 0 ? anchor_ : sum(carried_, tau(index % batch), steps_);
    Vector out = forward(weights, Vector(q, q + width_)).back();
    if (ttt_) {
      const Vector normed = normalize(out);
      for (size_t c = 0; c < width_; ++c) {
        out[c] = q[c] + norm_weight_[c] * normed[c] + norm_bias_[c];
      }
    }
    return out;
  }

 private:
  Network zeros() const {
    Network network = start_;
    for (Layer& layer : network) layer.numbers.assign(layer.numbers.size(), 0.0);
    return network;
  }

  static Network sum(Network a, double factor, const Network& b) {
    for (size_t l = 0; l < a.size(); ++l) {
      for (size_t i = 0; i < a[l].numbers.size(); ++i) a[l].numbers[i] += factor * b[l].numbers[i];
    }
    return a;
  }

  static double gelu(double x) { return 0.5 * x * (1 + std::tanh(inner(x))); }
  static double gelu_slope(double x) {
    const double t = std::tanh(inner(x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kC * (1 + 3 * kA * x * x);
  }
  static double inner(double x) { return kC * (x + kA * x * x * x); }

  // Z of every layer.
  static std::vector<Vector> forward(const Network& network, Vector x) {
    std::vector<Vector> result;
    for (const Layer& layer : network) {
      Vector z(layer.out);
      for (size_t o = 0; o < layer.out; ++o) {
        z[o] = layer.at(layer.in, o);
        for (size_t i = 0; i < layer.in; ++i) z[o] += x[i] * layer.at(i, o);
      }
      x = z;
      for (double& value : x) value = gelu(value);
      result.push_back(std::move(z));
    }
    return result;
  }

  double inverse_deviation(const Vector& z) const {
    const auto n = static_cast<double>(z.size());
    double mean = 0, variance = 0;
    for (const double value : z) mean += value / n;
    for (const double value : z) variance += (value - mean) * (value - mean) / n;
    return 1 / std::sqrt(variance + static_cast<double>(TttRule{}.norm_epsilon));
  }

  Vector normalize(const Vector& z) const {
    double mean = 0;
    for (const double value : z) mean += value / static_cast<double>(z.size());
    const double inverse = inverse_deviation(z);
    Vector result;
    for (const double value : z) result.push_back((value - mean) * inverse);
    return result;
  }

  // Of |M(k) - v|^2, with TTT half of that, at weights `at`; what goes back through a layer passes
  // through those of the mini-batch's start.
  Network loss_gradient(const Network& at, const double* k, const double* v) const {
    const Vector key(k, k + width_);
    const std::vector<Vector> z = forward(at, key);
    const double factor = ttt_ ? 1 : 2;
    Vector e(width_);
    if (ttt_) {
      const Vector normed = normalize(z.back());
      const double inverse = inverse_deviation(z.back());
      const auto n = static_cast<double>(width_);
      for (size_t j = 0; j < width_; ++j) {
        const double out = k[j] + norm_weight_[j] * normed[j] + norm_bias_[j];
        const double through = factor * (out - v[j]) * norm_weight_[j];
        for (size_t i = 0; i < width_; ++i) {
          const double jacobian = (i == j ? 1.0 : 0.0) - 1 / n - normed[i] * normed[j] / n;
          e[i] += through * inverse * jacobian;
        }
      }
    } else {
      double square = 0;
      for (size_t c = 0; c < width_; ++c) {
        e[c] = factor * (z.back()[c] - v[c]);
        square += (z.back()[c] - v[c]) * (z.back()[c] - v[c]);
      }
      const auto limit = static_cast<double>(titans_.error_limit);
      if (limit > 0 && std::sqrt(square) > limit) {
        for (double& value : e) value *= limit / std::sqrt(square);
      }
    }
    if (titans_.online_errors) {
      double square = 0;
      for (size_t i = 0; i < start_.back().in; ++i) {
        const double a = z.size() == 1 ? key[i] : gelu(z[z.size() - 2][i]);
        square += a * a;
      }
      for (double& value : e) value /= std::max(1.0, square);
    }
    Network gradient = zeros();
    for (size_t l = start_.size(); l-- > 0;) {
      const Layer& layer = start_[l];
      for (size_t o = 0; o < layer.out; ++o) {
        for (size_t i = 0; i < layer.in; ++i) {
          gradient[l].at(i, o) = (l == 0 ? key[i] : gelu(z[l - 1][i])) * e[o];
        }
        gradient[l].at(layer.in, o) = e[o];
      }
      if (l == 0) break;
      Vector below(layer.in);
      for (size_t i = 0; i < layer.in; ++i) {
        for (size_t o = 0; o < layer.out; ++o) below[i] += layer.at(i, o) * e[o];
        below[i] *= gelu_slope(z[l - 1][i]);
        if (l + 1 == start_.size()) below[i] *= static_cast<double>(titans_.hidden_rate);
      }
      e = std::move(below);
    }
    return gradient;
  }

  static constexpr double kC = 0.79788456080286536;  // sqrt(2 / pi)
  static constexpr double kA = 0.044715;

  FastWeightMemoryOptions options_;
  TitansRule titans_;
  bool ttt_ = false;
  size_t width_;
  Network target_, start_, anchor_, carried_, steps_, carried_momentum_, step_momentum_;
  Vector norm_weight_, norm_bias_;
};

// o [tokens, heads head_dim]
inline std::vector<double> fast_weight_memory_reference(const FastWeightMemoryOptions& options,
                                                        const FastWeightMemoryValues& in,
                                                        size_t tokens) {
  const auto heads = static_cast<size_t>(options.heads);
  const auto width = static_cast<size_t>(options.head_dim);
  std::vector<double> out(tokens * heads * width);
  for (size_t h = 0; h < heads; ++h) {
    MemoryReference memory(options, in, static_cast<int64_t>(h));
    for (size_t t = 0; t < tokens; ++t) {
      const size_t gate = t * heads + h, at = gate * width;
      const std::vector<double> o = memory.token(
          t, in.q.data() + at, in.k.data() + at, in.v.data() + at, in.theta[gate],
          in.eta.empty() ? 0 : in.eta[gate], in.alpha.empty() ? 0 : in.alpha[gate], in.token_idx);
      std::copy(o.begin(), o.end(), out.begin() + static_cast<int64_t>(at));
    }
  }
  return out;
}

}  // namespace pronghorn::laws
