// Memory: attention stores nothing of size T x T in training, and the states of recurrences do not
// grow with the text.
#include <gtest/gtest.h>

#include "base/error.h"
#include "model/model.h"
#include "ops/cross_entropy.h"
#include "support/tiny_models.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

// Most bytes held during a forward and backward over one sequence of `length` tokens, beyond what
// the model and its gradients hold anyway.
int64_t training_bytes(const Model& model, int64_t length) {
  const std::vector<int32_t> tokens(static_cast<size_t>(length), 1);
  const auto step = [&] {
    Tape tape;
    Context context;
    context.tape = &tape;
    const Batch batch = fresh_segments(tokens, length);
    const Tensor hidden = model.forward(context, batch);
    model.cross_entropy(context, hidden, tokens, 1, 0);
    tape.run_backward();
  };
  step();  // packed weights and gradients come to stay
  reset_memory_peak();
  const int64_t before = memory_use().bytes;
  step();
  return memory_use().peak - before;
}

ModelConfig config_named(std::string_view name) {
  for (const auto& [key, body] : testing_support::model_configs()) {
    if (key == name) return testing_support::model_config(body);
  }
  throw Error("memory_test", "no such configuration");
}

TEST(Memory, OfTrainingAttentionGrowsWithTheLength) {
  const Model model(config_named("transformer"), 1);
  const int64_t small = training_bytes(model, 1024), large = training_bytes(model, 8192);
  // Eight times the tokens: at most eight times the memory, and a tenth for buffers of fixed size.
  // A T x T matrix of one head would add 268 MB at 8192.
  EXPECT_LT(static_cast<double>(large), 8.8 * static_cast<double>(small));
  EXPECT_GT(large, 4 * small);
}

TEST(Memory, OfRecurrentStatesStaysTheSame) {
  for (const char* name :
       {"mamba", "mamba2", "gated_deltanet", "ttt_linear", "ttt_mlp", "titans_memory", "titans_mac",
        "titans_mag", "titans_mal", "window", "prefix", "griffin", "s4d", "rwkv7"}) {
    const Model model(config_named(name), 1);
    SequenceState state = model.new_state();
    int64_t at_512 = 0;
    while (state.length() < 16384) {
      const std::vector<int32_t> tokens(512, 2);
      model.forward({}, continue_sequence(state, tokens));
      if (state.length() == 512) at_512 = state.bytes();
      EXPECT_LE(state.bytes(), at_512 + at_512 / 10) << name << " after " << state.length();
    }
  }
}

}  // namespace
}  // namespace pronghorn
