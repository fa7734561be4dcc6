// Drafters with intentions, for tests: they know the text to come and use it as they please.
#pragma once

#include <vector>

#include "base/random.h"
#include "decode/drafter.h"

namespace pronghorn::testing_support {

enum class Intent {
  empty,
  right,             // a chain of right guesses
  wrong,             // every first guess is wrong
  noise,             // random trees of random tokens
  right_then_wrong,  // a chain, right up to a random place
  trees              // random trees with the right path somewhere in them
};

// futures[s]: what sequence s will say after the text given to begin() and the first append().
class IntentDrafter final : public Drafter {
 public:
  IntentDrafter(Intent intent, std::vector<std::vector<int32_t>> futures, int32_t vocabulary)
      : intent_(intent), futures_(std::move(futures)), vocabulary_(vocabulary) {}

  std::string name() const override { return "intent"; }
  int costly_kind() const override { return -1; }
  void start(size_t count) override { written_.assign(count, -1); }
  void forget(size_t sequence) override { written_[sequence] = -1; }
  void begin(size_t, std::span<const int32_t>) override {}
  void append(size_t sequence, std::span<const int32_t> tokens) override {
    // The first is the prompt.
    int64_t& written = written_[sequence];
    written = written < 0 ? 0 : written + static_cast<int64_t>(tokens.size());
  }

  void draft(const Context&, std::span<DraftRequest> requests) override {
    for (DraftRequest& request : requests) {
      request.draft = {};
      if (request.limit > 0) fill(request);
    }
  }

 private:
  int32_t token() {
    return static_cast<int32_t>(random_.below(static_cast<uint64_t>(vocabulary_)));
  }

  void fill(DraftRequest& request) {
    const auto& future = futures_[request.sequence];
    const auto at = static_cast<size_t>(written_[request.sequence]);
    const auto right = [&](size_t ahead) {
      return at + ahead < future.size() ? future[at + ahead] : token();
    };
    const auto size = 1 + random_.below(static_cast<uint64_t>(request.limit));
    Draft& draft = request.draft;
    switch (intent_) {
      case Intent::empty:
        return;
      case Intent::right:
      case Intent::wrong:
      case Intent::right_then_wrong: {
        const size_t good = intent_ == Intent::right   ? size
                            : intent_ == Intent::wrong ? 0
                                                       : random_.below(size + 1);
        for (size_t i = 0; i < size; ++i) {
          const int32_t guess = i < good ? right(i) : (right(i) + 1) % vocabulary_;
          draft.add(guess, static_cast<int32_t>(i) - 1, 0);
        }
        return;
      }
      case Intent::noise:
      case Intent::trees:
        grow(request, size, right);
    }
  }

  template <typename Right>
  void grow(DraftRequest& request, size_t size, const Right& right) {
    Draft& draft = request.draft;
    std::vector<int32_t> depths, on_path;  // nodes of the right path so far
    for (size_t tries = 0; tries < 3 * size && draft.tokens.size() < size; ++tries) {
      const bool path = intent_ == Intent::trees && random_.uniform() < 0.5;
      int32_t parent = path ? (on_path.empty() ? -1 : on_path.back())
                            : static_cast<int32_t>(random_.below(draft.tokens.size() + 1)) - 1;
      const int32_t depth = parent < 0 ? 0 : depths[static_cast<size_t>(parent)] + 1;
      if (depth >= request.limit) continue;
      const int32_t guess = path ? right(static_cast<size_t>(depth)) : token();
      int32_t rank = 0;
      bool known = false;
      for (size_t i = 0; i < draft.tokens.size(); ++i) {
        if (draft.shape.parents[i] != parent) continue;
        ++rank;
        known |= draft.tokens[i] == guess;
      }
      if (known) continue;
      const int32_t node = draft.add(guess, parent, rank);
      depths.push_back(depth);
      if (path) on_path.push_back(node);
    }
  }

  Intent intent_;
  std::vector<std::vector<int32_t>> futures_;
  int32_t vocabulary_;
  Random random_{11, "intent"};
  std::vector<int64_t> written_;
};

}  // namespace pronghorn::testing_support
