// What backend.h promises: operators reach the numbers of tensors and journals through kernels and
// memory() only. Every kind of model is trained, reads a prompt, decodes, is forked, cut back and
// checks a token tree while that memory is closed to everything else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ops/cross_entropy.h"
#include "support/guarded_memory.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::Guard;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::random_tokens;
using testing_support::test_name;
using testing_support::use_guarded_memory;

class GuardedMemoryTest : public testing::TestWithParam<size_t> {
 protected:
  GuardedMemoryTest() { use_guarded_memory(); }

  ModelConfig config() const { return model_config(model_configs()[GetParam()].second); }

  std::vector<int32_t> tokens(int64_t count, uint64_t seed) const {
    return random_tokens(count, config().vocab_size, seed);
  }
};

TEST(GuardedMemory, SeesTheHost) {
  use_guarded_memory();
  const Tensor x = Tensor::full({4}, 2);
  const auto follow = [&] {
    const Guard guard;
    return x.data()[1];
  };
  EXPECT_DEATH(fmt::print(stderr, "{}", follow()), testing::_);
  const Guard guard;
  EXPECT_THAT(x.read(), testing::ElementsAre(2, 2, 2, 2));
}

TEST_P(GuardedMemoryTest, Training) {
  Model model(config(), 7);
  const std::vector<int32_t> text = tokens(100, 1);
  const Guard guard;
  Tape tape;
  Context context;
  context.tape = &tape;
  const Tensor hidden = model.forward(context, fresh_segments(text, 50));
  const CrossEntropy loss =
      linear_cross_entropy(context, hidden, model.head(), tokens(100, 2), 0.01, 1e-4);
  EXPECT_TRUE(std::isfinite(loss.nll));
  tape.run_backward();
}

TEST_P(GuardedMemoryTest, Inference) {
  Model model(config(), 7);
  model.freeze();
  const std::vector<int32_t> text = tokens(150, 3);
  const auto read = [&] {
    std::vector<float> all;
    SequenceState state = model.new_state();
    const auto step = [&](SequenceState& to, std::span<const int32_t> part) {
      const Context context;
      const Tensor hidden = model.forward(context, continue_sequence(to, part));
      const PooledVector<float> logits = model.logits(context, hidden).read();
      all.insert(all.end(), logits.begin(), logits.end());
    };
    step(state, std::span(text).first(70));
    for (size_t i = 70; i < 110; ++i) step(state, std::span(text).subspan(i, 1));
    SequenceState fork = state;
    step(fork, std::span(text).subspan(110, 5));
    fork.truncate(112);
    step(fork, std::span(text).subspan(112, 9));
    Batch tree = continue_sequence(state, std::span(text).subspan(110, 4));
    tree.segments[0].parents = {-1, 0, 0, 2};
    tree.positions = {110, 111, 111, 112};
    const Context context;
    static_cast<void>(model.forward(context, tree));
    const std::vector<int32_t> path = {0, 2, 3};
    state.commit(path);
    step(state, std::span(text).subspan(120, 20));
    return all;
  };
  const std::vector<float> open = read();
  const Guard guard;
  EXPECT_EQ(bit_difference(read(), open), "");
}

INSTANTIATE_TEST_SUITE_P(Models, GuardedMemoryTest,
                         testing::Range(size_t{0}, model_configs().size()), [](const auto& test) {
                           return test_name(model_configs()[test.param].first);
                         });

}  // namespace
}  // namespace pronghorn
