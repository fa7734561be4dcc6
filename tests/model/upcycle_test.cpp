// A dense model becomes a mixture of experts that computes the same.
#include "model/upcycle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::decode;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::relative_difference;

std::vector<float> scores(const Model& model) {
  const std::vector<int64_t> steps = {9, 1, 30};
  SequenceState state = model.new_state();
  return decode(model, state, random_tokens(40, 61, 3), steps);
}

TEST(Upcycling, ComputesWhatTheDenseModelDoes) {
  for (const std::string name : {"transformer", "gemma", "hybrid"}) {
    const auto& configs = testing_support::model_configs();
    const auto found =
        std::ranges::find(configs, name, [](const auto& pair) { return pair.first; });
    const Model dense(model_config(found->second), 5);
    const auto mixture = upcycle(dense, {.experts = 4, .top_k = 3, .seed = 1});
    // The copies' results are weighed and added up again: rounding of f32.
    EXPECT_LE(relative_difference(scores(*mixture), scores(dense)), 2e-6) << name;
    EXPECT_GT(mixture->parameter_count(), dense.parameter_count());
    EXPECT_LT(mixture->active_parameter_count(), mixture->parameter_count());

    const Folder folder;
    mixture->save(folder.path());
    EXPECT_EQ(
        testing_support::bit_difference(scores(*Model::load(folder.path())), scores(*mixture)), "");
  }
}

const std::string kAttention = R"("pattern": "a", "blocks": {"a": {"mixer": {"type": "attention",
    "heads": 2})";

// Otherwise the copies that a fresh router happens to choose would be the only ones that train.
TEST(Upcycling, TrainsTowardsEqualLoads) {
  const Model dense(model_config(kAttention + R"(, "ffn": {"type": "swiglu", "size": 8}}})"), 5);
  const auto mixture = upcycle(dense, {});
  EXPECT_GT(mixture->config().blocks.at('a').feed_forward.at("balance_loss"), 0);
}

TEST(Upcycling, RefusesWhatIsNotGated) {
  const auto refused = [](const std::string& body) {
    const Model dense(model_config(body), 5);
    return error_of([&] { upcycle(dense, {}); });
  };
  EXPECT_THAT(refused(kAttention + "}}"), HasSubstr("no feed-forwards"));
  EXPECT_THAT(refused(kAttention + R"(, "ffn": {"type": "gelu", "size": 8}}})"), HasSubstr("gate"));
  EXPECT_THAT(refused(kAttention + R"(, "ffn": {"type": "glu", "size": 8, "activation": "relu2",
      "norm": true}}})"),
              HasSubstr("norm"));
  EXPECT_THAT(refused(kAttention + R"(, "ffn": {"type": "moe", "experts": 3, "top_k": 1,
      "size": 8}}})"),
              HasSubstr("experts already"));
}

}  // namespace
}  // namespace pronghorn
