// Guesses of a diffusion model with blocks, against one forward over the text and masked tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "decode/drafter.h"
#include "decode/syllable_tokenizer.h"
#include "support/diffusion_models.h"
#include "support/errors.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::diffusion_config;
using testing_support::error_of;
using testing_support::kMaskToken;
using testing_support::random_tokens;

using Tokens = std::vector<int32_t>;

constexpr int64_t kBlock = 4;

class BlockDrafterTest : public testing::Test {
 protected:
  // The likeliest tokens after a text, with as many masked tokens as fill a block.
  Tokens expected(const Tokens& text, int64_t guesses) const {
    Tokens canvas = text;
    while (std::ssize(canvas) < std::ssize(text) + guesses || std::ssize(canvas) % kBlock != 0) {
      canvas.push_back(kMaskToken);
    }
    SequenceState state = model_->new_state();
    const Tensor logits = model_->logits({}, model_->forward({}, continue_sequence(state, canvas)));
    Tokens best;
    for (int64_t i = 0; i < guesses; ++i) {
      const float* row = logits.row(std::ssize(text) + i);
      best.push_back(static_cast<int32_t>(std::max_element(row, row + kMaskToken) - row));
    }
    return best;
  }

  static DraftRequest request(size_t sequence, DraftShape shape) {
    static const SamplingOptions sampling;
    DraftRequest request;
    request.sequence = sequence;
    request.shape = std::move(shape);
    request.sampling = &sampling;
    return request;
  }

  std::shared_ptr<const Model> model_ =
      std::make_shared<Model>(diffusion_config("ala", R"("block": 4)"), 7);
};

TEST_F(BlockDrafterTest, GuessesWhatTheModelSaysOfMaskedPlaces) {
  const auto drafter = make_block_drafter(model_, 60, "blocks");
  drafter->start(2);
  Random random(3, "lengths");
  std::vector<Tokens> texts(2);
  for (int round = 0; round < 12; ++round) {
    std::vector<DraftRequest> requests;
    for (size_t s = 0; s < 2; ++s) {
      // Runs of right guesses and single tokens; the drafter is told of all.
      const Tokens more = random_tokens(1 + static_cast<int64_t>(random.below(6)), 60,
                                        static_cast<uint64_t>(round) * 2 + s);
      drafter->append(s, more);
      texts[s].insert(texts[s].end(), more.begin(), more.end());
      requests.push_back(request(s, DraftShape::chain(1 + static_cast<int64_t>(random.below(9)))));
    }
    drafter->draft({}, requests);
    for (size_t s = 0; s < 2; ++s) {
      EXPECT_EQ(requests[s].draft.tokens, expected(texts[s], std::ssize(requests[s].shape.parents)))
          << "round " << round << ", text of " << texts[s].size();
    }
  }
}

TEST_F(BlockDrafterTest, ALongTextIsReadInPieces) {
  const auto drafter = make_block_drafter(model_, 60, "blocks");
  drafter->start(1);
  const Tokens text = random_tokens(2 * kPromptPiece + 7, 60, 5);
  drafter->append(0, text);
  std::vector<DraftRequest> requests = {request(0, DraftShape::chain(3))};
  drafter->draft({}, requests);
  EXPECT_EQ(requests[0].draft.tokens, expected(text, 3));
}

TEST_F(BlockDrafterTest, ATreeHasTheSameScoresOnEachLevel) {
  const auto drafter = make_block_drafter(model_, 60, "blocks");
  drafter->start(1);
  const Tokens text = random_tokens(6, 60, 9);
  drafter->append(0, text);
  // Two first tokens, each with one after it.
  DraftShape shape{{-1, -1, 0, 1}, {0, 1, 0, 0}};
  std::vector<DraftRequest> requests = {request(0, shape)};
  drafter->draft({}, requests);
  const Draft& draft = requests[0].draft;
  check_draft(draft, 61);
  const Tokens best = expected(text, 2);
  ASSERT_EQ(draft.tokens.size(), 4u);
  EXPECT_EQ(draft.tokens[0], best[0]);
  EXPECT_EQ(draft.tokens[2], best[1]);
  EXPECT_EQ(draft.tokens[3], best[1]);
}

TEST_F(BlockDrafterTest, RefusesModelsThatSeeTextsWhole) {
  const auto made = [](const std::string& diffusion) {
    return error_of([&] {
      make_block_drafter(std::make_shared<Model>(diffusion_config("2a", diffusion), 1), 61,
                         "draft");
    });
  };
  EXPECT_THAT(made(""), HasSubstr("draft: fills in texts that it sees whole"));
  EXPECT_THAT(made(R"("block": 4, "shift": true)"), HasSubstr("row before it"));
  EXPECT_THAT(error_of([] {
                make_block_drafter(
                    std::make_shared<Model>(diffusion_config("am", R"("block": 4)"), 1), 61,
                    "draft");
              }),
              HasSubstr("draft: has mixers with a state"));
}

}  // namespace
}  // namespace pronghorn
