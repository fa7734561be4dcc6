// linear_transposed against naive float64 products. It has no row in the table of the laws: results
// are those of whole prompts, and a row may differ in its last bits with the rows beside it (which
// the expanded form of latent attention, its only user, allows for).
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "base/error.h"
#include "ops/linear.h"
#include "ops/operator_check.h"

namespace pronghorn {
namespace {

constexpr int64_t kOut = 21, kIn = 30;

// x W for x [rows, out] and W [out, in].
std::vector<double> product(const std::vector<double>& x, const std::vector<double>& w,
                            int64_t rows, int64_t out, int64_t in) {
  std::vector<double> y(static_cast<size_t>(rows * in));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        y[static_cast<size_t>(row * in + i)] +=
            x[static_cast<size_t>(row * out + o)] * w[static_cast<size_t>(o * in + i)];
      }
    }
  }
  return y;
}

TEST(LinearTransposed, EqualsFloat64) {
  check::OperatorCheck spec;
  spec.name = "linear_transposed";
  // The weight is flat: columns of a weight are never a slice.
  spec.inputs = [](int64_t rows) {
    return std::vector<check::Input>{{{rows, kOut}, -1, 1}, {{kOut * kIn}, -1, 1}};
  };
  spec.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        linear_transposed(context, in[0], Weight(in[1].reshape({kOut, kIn})))};
  };
  spec.reference = [](const check::Values& in, int64_t rows) {
    return check::Values{product(in[0], in[1], rows, kOut, kIn)};
  };
  check::check_operator(spec);
}

struct Drawn {
  Tensor tensor;
  std::vector<double> values;
};

// Whole multiples of 1/64 below 1: bf16 has these very numbers.
Drawn draw(int64_t rows, int64_t columns, const char* stream) {
  Random random(5, stream);
  Drawn drawn{Tensor::empty({rows, columns}), {}};
  for (float& value : drawn.tensor.values()) {
    value = std::round(static_cast<float>(random.uniform(-1, 1)) * 64) / 64;
    drawn.values.push_back(double{value});
  }
  return drawn;
}

// A read-only weight is widened some rows at a time, here in several pieces; in bf16 as in f32.
TEST(LinearTransposed, TakesReadOnlyWeightsInPieces) {
  constexpr int64_t kRows = 3, kHigh = 37, kWide = 70000;
  const Drawn x = draw(kRows, kHigh, "x"), w = draw(kHigh, kWide, "w");
  const check::Values expected = {product(x.values, w.values, kRows, kHigh, kWide)};
  for (const Encoding* encoding : {&encodings::f32, &encodings::bf16}) {
    const auto bytes = std::make_shared<std::vector<std::byte>>(
        static_cast<size_t>(encoding->bytes(kHigh * kWide)));
    encoding->encode(w.tensor.data(), kHigh * kWide, bytes->data());
    const Weight weight(kHigh, kWide);
    weight.assign({encoding, *bytes, bytes, nullptr});
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      const Tensor y = linear_transposed({nullptr, precision}, x.tensor, weight);
      // Products of such numbers and sums of 37 of them are exact in f32.
      check::expect_near({check::flatten(y)}, expected, 0, std::string(encoding->name));
    }
  }
}

TEST(LinearTransposed, AddsTheAdapter) {
  const Drawn x = draw(4, kOut, "x"), w = draw(kOut, kIn, "w");
  const Drawn a = draw(2, kIn, "a"), b = draw(kOut, 2, "b");
  const Weight weight(w.tensor);
  auto change = std::make_shared<LowRank>();
  change->a = Weight(a.tensor);
  change->b = Weight(b.tensor);
  change->scale = 0.5f;
  weight.adapt(change);
  std::vector<double> whole = w.values;
  const std::vector<double> low = product(b.values, a.values, kOut, 2, kIn);
  for (size_t i = 0; i < whole.size(); ++i) whole[i] += 0.5 * low[i];
  // A few roundings of f32.
  check::expect_near({check::flatten(linear_transposed({}, x.tensor, weight))},
                     {product(x.values, whole, 4, kOut, kIn)}, 1e-6, "with an adapter");
}

TEST(LinearTransposed, WidthsMustAgree) {
  EXPECT_THROW(linear_transposed({}, Tensor::zeros({2, 3}), Weight(Tensor::zeros({4, 3}))), Error);
}

}  // namespace
}  // namespace pronghorn
