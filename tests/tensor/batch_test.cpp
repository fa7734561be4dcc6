#include "tensor/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Sequences {
  SequenceState a, b;

  // A chain of 3 rows, a tree of 4 and a fresh sequence of 2.
  Batch batch() {
    Batch batch;
    add_segment(batch, a, std::vector<int32_t>{5, 6, 7});
    add_segment(batch, b, std::vector<int32_t>{1, 2, 3, 4}, {-1, 0, 0, 2});
    add_fresh_segment(batch, std::vector<int32_t>{8, 9});
    return batch;
  }
};

TEST(Batch, SegmentsFollowTheirSequences) {
  Sequences sequences;
  sequences.a.advance(10);
  sequences.b.advance(20);
  const Batch batch = sequences.batch();
  EXPECT_THAT(batch.tokens, ElementsAre(5, 6, 7, 1, 2, 3, 4, 8, 9));
  EXPECT_THAT(batch.positions, ElementsAre(10, 11, 12, 20, 21, 21, 22, 0, 1));
  const CheckedBatch checked(batch);
  EXPECT_EQ(checked.rows(), 9);
  EXPECT_EQ(checked.segments()[1].first_row, 3);
  EXPECT_THAT(checked.positions(checked.segments()[1]), ElementsAre(20, 21, 21, 22));

  const Batch fresh = fresh_segments(std::vector<int32_t>{1, 2, 3, 4}, 2);
  EXPECT_THAT(fresh.positions, ElementsAre(0, 1, 0, 1));
  EXPECT_EQ(fresh.segments.size(), 2U);
  EXPECT_THROW(fresh_segments(fresh.tokens, 3), Error);
}

TEST(Batch, BrokenPromisesAreRefused) {
  const auto expect_refused = [](const char* why, const std::function<void(Batch&)>& change) {
    Sequences sequences;
    Batch batch = sequences.batch();
    EXPECT_NO_THROW(CheckedBatch{batch});
    change(batch);
    try {
      const CheckedBatch checked(batch);
      ADD_FAILURE() << "accepted: " << why;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(why));
    }
  };
  expect_refused("follow one another", [](Batch& b) { b.segments[1].first_row = 4; });
  expect_refused("follow one another", [](Batch& b) { b.segments[2].length = -1; });
  expect_refused("more than its 9 rows", [](Batch& b) { b.segments[2].length = INT64_MAX; });
  expect_refused("for 9 positions", [](Batch& b) { b.segments[2].length = 1; });
  expect_refused("in two segments", [](Batch& b) { b.segments[1].state = b.segments[0].state; });
  expect_refused("needs a state", [](Batch& b) { b.segments[1].state = nullptr; });
  expect_refused("is causal", [](Batch& b) { b.segments[1].mask = Mask::full; });
  expect_refused("mask", [](Batch& b) { b.segments[0].mask = static_cast<Mask>(7); });
  expect_refused("3 parents", [](Batch& b) { b.segments[1].parents.pop_back(); });
  expect_refused("has parent 3", [](Batch& b) { b.segments[1].parents[3] = 3; });
  expect_refused("has parent -2", [](Batch& b) { b.segments[1].parents[3] = -2; });
  expect_refused("position -1", [](Batch& b) { b.positions[8] = -1; });
  expect_refused("does not follow", [](Batch& b) { b.positions[1] = b.positions[0]; });
  expect_refused("does not follow", [](Batch& b) { b.positions[6] = b.positions[5]; });
  expect_refused("8 tokens", [](Batch& b) { b.tokens.pop_back(); });
  expect_refused("both", [](Batch& b) { b.embeddings = Tensor::zeros({9, 2}); });
  expect_refused("embeddings", [](Batch& b) {
    b.tokens.clear();
    b.embeddings = Tensor::zeros({8, 2});
  });
  expect_refused("10 coordinates", [](Batch& b) { b.coordinates.resize(10); });
  expect_refused("segment 2 goes on from segment 2", [](Batch& b) { b.segments[2].after = 2; });
  expect_refused("segment 2 goes on from segment -2", [](Batch& b) { b.segments[2].after = -2; });
  expect_refused("have a state", [](Batch& b) { b.segments[2].after = 0; });
}

// Segments that go on from others are fresh chains, and what they go on from has rows.
TEST(Batch, SegmentsGoOnFromOthers) {
  Batch batch = fresh_segments(std::vector<int32_t>(8, 1), 2);
  batch.segments[1].after = batch.segments[2].after = 0;
  batch.segments[3].after = 2;
  EXPECT_NO_THROW(CheckedBatch{batch});
  Batch full = batch;
  full.segments[0].mask = Mask::full;
  EXPECT_THROW(CheckedBatch{full}, Error);
  batch.segments[2].length = 0;
  batch.segments[3].first_row = 4;
  batch.segments[3].length = 4;
  EXPECT_THROW(CheckedBatch{batch}, Error);
}

TEST(Batch, ASequenceIsFoundTwiceAmongMany) {
  std::vector<SequenceState> states(200);
  Batch batch;
  for (SequenceState& state : states) add_segment(batch, state, std::vector<int32_t>{1});
  EXPECT_NO_THROW(CheckedBatch{batch});
  batch.segments[150].state = &states[3];
  EXPECT_THROW(CheckedBatch{batch}, Error);
}

TEST(Batch, OnlyLongChainsNeedNoExactRows) {
  const std::vector<int32_t> step(kExactStep), longer(kExactStep + 1);
  const auto needs = [&](const std::function<void(Batch&, SequenceState&)>& add) {
    SequenceState first, second;
    Batch batch;
    add_segment(batch, first, longer);
    add(batch, second);
    return CheckedBatch(batch).needs_exact_rows();
  };
  EXPECT_FALSE(needs([](Batch&, SequenceState&) {}));
  EXPECT_FALSE(
      needs([&](Batch& batch, SequenceState& state) { add_segment(batch, state, longer); }));
  EXPECT_FALSE(needs([&](Batch& batch, SequenceState&) { add_fresh_segment(batch, longer); }));
  EXPECT_TRUE(needs([&](Batch& batch, SequenceState& state) { add_segment(batch, state, step); }));
  EXPECT_TRUE(needs([&](Batch& batch, SequenceState&) { add_fresh_segment(batch, step); }));
  EXPECT_TRUE(needs([&](Batch& batch, SequenceState& state) {
    std::vector<int32_t> parents;  // a tree, however long
    for (int32_t i = 0; i <= kExactStep; ++i) parents.push_back(i - 1);
    add_segment(batch, state, longer, parents);
  }));
}

TEST(Batch, ACopyOutlivesTheBatch) {
  SequenceState state;
  auto batch = std::make_unique<Batch>(continue_sequence(state, std::vector<int32_t>{4, 5}));
  batch->coordinates = {1, 2, 3, 4, 5, 6};
  const CheckedBatch view(*batch), kept = view;
  const int32_t* data = batch->tokens.data();
  EXPECT_NE(kept.tokens().data(), data);
  EXPECT_EQ(view.tokens().data(), data);
  batch.reset();
  EXPECT_THAT(kept.tokens(), ElementsAre(4, 5));
  EXPECT_EQ(kept.coordinate_count(), 3);
  const CheckedBatch temporary = continue_sequence(state, std::vector<int32_t>{6});
  EXPECT_THAT(temporary.tokens(), ElementsAre(6));
}

TEST(Batch, PiecesCoverAll) {
  std::vector<std::pair<int64_t, int64_t>> pieces;
  const auto read = [&](int64_t done, int64_t count) { pieces.emplace_back(done, count); };
  read_in_pieces(0, read);
  EXPECT_TRUE(pieces.empty());
  read_in_pieces(5000, read);
  EXPECT_THAT(pieces, ElementsAre(std::pair(0, 2048), std::pair(2048, 2048), std::pair(4096, 904)));
  pieces.clear();
  read_in_pieces(6, read, 3);
  EXPECT_THAT(pieces, ElementsAre(std::pair(0, 3), std::pair(3, 3)));
}

}  // namespace
}  // namespace pronghorn
