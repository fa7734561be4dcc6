// States as a hostile file might hold them: a valid state of a tiny model with some of its fields
// changed and a checksum that fits. Shared by forged_state_test and fuzz/state_fuzz.cpp.
#pragma once

#include <fmt/format.h>
#include <xxhash.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "model/model.h"
#include "support/tiny_models.h"
#include "tensor/bytes.h"

namespace pronghorn::testing_support {

// Numbers of a journal's header in a file, in order.
enum class Field : uint8_t {
  row_width,
  anchor_size,
  first_row,
  length,
  anchor_row,
  previous_row,
  anchor_position,
  previous_position
};
constexpr size_t kFields = 8;

// Where the parts of a journal lie in a file.
struct JournalPlace {
  JournalShape shape;
  size_t header = 0;  // the first of kFields int64
  size_t rows = 0;    // each a position (int32) and row_width floats
  // Whether there is an anchor; its floats follow, the same of the older one, and kept rows.
  size_t flags = 0;
  int64_t first_row = 0, length = 0, anchor_row = 0;
  size_t layer = 0;

  size_t row_bytes() const { return sizeof(int32_t) + static_cast<size_t>(shape.row_bytes()); }
};

// A saved state whose numbers can be changed.
class ForgedState {
 public:
  explicit ForgedState(const SequenceState& state) : bytes_(state.save()) {
    size_t at = 3 * sizeof(uint64_t);
    for (size_t layer = 0; layer < state.layers().size(); ++layer) {
      const size_t before = journals_.size();
      for (const Journal& journal : state.layers()[layer]) at = add(journal, at);
      for (size_t i = before; i < journals_.size(); ++i) journals_[i].layer = layer;
    }
  }

  const std::vector<JournalPlace>& journals() const { return journals_; }
  std::string& bytes() { return bytes_; }

  template <typename T>
  T get(size_t at) const {
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof(T));
    return value;
  }
  template <typename T>
  void set(size_t at, T value) {
    std::memcpy(bytes_.data() + at, &value, sizeof(T));
  }
  static size_t at(const JournalPlace& journal, Field field) {
    return journal.header + static_cast<size_t>(field) * sizeof(int64_t);
  }
  int64_t get(const JournalPlace& journal, Field field) const {
    return get<int64_t>(at(journal, field));
  }
  void set(const JournalPlace& journal, Field field, int64_t value) {
    set(at(journal, field), value);
  }
  static size_t length_at() { return 2 * sizeof(uint64_t); }

  // Throws Error if it is refused.
  SequenceState load(const Model& model, const CacheOptions& cache = {}) const {
    std::string sealed = bytes_;
    sealed.resize(std::max(sealed.size(), sizeof(uint64_t)) - sizeof(uint64_t));
    put(sealed, static_cast<uint64_t>(XXH3_64bits(sealed.data(), sealed.size())));
    return SequenceState::load(std::as_bytes(std::span(sealed)), model.layout(cache), "forged");
  }

 private:
  // A journal that begins at `at`, and the one of its blocks; returns where the next one begins.
  size_t add(const Journal& journal, size_t at) {
    JournalPlace place{journal.shape()};
    place.header = at + sizeof(uint32_t) + place.shape.name.size();
    place.rows = place.header + kFields * sizeof(int64_t);
    place.first_row = journal.first_row();
    place.length = journal.length();
    place.anchor_row = journal.anchor_row();
    place.flags =
        place.rows + static_cast<size_t>(place.length - place.first_row) * place.row_bytes();
    at = place.flags;
    for (int anchor = 0; anchor < 2; ++anchor) {
      const bool there = bytes_.at(at) != 0;
      at += 1 + (there ? static_cast<size_t>(place.shape.anchor_size) * sizeof(float) : 0);
    }
    at += static_cast<size_t>(std::min(journal.kept(), place.first_row)) * place.row_bytes();
    const bool judges = journal.shape().eviction.is_on();
    if (judges) at += sizeof(int64_t) + journal.weights().size() * sizeof(float);
    journals_.push_back(std::move(place));
    if (judges) at = add(journal.queries(), at);
    return journal.shape().blocks.length > 0 ? add(journal.blocks(), at) : at;
  }

  std::string bytes_;
  std::vector<JournalPlace> journals_;
};

// A tiny model of every kind, with states of several lengths.
class ForgingModels {
 public:
  struct Entry {
    std::string name;
    std::unique_ptr<Model> model;
    std::vector<SequenceState> states;
    CacheOptions cache = {};
  };

  ForgingModels() {
    for (const auto& [name, body] : model_configs()) {
      add(name, body, {});
      // Where there is attention that a cache can change, and enough layers of it.
      if (name != "subsampled_attention" && name != "prefix" && name != "mla") continue;
      CacheOptions window, pages, weighed;
      window.window = 20;
      pages.quest_pages = 2;
      weighed.h2o = 5;
      add(name + ", a window", body, window);
      add(name + ", pages", body, pages);
      // Its layer with attention has a window.
      if (name != "prefix") add(name + ", heavy hitters", body, weighed);
    }
    for (const auto& [name, body] : whole_block_configs()) {
      for (const DType type : {DType::q8_0, DType::q4_0}) {
        CacheOptions cache = type;
        add(fmt::format("{}, {}", name, dtype_name(type)), body, cache);
        cache.window = 20;
        add(fmt::format("{}, {}, a window", name, dtype_name(type)), body, cache);
      }
    }
  }

  const std::vector<Entry>& entries() const { return entries_; }

  static void advance(const Model& model, SequenceState& state, int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<int32_t>((7 * state.length() + 5 * i + 3) % 61));
    }
    model.forward({}, continue_sequence(state, tokens));
  }

  // Changes a state as the bytes of `program` say, loads it and works with it. Returns whether it
  // was accepted; throws nothing but what is wrong with the engine.
  bool run(std::span<const uint8_t> program) const {
    const auto next = [&program]() -> uint8_t {
      if (program.empty()) return 0;
      const uint8_t value = program.front();
      program = program.subspan(1);
      return value;
    };
    const Entry& entry = entries_[next() % entries_.size()];
    ForgedState forged(entry.states[next() % entry.states.size()]);
    const uint8_t use = next();
    while (!program.empty() && !forged.journals().empty()) {
      const uint8_t kind = next();
      const JournalPlace& journal = forged.journals()[next() % forged.journals().size()];
      const uint8_t where = next(), what = next();
      change(forged, journal, kind, where, what);
    }
    SequenceState state;
    try {
      state = forged.load(*entry.model, entry.cache);
    } catch (const Error&) {
      return false;
    }
    try {
      work(*entry.model, state, use);
    } catch (const Error&) {
      // A token too many, or further back than is held.
    }
    return true;
  }

 private:
  void add(const std::string& name, const std::string& body, const CacheOptions& cache) {
    Entry entry{name, std::make_unique<Model>(model_config(body), 3), {}, cache};
    // Token by token, in steps, in one long piece, and both.
    std::vector<std::vector<int64_t>> all = {
        std::vector<int64_t>(40, 1), {5}, {100}, {70, 9}, {16, 16, 3}, {}};
    if (cache.evicts()) all.push_back({150});  // where rows have been dropped
    for (const std::vector<int64_t>& steps : all) {
      SequenceState state = entry.model->new_state(cache);
      for (const int64_t step : steps) advance(*entry.model, state, step);
      entry.states.push_back(std::move(state));
    }
    entries_.push_back(std::move(entry));
  }

  static void change(ForgedState& forged, const JournalPlace& journal, uint8_t kind, uint8_t where,
                     uint8_t what) {
    const int64_t small = static_cast<int8_t>(what);
    const size_t field = ForgedState::at(journal, static_cast<Field>(where % kFields));
    const auto held = static_cast<size_t>(journal.length - journal.first_row);
    const size_t row = journal.rows + (held > 0 ? where % held : 0) * journal.row_bytes();
    // What came before may have shortened the bytes.
    const auto fits = [&](size_t at, size_t count) { return at + count <= forged.bytes().size(); };
    const int64_t extremes[] = {0,         -1,        INT32_MAX, int64_t{INT32_MAX} - 3,
                                INT64_MAX, INT64_MIN, 1 << 24,   journal.shape.fold_interval};
    switch (kind % 8) {
      case 0:  // a number of the header moves
        if (fits(field, 8)) forged.set(field, forged.get<int64_t>(field) + small);
        break;
      case 1:
        if (fits(field, 8)) forged.set(field, extremes[what % std::size(extremes)]);
        break;
      case 2:  // a position
        if (fits(row, 4)) forged.set(row, forged.get<int32_t>(row) + static_cast<int32_t>(small));
        break;
      case 3:
        if (where % 2 == 0) {
          const size_t at = ForgedState::length_at();
          forged.set(at, forged.get<int64_t>(at) + small);
        } else {
          make_late(forged, int64_t{128} << what % 16);
        }
        break;
      case 4:  // a journal shorter by its last rows
        if (const auto count = std::min<size_t>(what % 32, held);
            count > 0 && fits(journal.flags, 1) && kind < 128) {
          forged.bytes().erase(journal.flags - count * journal.row_bytes(),
                               count * journal.row_bytes());
          forged.set(journal, Field::length,
                     forged.get(journal, Field::length) - static_cast<int64_t>(count));
        }
        break;
      case 5:  // folded elsewhere
        for (const Field f : {Field::anchor_row, Field::previous_row, Field::anchor_position}) {
          const size_t at = ForgedState::at(journal, f);
          if (fits(at, 8)) {
            const auto sum = forged.get<uint64_t>(at) + static_cast<uint64_t>(16 * small);
            forged.set(at, static_cast<int64_t>(sum));
          }
        }
        break;
      case 6:  // whether there is an anchor
        if (fits(journal.flags, 1)) forged.bytes()[journal.flags] ^= 1;
        break;
      default:  // any byte
        const size_t at = 16 + (size_t{where} << 8 | what) % (forged.bytes().size() - 16);
        forged.bytes()[at] = static_cast<char>(forged.bytes()[at] ^ (1 << kind / 8 % 8));
    }
  }

  // Everything lies `rows` later in the sequence.
  static void make_late(ForgedState& forged, int64_t rows) {
    const auto add = [&](auto number, size_t at) {
      if (at + sizeof(number) > forged.bytes().size()) return;
      number = forged.get<decltype(number)>(at);
      // Forged numbers may be any: sums wrap around.
      using Whole = std::make_unsigned_t<decltype(number)>;
      const Whole sum = static_cast<Whole>(number) + static_cast<Whole>(rows);
      forged.set(at, static_cast<decltype(number)>(sum));
    };
    add(int64_t{}, ForgedState::length_at());
    for (const JournalPlace& journal : forged.journals()) {
      for (const Field field :
           {Field::first_row, Field::length, Field::anchor_row, Field::previous_row,
            Field::anchor_position, Field::previous_position}) {
        const size_t at = ForgedState::at(journal, field);
        if (at + 8 <= forged.bytes().size() && forged.get<int64_t>(at) > 0) add(int64_t{}, at);
      }
      for (int64_t row = journal.first_row; row < journal.length; ++row) {
        add(int32_t{},
            journal.rows + static_cast<size_t>(row - journal.first_row) * journal.row_bytes());
      }
    }
  }

  static void work(const Model& model, SequenceState& state, uint8_t use) {
    const SequenceState mark = state;
    const auto tokens = [](int64_t count) {
      return std::vector<int32_t>(static_cast<size_t>(count), 5);
    };
    switch (use % 4) {
      case 0:
        model.forward({}, continue_sequence(state, tokens(1 + use / 4 % 20)));
        break;
      case 1:
        model.forward({}, continue_sequence(state, tokens(17 + use / 4)));
        break;
      case 2: {
        Batch batch;
        add_segment(batch, state, tokens(5), {-1, 0, 0, 2, -1});
        model.forward({}, batch);
        state.commit(std::vector<int32_t>{0, 2, 3});
        break;
      }
      default:
        state.truncate(std::max<int64_t>(0, state.length() - 1 - use / 4));
    }
    for (int i = 0; i < 2; ++i) model.forward({}, continue_sequence(state, tokens(9)));
    state.save();
    state = mark;
    model.forward({}, continue_sequence(state, tokens(1)));
  }

  std::vector<Entry> entries_;
};

}  // namespace pronghorn::testing_support
