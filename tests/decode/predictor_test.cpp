// Heads for multi-token prediction of published checkpoints: their scores are those that were
// computed with the reference's own layers, they are written back as they were read, a checkpoint
// that lost them is one without heads, and they draft.
#include <gtest/gtest.h>

#include <filesystem>

#include "decode/generator.h"
#include "decode/speculation.h"
#include "decode/syllable_tokenizer.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "support/folder.h"
#include "support/goldens.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::Folder;
using testing_support::golden_path;
using testing_support::golden_tokens;
using testing_support::relative_difference;

std::vector<float> golden_head(const std::string& name) {
  const SafetensorsFile file(golden_path(name) / "logits.safetensors");
  const SafetensorsEntry* entry = file.find("mtp");
  require(entry != nullptr, name, "has no scores of a head");
  std::vector<float> scores(static_cast<size_t>(entry->elements()));
  to_f32(*entry, scores.data());
  return scores;
}

class PredictorTest : public testing::TestWithParam<const char*> {
 protected:
  std::string name() const { return GetParam(); }

  // The head's scores of a text read in pieces.
  static std::vector<float> head_scores(const Model& model, std::span<const int32_t> tokens,
                                        std::span<const int64_t> cuts) {
    const Context context;
    const Tensor hidden = model.forward(context, fresh_segments(tokens, std::ssize(tokens)));
    const int64_t width = model.config().hidden_size;
    SequenceState state = model.new_mtp_state();
    std::vector<float> scores;
    size_t row = 0;
    for (const int64_t cut : cuts) {
      const auto count = static_cast<size_t>(cut);
      const Tensor in = Tensor::from(
          std::span(hidden.values())
              .subspan(row * static_cast<size_t>(width), count * static_cast<size_t>(width)),
          {cut, width});
      const Tensor out = model.logits(
          context, model.mtp_forward(context, 0, in,
                                     continue_sequence(state, tokens.subspan(row + 1, count))));
      scores.insert(scores.end(), out.values().begin(), out.values().end());
      row += count;
    }
    return scores;
  }
};

TEST_P(PredictorTest, HeadGivesTheScoresOfTheReference) {
  const auto model = Model::load(golden_path(name()));
  ASSERT_EQ(model->mtp_depth(), 1);
  const std::vector<int32_t> tokens = golden_tokens(name());
  const std::vector<float> expected = golden_head(name());
  for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{69}, {40, 1, 1, 17, 10}}) {
    EXPECT_LE(relative_difference(head_scores(*model, tokens, cuts), expected), 5e-6);
  }
}

TEST_P(PredictorTest, HeadDependsOnEveryTensor) {
  const auto model = Model::load(golden_path(name()), Purpose::training);
  const std::vector<int32_t> tokens = golden_tokens(name());
  const std::vector<float> expected = golden_head(name());
  int used = 0, unused = 0;
  for (const Parameter& parameter : model->parameters()) {
    if (!parameter.name.starts_with("mtp.")) continue;
    const Tensor before = parameter.value.clone();
    // Every second value: a norm after a projection undoes a factor on all of them.
    const std::span<float> values = parameter.value.values();
    for (size_t i = 0; i < values.size(); i += 2) values[i] *= 1.5f;
    parameter.value.bump_version();
    const std::vector<int64_t> whole = {69};
    const bool changes = relative_difference(head_scores(*model, tokens, whole), expected) > 2e-4;
    // An expert may be given none of the tokens, but not most of them.
    const bool of_expert = parameter.name.find(".experts.") != std::string::npos;
    if (of_expert) (changes ? used : unused) += 1;
    EXPECT_TRUE(changes || of_expert) << parameter.name << " changed";
    parameter.value.copy_from(before);
    parameter.value.bump_version();
  }
  EXPECT_LE(2 * unused, used);
}

TEST_P(PredictorTest, CheckpointThatLostItsHeadHasNone) {
  const SafetensorsFile file(golden_path(name()) / "model.safetensors");
  std::vector<TensorToWrite> kept;
  for (const std::string& tensor : file.names()) {
    if (tensor.starts_with("mtp.") || tensor.starts_with("model.layers.2.")) continue;
    const SafetensorsEntry& entry = *file.find(tensor);
    kept.push_back({tensor, entry.dtype, entry.shape, entry.bytes.data(), entry.bytes.size()});
  }
  const Folder folder;
  write_safetensors(folder / "model.safetensors", std::move(kept));
  std::filesystem::copy_file(golden_path(name()) / "config.json", folder / "config.json");
  const auto model = Model::load(folder.path());
  EXPECT_EQ(model->mtp_depth(), 0);
  const std::vector<int32_t> tokens = golden_tokens(name());
  EXPECT_LE(relative_difference(testing_support::run(*model, fresh_segments(tokens, 70), {}),
                                testing_support::golden_logits(name())),
            5e-6);
}

TEST_P(PredictorTest, HeadSurvivesGgufFiles) {
  const auto model = Model::load(golden_path(name()));
  const Folder folder;
  save_gguf(*model, folder / "model.gguf", GgufMetadata("test"));
  const auto again = Model::load(folder / "model.gguf");
  ASSERT_EQ(again->mtp_depth(), 1);
  EXPECT_EQ(again->config().block_count(), 2);
  const std::vector<int32_t> tokens = golden_tokens(name());
  const std::vector<int64_t> whole = {69};
  EXPECT_EQ(bit_difference(head_scores(*again, tokens, whole), head_scores(*model, tokens, whole)),
            "");
}

TEST_P(PredictorTest, DraftsWithoutChangingTheText) {
  const auto model = Model::load(golden_path(name()));
  const testing_support::SyllableTokenizer tokenizer;
  GenerateOptions options;
  options.max_tokens = 40;
  std::vector<int32_t> text = golden_tokens(name());
  text.resize(20);
  Session plain(*model), drafted(*model);
  const Generated expected = generate(*model, tokenizer, plain, text, options);
  Speculation speculation(make_drafter("mtp", *model, tokenizer), {{3, 1}, false});
  const Generated result = generate(*model, tokenizer, drafted, text, options, {}, &speculation);
  EXPECT_EQ(result.text, expected.text);
  EXPECT_GT(speculation.stats().drafted, 0);
  EXPECT_EQ(bit_difference(drafted.scores(*model, {}).values(), plain.scores(*model, {}).values()),
            "");
}

INSTANTIATE_TEST_SUITE_P(Goldens, PredictorTest,
                         testing::Values("qwen3_5_text_mtp", "deepseek_v3_mtp"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace pronghorn
