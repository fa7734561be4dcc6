// A published GGUF file against llama.cpp, of which golden/smollm2_greedy.json holds the likeliest
// tokens after five prompts and their leads over the next likeliest (scripts/llama_reference.cpp on
// October 2026's source). The file is not in the repository: scripts/fetch_smollm2.sh.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/files.h"
#include "formats/json.h"
#include "model/model.h"
#include "model/weight_bytes.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

std::filesystem::path smollm2() {
  const char* path = std::getenv("PRONGHORN_SMOLLM2");
  return path == nullptr ? "" : path;
}

#define NEEDS_SMOLLM2                                                                       \
  if (smollm2().empty()) {                                                                  \
    GTEST_SKIP() << "needs PRONGHORN_SMOLLM2=$(scripts/fetch_smollm2.sh), a file of 98 MB"; \
  }

TEST(Smollm2, GreedyTextIsThatOfLlamaCppUntilTheFirstTie) {
  NEEDS_SMOLLM2
  const std::string path =
      std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden/smollm2_greedy.json";
  const nlohmann::json goldens = parse_json(read_file(path), path);
  ASSERT_EQ(goldens.size(), 5u);
  const auto model = Model::load(smollm2());
  for (const nlohmann::json& golden : goldens) {
    const auto prompt = golden.at("prompt").get<std::vector<int32_t>>();
    const auto expected = golden.at("tokens").get<std::vector<int32_t>>();
    ASSERT_EQ(expected.size(), 100u);
    SequenceState state = model->new_state();
    std::vector<float> scores =
        testing_support::run(*model, continue_sequence(state, prompt), Precision::bf16);
    const auto size = static_cast<size_t>(model->config().vocab_size);
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto last = std::span(scores).last(size);
      const auto best = std::max_element(last.begin(), last.end());
      const auto token = static_cast<int32_t>(best - last.begin());
      if (token != expected[i]) {
        // Both engines round activations to 8 bits, with scales in f32 here and in f16 there, which
        // moves scores (of 10 to 30) by a few tenths: only what is that close may turn round.
        constexpr double kNoise = 0.5;
        EXPECT_LE(golden.at("leads").at(i).get<double>(), kNoise) << "token " << i;
        EXPECT_LE(*best - last[static_cast<size_t>(expected[i])], kNoise) << "token " << i;
        break;
      }
      scores = testing_support::run(*model, continue_sequence(state, {&token, 1}), Precision::bf16);
    }
  }
}

TEST(Smollm2, TakesTheMemoryOfItsFile) {
  NEEDS_SMOLLM2
  const auto model = Model::load(smollm2());
  const std::vector<int32_t> tokens = {504, 3575, 282, 4649, 314};
  SequenceState state = model->new_state();
  testing_support::run(*model, continue_sequence(state, tokens), Precision::bf16);
  int64_t held = 0;
  for (const WeightBytes& part : weight_bytes(*model)) held += part.mapped ? 0 : part.bytes;
  EXPECT_LE(static_cast<double>(held),
            1.25 * static_cast<double>(std::filesystem::file_size(smollm2())));
}

}  // namespace
}  // namespace pronghorn
