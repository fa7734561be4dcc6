// Sides: attention beside the stream, and weights that several layers share.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "model/model.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::run;

const std::string kMamba = R"("mixer": {"type": "mamba2", "heads": 4, "state": 6})";

std::string side(int shared, const std::string& attention = R"("heads": 3, "adapter_rank": 2)") {
  return fmt::format(R"("side": {{"shared": {}, "mixer": {{"type": "attention", {}}},
                         "ffn": {{"type": "glu", "size": 20, "activation": "gelu",
                         "adapter_rank": 2}}}})",
                     shared, attention);
}

// A model of two layers with the side `shared` each, and one without between them.
ModelConfig two_uses(int shared) {
  return model_config(fmt::format(
      R"("pattern": "sms", "blocks": {{"m": {{{0}}}, "s": {{{0}, {1}}}}})", kMamba, side(shared)));
}

std::set<std::string> names_of(const Model& model) {
  std::set<std::string> names;
  for (const Parameter& parameter : model.parameters()) names.insert(parameter.name);
  return names;
}

TEST(Sides, SharedWeightsAreThereOnce) {
  const Model shared(two_uses(1), 1), own(two_uses(0), 1);
  const std::set<std::string> names = names_of(shared);
  for (const char* name : {"norm.weight", "ffn_norm.weight", "mixer.q_proj.weight",
                           "mixer.o_proj.weight", "ffn.gate_proj.weight", "ffn.down_proj.weight"}) {
    EXPECT_TRUE(names.contains(fmt::format("layers.0.side.{}", name))) << name;
    EXPECT_FALSE(names.contains(fmt::format("layers.2.side.{}", name))) << name;
    EXPECT_TRUE(names_of(own).contains(fmt::format("layers.2.side.{}", name))) << name;
  }
  for (const char* name : {"linear.weight", "mixer.q_adapter.0.weight", "mixer.v_adapter.1.weight",
                           "ffn.adapter.0.weight", "ffn.up_adapter.1.weight"}) {
    EXPECT_TRUE(names.contains(fmt::format("layers.0.side.{}", name))) << name;
    EXPECT_TRUE(names.contains(fmt::format("layers.2.side.{}", name))) << name;
  }
  EXPECT_LT(shared.parameter_count(), own.parameter_count());
  // A token meets them twice all the same, and each place keeps keys of its own.
  EXPECT_EQ(shared.cost(100).matmul, own.cost(100).matmul);
  EXPECT_EQ(shared.cost(100).sequence, own.cost(100).sequence);
  EXPECT_EQ(shared.predicted_state_bytes(100), own.predicted_state_bytes(100));
}

// With the same numbers in both places, weights of their own compute the same bit for bit.
TEST(Sides, ComputeWhatCopiesWould) {
  const Model shared(two_uses(1), 1), own(two_uses(0), 1);
  for (const Parameter& parameter : own.parameters()) {
    std::string name = parameter.name;
    if (!names_of(shared).contains(name)) name.replace(0, 8, "layers.0");
    for (const Parameter& from : shared.parameters()) {
      if (from.name == name) parameter.value.copy_from(from.value);
    }
    parameter.value.bump_version();
  }
  const std::vector<int32_t> tokens = random_tokens(40, 61, 3);
  const Batch batch = fresh_segments(tokens, 40);
  const std::vector<float> scores = run(shared, batch, Precision::f32);
  EXPECT_EQ(bit_difference(scores, run(own, batch, Precision::f32)), "");
}

TEST(Sides, AreSavedAndLoaded) {
  const Model model(two_uses(1), 1);
  const Folder folder;
  model.save(folder.path());
  const auto loaded = Model::load(folder.path());
  EXPECT_EQ(loaded->fingerprint(), model.fingerprint());
  EXPECT_EQ(names_of(*loaded), names_of(model));
  const std::vector<int32_t> tokens = random_tokens(20, 61, 4);
  const Batch batch = fresh_segments(tokens, 20);
  EXPECT_EQ(bit_difference(run(*loaded, batch, Precision::f32), run(model, batch, Precision::f32)),
            "");
}

TEST(Sides, RefuseWhatCannotBe) {
  const auto read = [](const std::string& blocks, const std::string& more = "") {
    return error_of([&] {
      model_config(fmt::format(R"("pattern": "st", {} "blocks": {{{}}})", more, blocks));
    });
  };
  const std::string plain = fmt::format(R"("s": {{{0}, {1}}}, "t": {{{0}, {1}}})", kMamba, side(1));
  EXPECT_EQ(read(plain), "no error");
  EXPECT_THAT(read(plain, R"("mtp": {"heads": 1},)"), HasSubstr("mtp.block"));
  EXPECT_THAT(read(fmt::format(R"("s": {{{0}, {1}}}, "t": {{{0}, {2}}})", kMamba, side(1),
                               side(1, R"("heads": 2)"))),
              HasSubstr("shares the weights of side 1"));
  EXPECT_THAT(
      read(fmt::format(R"("s": {{{0}}}, "t": {{"ffn": {{"type": "swiglu", "size": 8}}, {1}}})",
                       kMamba, side(1))),
      HasSubstr("has no mixer"));
  EXPECT_THAT(read(fmt::format(R"("s": {{{0}}}, "t": {{{0}, "side": {{{0},
                                   "ffn": {{"type": "swiglu", "size": 8}}}}}})",
                               kMamba)),
              HasSubstr("cannot see the stream and the embeddings"));
  EXPECT_THAT(read(fmt::format(R"("s": {{{0}}}, "t": {{{0}, {1}}})", kMamba, side(-1))),
              HasSubstr("shared"));
}

}  // namespace
}  // namespace pronghorn
