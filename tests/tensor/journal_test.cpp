#include "tensor/journal.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "tensor/sequence_state.h"

namespace pronghorn {
namespace {

const JournalShape kAttention{"key_value", 3, 0, 0, 0};
const JournalShape kRecurrence{"state", 2, 4, 0, 16};

std::vector<int32_t> next_positions(const Journal& journal, int64_t count) {
  std::vector<int32_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(journal.length()));
  return positions;
}

// Appends a row for each of `count` tokens; its numbers tell which row it is and `mark`.
void append_rows(Journal& journal, int64_t count, float mark) {
  const int64_t first = journal.append(next_positions(journal, count));
  for (int64_t i = first; i < first + count; ++i) {
    for (int64_t c = 0; c < journal.shape().row_width; ++c) {
      journal.mutable_row(i)[c] = mark + static_cast<float>(i);
    }
  }
}

void fold(Journal& journal, int64_t row, float value) {
  std::fill_n(journal.begin_anchor(), journal.shape().anchor_size, value);
  journal.commit_anchor(row, true);
}

TEST(Journal, RowsLieInAlignedPages) {
  Journal journal(kAttention);
  append_rows(journal, 200, 0.5f);
  EXPECT_EQ(journal.length(), 200);
  EXPECT_EQ(journal.contiguous_rows(0), 64);
  EXPECT_EQ(journal.contiguous_rows(70), 58);
  EXPECT_EQ(journal.contiguous_rows(192), 8);
  for (int64_t i = 0; i < 200; ++i) {
    EXPECT_EQ(journal.row(i)[2], 0.5f + static_cast<float>(i));
    EXPECT_EQ(journal.position(i), i);
  }
}

TEST(Journal, CopiesAreMarks) {
  Journal journal(kAttention);
  append_rows(journal, 70, 0);
  const Journal mark = journal;
  EXPECT_EQ(mark.row(3), journal.row(3));  // shared
  append_rows(journal, 10, 1000);
  journal.mutable_row(3)[0] = -5;
  Journal fork = mark;
  append_rows(fork, 10, 2000);
  EXPECT_EQ(mark.length(), 70);
  EXPECT_EQ(mark.row(3)[0], 3);
  EXPECT_EQ(journal.row(3)[0], -5);
  EXPECT_EQ(journal.row(75)[0], 1075);
  EXPECT_EQ(fork.row(75)[0], 2075);
  EXPECT_EQ(fork.row(69)[1], 69);
  EXPECT_EQ(fork.row(3), mark.row(3));
}

TEST(Journal, TruncateThenAppendEqualsNeverAppended) {
  for (const int64_t keep : {0, 1, 63, 64, 65, 128, 130}) {
    Journal journal(kAttention);
    append_rows(journal, 130, 0);
    journal.truncate(keep);
    EXPECT_EQ(journal.length(), keep);
    append_rows(journal, 70, 0);
    EXPECT_EQ(journal.length(), keep + 70);
    for (int64_t i = 0; i < journal.length(); ++i) {
      EXPECT_EQ(journal.row(i)[0], static_cast<float>(i));
    }
    EXPECT_THROW(journal.truncate(keep + 71), Error);
    EXPECT_THROW(journal.truncate(-1), Error);
  }
}

TEST(Journal, AnchorsGoBackOneFold) {
  Journal journal(kRecurrence);
  EXPECT_EQ(journal.anchor(), nullptr);
  for (int64_t row = 16; row <= 160; row += 16) {
    append_rows(journal, 16, 0);
    fold(journal, row, static_cast<float>(row));
    EXPECT_EQ(journal.first_row(), row - 16);
  }
  append_rows(journal, 5, 0);
  EXPECT_EQ(journal.anchor()[3], 160);
  const Journal mark = journal;
  journal.truncate(161);
  EXPECT_EQ(journal.anchor_row(), 160);
  journal.truncate(150);
  EXPECT_EQ(journal.anchor_row(), 144);
  EXPECT_EQ(journal.anchor()[3], 144);
  EXPECT_EQ(journal.row(149)[1], 149);
  EXPECT_THROW(journal.truncate(143), Error);
  EXPECT_EQ(journal.length(), 150);
  EXPECT_EQ(mark.anchor()[0], 160);
  EXPECT_EQ(mark.row(164)[0], 164);
}

TEST(Journal, SkippedRowsAreGone) {
  Journal journal(kRecurrence);
  append_rows(journal, 3, 0);
  journal.skip(next_positions(journal, 997));
  EXPECT_EQ(journal.last_position(1000), 999);
  std::fill_n(journal.begin_anchor(), 4, 7.0f);
  journal.commit_anchor(1000, false);
  append_rows(journal, 4, 0);
  EXPECT_EQ(journal.first_row(), 1000);
  EXPECT_EQ(journal.row(1003)[0], 1003);
  EXPECT_EQ(journal.contiguous_rows(1000), 4);
  EXPECT_THROW(journal.truncate(999), Error);
  EXPECT_NO_THROW(journal.truncate(1001));
}

TEST(Journal, SkippingNothingForgetsRowsButNotWhereTheyWere) {
  Journal journal(kRecurrence);
  append_rows(journal, 16, 0);
  journal.skip({});
  EXPECT_EQ(journal.length(), 16);
  EXPECT_EQ(journal.first_row(), 16);
  EXPECT_EQ(journal.last_position(16), 15);
  std::fill_n(journal.begin_anchor(), 4, 7.0f);
  journal.commit_anchor(16, false);
  append_rows(journal, 20, 0);
  EXPECT_EQ(journal.last_position(16), 15);
  EXPECT_EQ(journal.last_position(17), 16);
}

TEST(Journal, NothingIsSkippedBehindATree) {
  Journal journal(kRecurrence);
  append_rows(journal, 2, 0);
  journal.set_tree({-1, 0});
  EXPECT_THROW(journal.skip({}), Error);
}

TEST(Journal, LiveStateIsPrivate) {
  Journal journal(kRecurrence);
  append_rows(journal, 3, 0);
  std::fill_n(journal.live(), 4, 1.0f);
  journal.set_live_row(3);
  Journal copy = journal;
  append_rows(copy, 1, 0);
  EXPECT_EQ(copy.live()[0], 1.0f);
  std::fill_n(copy.live(), 4, 2.0f);
  copy.set_live_row(4);
  EXPECT_EQ(journal.live()[0], 1.0f);
  copy.truncate(3);
  EXPECT_EQ(copy.live_row(), -1);
  EXPECT_EQ(journal.live_row(), 3);
}

// A window whose first rows stay, over one page or more.
TEST(Journal, KeptRowsAreNeverDropped) {
  for (const int64_t kept : {1, 64, 70, 200}) {
    SCOPED_TRACE(kept);
    JournalShape shape{"key_value", 3, 0, 9, Journal::kPageRows};
    shape.kept = kept;
    Journal journal(shape);
    const auto check = [&](const Journal& of, int64_t length) {
      ASSERT_EQ(of.length(), length);
      for (int64_t i = 0; i < length; ++i) {
        if (i >= kept && i < of.first_row()) continue;
        EXPECT_EQ(of.row(i)[2], 0.5f + static_cast<float>(i));
        EXPECT_EQ(of.position(i), i);
      }
    };
    for (int64_t length = 50; length <= 1000; length += 50) {
      append_rows(journal, 50, 0.5f);
      journal.pass();
      check(journal, length);
      EXPECT_EQ(journal.bytes(), Journal::predicted_bytes(shape, length)) << length;
    }
    EXPECT_GE(journal.first_row(), 800);
    const Journal mark = journal;
    journal.mutable_row(0)[2] = -1;
    check(mark, 1000);

    std::string saved, again;
    mark.save(saved);
    Journal loaded(shape);
    std::span<const std::byte> in = std::as_bytes(std::span(saved));
    {
      Journal poison(kAttention);  // whose pages are used again
      append_rows(poison, 1000, NAN);
    }
    loaded.load(in, "test");
    EXPECT_TRUE(in.empty());
    check(loaded, 1000);
    ASSERT_NE(loaded.first_row() % Journal::kPageRows, 0);
    EXPECT_EQ(loaded.row(loaded.first_row() - 1)[2], 0);
    loaded.save(again);
    EXPECT_EQ(again, saved);
    loaded.truncate(1000 - kExactStep);
    check(loaded, 1000 - kExactStep);

    // The kept rows lie at the end. A position of the first beyond all others, and a file that ends
    // early.
    const size_t row_bytes = sizeof(int32_t) + 3 * sizeof(float);
    saved[saved.size() - static_cast<size_t>(kept) * row_bytes + 3] = 1;
    in = std::as_bytes(std::span(saved));
    EXPECT_THROW(Journal(shape).load(in, "test"), Error);
    in = std::as_bytes(std::span(again)).first(again.size() - 3);
    EXPECT_THROW(Journal(shape).load(in, "test"), Error);
  }
}

// Appends the rows of all blocks that have none; they tell which they are.
void complete_blocks(Journal& journal) {
  Journal& blocks = journal.blocks();
  const BlockRows& shape = journal.shape().blocks;
  while (blocks.length() < shape.within(journal.length())) {
    const int64_t block = blocks.length();
    const int32_t position = journal.position(block * shape.stride + shape.length - 1);
    blocks.append({&position, 1});
    std::fill_n(blocks.mutable_row(block), shape.width, static_cast<float>(block));
  }
}

TEST(Journal, BlocksAreThoseOfWholeBlocks) {
  JournalShape shape = kAttention;
  shape.blocks = {8, 4, 5};
  EXPECT_EQ(shape.blocks.within(7), 0);
  EXPECT_EQ(shape.blocks.within(8), 1);
  EXPECT_EQ(shape.blocks.within(11), 1);
  EXPECT_EQ(shape.blocks.within(12), 2);
  Journal journal(shape);
  append_rows(journal, 500, 0);
  complete_blocks(journal);
  EXPECT_EQ(journal.blocks().length(), 124);
  EXPECT_EQ(journal.bytes(), Journal::predicted_bytes(shape, 500));
  const Journal mark = journal;
  journal.truncate(413);
  EXPECT_EQ(journal.blocks().length(), 102);
  EXPECT_EQ(journal.blocks().row(101)[4], 101);
  append_rows(journal, 3, 0);
  EXPECT_EQ(journal.blocks().length(), 102);
  complete_blocks(journal);
  EXPECT_EQ(journal.blocks().length(), 103);
  EXPECT_EQ(mark.blocks().length(), 124);
  EXPECT_THROW(Journal(kAttention).blocks(), Error);
}

TEST(Journal, BlocksAreSaved) {
  JournalShape shape = kAttention;
  shape.blocks = {8, 4, 2};
  shape.history = 8;
  shape.fold_interval = Journal::kPageRows;
  Journal journal(shape);
  append_rows(journal, 300, 0);
  complete_blocks(journal);
  journal.pass();
  ASSERT_GT(journal.first_row(), 0);
  std::string saved;
  journal.save(saved);
  Journal loaded(shape);
  auto bytes = std::as_bytes(std::span(saved));
  loaded.load(bytes, "test");
  EXPECT_TRUE(bytes.empty());
  EXPECT_EQ(loaded.blocks().length(), 74);
  EXPECT_EQ(loaded.blocks().row(20)[1], 20);
  std::string again;
  loaded.save(again);
  EXPECT_EQ(again, saved);
  // Blocks that are missing could not be made: their rows are gone.
  Journal few = journal;
  few.blocks().truncate(10);
  saved.clear();
  few.save(saved);
  bytes = std::as_bytes(std::span(saved));
  EXPECT_THROW(loaded.load(bytes, "test"), Error);
}

TEST(Journal, TreesKeepAPath) {
  for (const int64_t before : {5, 62}) {  // the second tree crosses a page
    Journal journal(kAttention);
    append_rows(journal, before, 0);
    const Journal mark = journal;
    append_rows(journal, 6, 100);
    journal.set_tree({-1, 0, 0, 1, 2, 4});
    EXPECT_EQ(journal.tree_rows(), 6);
    EXPECT_THROW(append_rows(journal, 1, 0), Error);
    EXPECT_THROW(journal.commit_anchor(before, true), Error);
    std::string out;
    EXPECT_THROW(journal.save(out), Error);
    Journal dropped = journal;
    EXPECT_THROW(journal.commit_path(std::vector<int32_t>{0, 2, 5}), Error);
    EXPECT_THROW(journal.commit_path(std::vector<int32_t>{1}), Error);
    EXPECT_THROW(journal.commit_path(std::vector<int32_t>{0, 6}), Error);
    EXPECT_EQ(journal.tree_rows(), 6) << "a bad path changes nothing";
    EXPECT_EQ(journal.row(before + 1)[0], static_cast<float>(before + 101));
    EXPECT_EQ(journal.position(before + 1), before + 1);
    journal.commit_path(std::vector<int32_t>{0, 2, 4, 5});
    EXPECT_EQ(journal.length(), before + 4);
    const int64_t kept[] = {0, 2, 4, 5};
    for (int64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(journal.row(before + i)[0], static_cast<float>(100 + before + kept[i]));
      EXPECT_EQ(journal.position(before + i), before + kept[i]);
    }
    dropped.commit_path({});
    EXPECT_EQ(dropped.length(), before);
    EXPECT_EQ(mark.length(), before);
  }
  Journal journal(kAttention);
  append_rows(journal, 2, 0);
  EXPECT_THROW(journal.set_tree({-1, 0, 1}), Error);
  EXPECT_THROW(journal.set_tree({-1, 1}), Error) << "its own parent";
  EXPECT_THROW(journal.set_tree({-2}), Error);
}

class SequenceStateTest : public testing::Test {
 protected:
  // Tokens start...start+count-1 as the operators would add them: attention keeps rows, the
  // recurrence folds at multiples of 16.
  static void step(SequenceState& state, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      append_rows(state.journal(0, 0), 1, 0);
      append_rows(state.journal(1, 0), 1, 0);
      Journal& recurrence = state.journal(1, 0);
      if (recurrence.length() % 16 == 0) {
        fold(recurrence, recurrence.length(), static_cast<float>(recurrence.length()));
      }
      state.advance(1);
    }
  }

  // A saved state with a checksum that fits whatever was changed in it.
  static std::string sealed(std::string bytes) {
    bytes.resize(bytes.size() - sizeof(uint64_t));
    const uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size());
    bytes.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
    return bytes;
  }

  SequenceState load(const std::string& bytes) const {
    return SequenceState::load(std::as_bytes(std::span(bytes)), layout_, "session");
  }

  const std::shared_ptr<const StateLayout> layout_ =
      std::make_shared<StateLayout>(StateLayout{{{kAttention}, {kRecurrence}}, 0x1234});
};

TEST_F(SequenceStateTest, SaveAndLoadGiveTheSameBytes) {
  for (const int64_t tokens : {0, 1, 16, 40, 100}) {
    SequenceState state(layout_);
    step(state, tokens);
    const std::string saved = state.save();
    SequenceState loaded = load(saved);
    EXPECT_EQ(loaded.length(), tokens);
    EXPECT_EQ(loaded.save(), saved);
    step(state, 30);
    step(loaded, 30);
    EXPECT_EQ(loaded.save(), state.save());
  }
}

TEST_F(SequenceStateTest, TruncateEqualsNeverAppended) {
  for (const int64_t back : {0, 1, 5, 15}) {
    SequenceState state(layout_), expected(layout_);
    step(state, 50);
    step(expected, 50 - back);
    state.truncate(50 - back);
    step(state, 40);
    step(expected, 40);
    EXPECT_EQ(state.length(), expected.length());
    EXPECT_EQ(state.save(), expected.save());
  }
}

TEST_F(SequenceStateTest, TruncateTooFarThrowsAndChangesNothing) {
  SequenceState state(layout_);
  step(state, 50);
  const std::string saved = state.save();
  for (const int64_t length : {0, 5, 31}) {  // the recurrence holds 32 and later
    EXPECT_THROW(state.truncate(length), Error) << length;
    EXPECT_EQ(state.save(), saved);
  }
  EXPECT_THROW(state.truncate(51), Error);
  state.truncate(32);
  EXPECT_EQ(state.length(), 32);
}

TEST_F(SequenceStateTest, TruncateBehindABulkUpdateThrows) {
  SequenceState state(layout_);
  append_rows(state.journal(0, 0), 48, 0);
  Journal& recurrence = state.journal(1, 0);
  recurrence.skip(next_positions(recurrence, 48));
  std::fill_n(recurrence.begin_anchor(), 4, 1.0f);
  recurrence.commit_anchor(48, false);
  state.advance(48);
  EXPECT_NO_THROW(state.truncate(48));
  EXPECT_THROW(state.truncate(47), Error);
  EXPECT_EQ(state.journal(0, 0).length(), 48);
}

TEST_F(SequenceStateTest, TruncateDropsATree) {
  SequenceState state(layout_);
  step(state, 20);
  const std::string saved = state.save();
  for (int64_t layer = 0; layer < 2; ++layer) {
    append_rows(state.journal(layer, 0), 3, 0);
    state.journal(layer, 0).set_tree({-1, 0, 0});
  }
  SequenceState committed = state;
  state.truncate(20);
  EXPECT_EQ(state.save(), saved);
  committed.commit(std::vector<int32_t>{0, 2});
  EXPECT_EQ(committed.length(), 22);
  EXPECT_EQ(committed.journal(1, 0).length(), 22);
}

TEST_F(SequenceStateTest, EveryTruncationAndFlippedBitIsFound) {
  SequenceState state(layout_);
  step(state, 20);
  const std::string saved = state.save();
  for (size_t size = 0; size < saved.size(); ++size) {
    EXPECT_THROW(load(saved.substr(0, size)), Error) << size;
  }
  for (size_t i = 0; i < saved.size(); ++i) {
    std::string changed = saved;
    changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
    EXPECT_THROW(load(changed), Error) << i;
  }
  EXPECT_THROW(load(saved + "x"), Error);
  auto other = std::make_shared<StateLayout>(*layout_);
  other->fingerprint = 7;
  EXPECT_THROW(SequenceState::load(std::as_bytes(std::span(saved)), other, "session"), Error);
}

// With a checksum that fits, a changed file must either be refused or give a state that can be
// used.
TEST_F(SequenceStateTest, ForgedFilesDoNoHarm) {
  SequenceState state(layout_);
  step(state, 40);
  const std::string saved = state.save();
  Random random(8);
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string forged = saved;
    // Mostly in the headers, where it matters.
    const size_t at = random.below(trial % 2 ? 200 : saved.size());
    const int64_t values[] = {-1, 0, 1, 15, 33, 1 << 20, INT32_MAX, INT64_MAX, INT64_MIN};
    const int64_t value = values[random.below(std::size(values))];
    std::memcpy(forged.data() + at, &value, std::min<size_t>(sizeof(value), saved.size() - at));
    if (trial % 5 == 0) forged.resize(16 + random.below(forged.size() - 16));
    try {
      SequenceState loaded = load(sealed(forged));
      step(loaded, 20);
      loaded.save();
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 2000);
}

TEST_F(SequenceStateTest, UnknownJournalThrows) {
  SequenceState state(layout_);
  EXPECT_THROW(state.journal(2, 0), Error);
  EXPECT_THROW(state.journal(0, 1), Error);
  EXPECT_THROW(state.journal(-1, 0), Error);
}

}  // namespace
}  // namespace pronghorn
