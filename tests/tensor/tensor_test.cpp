#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "tensor/tape.h"

namespace pronghorn {
namespace {

Tensor counting(Shape shape) {
  Tensor tensor = Tensor::empty(std::move(shape));
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<float>(i);
  return tensor;
}

TEST(Tensor, ViewsShareNumbers) {
  const Tensor base = counting({4, 6});
  const Tensor slice = base.column_slice(2, 3).row_slice(1, 2);
  EXPECT_EQ(slice.rows(), 2);
  EXPECT_EQ(slice.row_stride(), 6);
  EXPECT_FALSE(slice.contiguous());
  EXPECT_EQ(slice.row(1)[2], 16);
  slice.fill(-1);
  EXPECT_EQ(base.row(1)[2], -1);
  EXPECT_EQ(base.row(1)[1], 7);
  EXPECT_EQ(base.row(2)[5], 17);
  EXPECT_EQ(base.reshape({2, 12}).row(1)[0], 12);
  EXPECT_TRUE(slice.clone().contiguous());
}

TEST(Tensor, BadViewsThrow) {
  const Tensor base = counting({4, 6});
  EXPECT_THROW(base.column_slice(4, 3), Error);
  EXPECT_THROW(base.column_slice(-1, 3), Error);
  EXPECT_THROW(base.row_slice(4, 1), Error);
  EXPECT_THROW(base.reshape({5, 5}), Error);
  EXPECT_THROW(base.column_slice(0, 2).reshape({8}), Error);
  EXPECT_THROW(base.column_slice(0, 2).values(), Error);
  EXPECT_THROW(base.i32_data(), Error);
  EXPECT_THROW(Tensor().data(), Error);
  EXPECT_THROW(Tensor::empty({-1, 2}), Error);
  EXPECT_THROW(Tensor::empty({int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW(Tensor::from(std::vector<float>(5), {2, 3}), Error);
}

TEST(TensorGradient, FirstWriterOverwritesLaterOnesAdd) {
  const Tensor x = counting({2, 3});
  x.set_requires_grad(true);
  EXPECT_FALSE(x.has_grad());
  EXPECT_THROW(x.grad(), Error);
  EXPECT_FALSE(x.grad_target().accumulate);
  EXPECT_TRUE(x.grad_target().accumulate);
  x.clear_grad();
  EXPECT_FALSE(x.has_grad());
  EXPECT_THROW(counting({2, 2}).grad_target(), Error);
}

TEST(TensorGradient, ViewsWriteIntoTheGradientOfTheirBase) {
  const Tensor base = counting({2, 4});
  base.set_requires_grad(true);
  const Tensor left = base.column_slice(0, 2), right = base.column_slice(2, 2);
  EXPECT_TRUE(left.requires_grad());
  const GradTarget target = right.grad_target();
  EXPECT_TRUE(target.accumulate);  // zeros, since the rest must be defined too
  target.tensor.row(1)[0] += 5;
  left.give_grad(Tensor::full({2, 2}, 1.0f));
  const std::vector<float> expected = {1, 1, 0, 0, 1, 1, 5, 0};
  const Tensor gradient = base.grad();
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), gradient.values().begin()));
  EXPECT_FALSE(base.detach().requires_grad());
  EXPECT_FALSE(base.clone().has_grad());
}

TEST(TensorGradient, GivenGradientsAreSharedUntilWritten) {
  const Tensor a = counting({2, 3}), b = counting({2, 3}), c = counting({3, 2});
  for (const Tensor& tensor : {a, b, c}) tensor.set_requires_grad(true);
  {
    const Tensor g = Tensor::full({2, 3}, 2.0f);
    a.give_grad(g);
    b.give_grad(g);
    EXPECT_EQ(a.grad().data(), b.grad().data());
    EXPECT_THROW(c.give_grad(g), Error);
  }
  a.give_grad(Tensor::full({2, 3}, 3.0f));
  EXPECT_EQ(a.grad().values()[5], 5.0f);
  EXPECT_EQ(b.grad().values()[5], 2.0f);
  // b now is the only owner and is written in place.
  const float* before = b.grad().data();
  b.grad_target().tensor.fill(9);
  EXPECT_EQ(b.grad().data(), before);
}

TEST(TensorGradient, GivenToItselfTwice) {
  const Tensor x = counting({2, 2}), y = counting({2, 2});
  x.set_requires_grad(true);
  y.set_requires_grad(true);
  y.give_grad(Tensor::full({2, 2}, 1.5f));
  x.give_grad(y.grad());  // as add(x, x) does
  x.give_grad(y.grad());
  EXPECT_EQ(x.grad().values()[3], 3.0f);
  EXPECT_EQ(y.grad().values()[3], 1.5f);
}

TEST(TensorGradient, ReshapedAndSlicedGradients) {
  const Tensor x = counting({4, 3});
  x.set_requires_grad(true);
  const Tensor flat = x.reshape({12});
  flat.give_grad(counting({12}));
  EXPECT_EQ(x.grad().row(2)[1], 7);
  EXPECT_EQ(x.row_slice(3, 1).grad().data()[0], 9);
  // A strided gradient is copied.
  const Tensor z = counting({4, 2});
  z.set_requires_grad(true);
  z.give_grad(counting({4, 5}).column_slice(1, 2));
  EXPECT_TRUE(z.grad().contiguous());
  EXPECT_EQ(z.grad().row(2)[1], 12);
}

TEST(Tape, RunsBackwardsOnceAndFreesAsItGoes) {
  Tape tape;
  std::vector<int> order;
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = held;
  tape.record([&] {
    order.push_back(1);
    EXPECT_TRUE(watch.expired());
  });
  tape.record([&order, held] { order.push_back(2 * *held); });
  held.reset();
  EXPECT_FALSE(watch.expired());
  tape.run_backward();
  EXPECT_EQ(order, (std::vector<int>{2, 1}));
  EXPECT_TRUE(tape.empty());
  tape.run_backward();
  EXPECT_EQ(order.size(), 2u);
}

TEST(Storage, BytesAreCounted) {
  const int64_t before = memory_use().bytes;
  {
    const Tensor tensor = Tensor::empty({100, 10});
    EXPECT_EQ(memory_use().bytes - before, 4000);
  }
  EXPECT_EQ(memory_use().bytes, before);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(Tensor::empty({3}).data()) % 64, 0u);
}

}  // namespace
}  // namespace pronghorn
