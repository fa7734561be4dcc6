// Sessions from files are hostile: whatever they hold is refused, or does no harm.
#include "model/forged_state.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/random.h"

namespace pronghorn {
namespace {

using testing_support::Field;
using testing_support::ForgedState;
using testing_support::ForgingModels;
using testing_support::JournalPlace;
using testing_support::kFields;

const ForgingModels& models() {
  static const ForgingModels all;
  return all;
}

TEST(ForgedState, ValidStatesAreAccepted) {
  for (const auto& [name, model, states, cache] : models().entries()) {
    for (const SequenceState& state : states) {
      SequenceState loaded = ForgedState(state).load(*model, cache);
      EXPECT_EQ(loaded.save(), state.save()) << name << " of " << state.length();
      if (cache.evicts()) continue;  // no trees
      // After a tree and a truncation too.
      Batch batch;
      add_segment(batch, loaded, std::vector<int32_t>(20, 4),
                  {-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18});
      model->forward({}, batch);
      loaded.commit(std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
      EXPECT_EQ(ForgedState(loaded).load(*model, cache).save(), loaded.save()) << name;
      ForgingModels::advance(*model, loaded, 9);
      loaded.truncate(loaded.length() - 3);
      EXPECT_EQ(ForgedState(loaded).load(*model, cache).save(), loaded.save()) << name;
    }
  }
}

// Calls forge(state, journal) for a fresh copy of the state that was read token by token, for each
// of its journals that are `wanted`, and expects that the result is refused. in_spans: those of
// subsampled spans as well.
void expect_refused(const char* what, const std::function<bool(const JournalPlace&)>& wanted,
                    const std::function<void(ForgedState&, const JournalPlace&)>& forge,
                    bool in_spans = true) {
  int tried = 0;
  for (const auto& [name, model, states, cache] : models().entries()) {
    const size_t count = ForgedState(states.front()).journals().size();
    for (size_t i = 0; i < count; ++i) {
      ForgedState forged(states.front());
      const JournalPlace journal = forged.journals()[i];
      if (!wanted(journal)) continue;
      if (!in_spans && model->layout(cache)->span_of(journal.layer) >= 0) continue;
      ++tried;
      forge(forged, journal);
      EXPECT_THROW(forged.load(*model, cache), Error)
          << what << ": " << journal.shape.name << " of " << name;
    }
  }
  EXPECT_GT(tried, 0) << what;
}

TEST(ForgedState, BrokenPromisesAreRefused) {
  const auto any = [](const JournalPlace&) { return true; };
  const auto folded = [](const JournalPlace& j) { return j.anchor_row > 0; };
  const auto state = [](const JournalPlace& j) {
    return j.anchor_row > 0 && j.shape.anchor_size > 0;
  };
  const auto whole = [](const JournalPlace& j) {
    return j.shape.fold_interval == 0 && j.length > 0;
  };
  const auto held = [](const JournalPlace& j) { return j.length - j.first_row > 2; };
  const auto add = [](Field field, int64_t change) {
    return
        [=](ForgedState& f, const JournalPlace& j) { f.set(j, field, f.get(j, field) + change); };
  };
  // More rows after the anchor than a step has room for.
  expect_refused("an anchor off the fold interval", folded,
                 [](ForgedState& f, const JournalPlace& j) {
                   f.set(j, Field::anchor_row, j.anchor_row - 7);
                   f.set(j, Field::previous_row, -1);
                   f.set(j, Field::anchor_position, j.anchor_row - 8);
                 });
  expect_refused("an older anchor off the interval", folded, add(Field::previous_row, 3));
  expect_refused(
      "an older anchor that is not the last", folded,
      [](ForgedState& f, const JournalPlace& j) { f.set(j, Field::previous_row, j.anchor_row); });
  expect_refused("an anchor where nothing is folded", whole,
                 [](ForgedState& f, const JournalPlace& j) {
                   f.set(j, Field::anchor_row, j.length);
                   f.set(j, Field::anchor_position, j.length - 1);
                 });
  expect_refused("no state where rows were folded", state,
                 [](ForgedState& f, const JournalPlace& j) {
                   f.bytes()[j.flags] = 0;
                   f.bytes().erase(j.flags + 1, static_cast<size_t>(j.shape.anchor_size) * 4);
                 });
  expect_refused(
      "a state where no rows were folded", any, [](ForgedState& f, const JournalPlace& j) {
        if (f.bytes()[j.flags] == 0) {
          f.bytes()[j.flags] = 1;
          f.bytes().insert(j.flags + 1, static_cast<size_t>(j.shape.anchor_size) * 4, '\0');
        } else {
          f.set(j, Field::anchor_row, 0);
          f.set(j, Field::anchor_position, -1);
          f.set(j, Field::previous_row, -1);
        }
      });
  expect_refused("a longer journal", any, add(Field::length, 1));
  // One row less than the sequence has, consistently. (How many tokens reached a subsampled span is
  // known from its journals alone.)
  const auto outside = [=](const JournalPlace& j) { return held(j) && j.length == 40; };
  expect_refused(
      "a shorter journal", outside,
      [](ForgedState& f, const JournalPlace& j) {
        f.bytes().erase(j.flags - j.row_bytes(), j.row_bytes());
        f.set(j, Field::length, j.length - 1);
      },
      false);
  expect_refused("missing rows", held, [](ForgedState& f, const JournalPlace& j) {
    f.bytes().erase(j.rows, j.row_bytes());
    f.set(j, Field::first_row, j.first_row + 1);
  });
  expect_refused("the position of an anchor", folded, add(Field::anchor_position, 1));
  expect_refused("no position of an anchor", folded, [](ForgedState& f, const JournalPlace& j) {
    f.set(j, Field::anchor_position, -1);
  });
  const auto position = [](size_t row, int32_t value) {
    return
        [=](ForgedState& f, const JournalPlace& j) { f.set(j.rows + row * j.row_bytes(), value); };
  };
  expect_refused("a negative position", held, position(0, -1));
  expect_refused("a position of another row", held, position(1, 0));
  expect_refused("a position beyond the sequence", held, [](ForgedState& f, const JournalPlace& j) {
    f.set(j.flags - j.row_bytes(), static_cast<int32_t>(j.length + 40));
  });
  for (size_t field = 0; field < kFields; ++field) {
    if (static_cast<Field>(field) == Field::previous_position) continue;  // free without an anchor
    for (const int64_t value : {INT64_MAX, INT64_MIN, int64_t{INT32_MAX} + 1}) {
      expect_refused("an absurd number", any, [=](ForgedState& f, const JournalPlace& j) {
        f.set(j, static_cast<Field>(field), value);
      });
    }
  }
}

TEST(ForgedState, SequencesDoNotGrowBeyondWhatPositionsHold) {
  SequenceState state;
  state.advance(INT32_MAX - 2);
  Batch batch;
  add_segment(batch, state, std::vector<int32_t>{1, 2});
  EXPECT_EQ(batch.positions.back(), INT32_MAX - 1);
  Batch more;
  EXPECT_THROW(add_segment(more, state, std::vector<int32_t>{1, 2, 3}), Error);
}

// What fuzz/state_fuzz.cpp does, from fixed seeds.
TEST(ForgedState, ChangedStatesDoNoHarm) {
  Random random(12, "forged");
  int accepted = 0;
  constexpr int kTrials = 3000;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<uint8_t> program = {static_cast<uint8_t>(trial)};
    const size_t changes = random.below(4);
    for (size_t i = 0; i < 2 + 4 * changes; ++i) {
      program.push_back(static_cast<uint8_t>(random.below(256)));
    }
    accepted += models().run(program);
  }
  EXPECT_GT(accepted, kTrials / 8);
  EXPECT_LT(accepted, kTrials * 3 / 4);
}

}  // namespace
}  // namespace pronghorn
