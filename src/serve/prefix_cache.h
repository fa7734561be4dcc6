// Prefix cache: states of texts that the model has read, for texts that begin alike.
//
// A tree. A node is a place where the reading of a text was cut; the edge to it is the piece that
// was read: its tokens, and whether in exact steps (decode/reading_plan.h). A state depends on the
// pieces that led to it and on nothing else, so whoever would read the same pieces may have it. A
// long piece fits only a whole piece; exact steps give the same bits however they are cut, so they
// fit wherever their tokens do.
//
// A node lives while a text or a kept state is at it or below it: what is kept remembers the tokens
// before it, also where no state is kept, which is how branches are recognised.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "decode/reading_plan.h"
#include "tensor/sequence_state.h"

namespace pronghorn {

class PrefixCache {
 public:
  struct Node;
  using Place = std::shared_ptr<Node>;  // null: nowhere

  // bytes: of kept states at most, what they share counted once. cost: work of reading the tokens
  // from one length of a text to another, in any unit. goes_back: states can forget any number of
  // tokens (attention to everything), so one that is kept serves every place before it.
  PrefixCache(int64_t bytes, std::function<double(int64_t from, int64_t to)> cost,
              bool goes_back = false);
  ~PrefixCache();

  // Where texts of this salt begin.
  Place root(const std::string& salt);

  // What was found of a text.
  struct Found {
    Place place;          // of the state; the root if there is none
    int64_t known = 0;    // tokens that have been read before in the same way, kept or not
    bool kept = false;    // whether any text of the salt is kept
    SequenceState state;  // of place->length() tokens
  };
  // The longest state that there is of the text that `plan` reads, shorter than it. It counts as
  // used.
  Found find(const std::string& salt, std::span<const int32_t> tokens,
             std::span<const ReadingRun> plan);

  // Where reading a piece from `place` leads.
  Place follow(const Place& place, bool exact, std::span<const int32_t> tokens);
  // Whether earlier texts went on from `place`, and all of them otherwise than by this piece.
  bool branches(const Place& place, bool exact, std::span<const int32_t> tokens) const;

  // Keeps the state at `place`, unless there is one or it is larger than the cache, and drops
  // others if there is no room.
  //
  // Dropped first is what saves least for its bytes (after GDSF: Cherkasova, HPL-98-69R1, and
  // Marconi, arXiv 2411.19379): a state is worth  clock + uses cost / bytes,  with the cost of
  // reading from the next kept state before it, and the bytes that nothing else kept shared when it
  // came. The clock is what the last one dropped was worth, so that states that nobody asks for
  // grow old.
  void keep(const Place& place, const SequenceState& state);

  static int64_t length(const Place& place);
  static bool is_kept(const Place& place);

  int64_t states() const { return static_cast<int64_t>(kept_.size()); }
  int64_t bytes() const { return bytes_; }
  int64_t evictions() const { return evictions_; }

  // For who writes states to files: those that are kept, and what is told of those dropped.
  struct Piece {
    bool exact = false;
    std::vector<int32_t> tokens;
  };
  const std::vector<Place>& kept() const { return kept_; }
  bool goes_back() const { return goes_back_; }
  // Whether a longer text is kept that begins with this one; and those kept that this begins with.
  bool has_kept_below(const Place& place) const;
  static std::vector<const Node*> kept_before(const Place& place);
  static const SequenceState& state(const Place& place);
  static std::string salt(const Place& place);
  static std::vector<Piece> pieces(const Place& place);
  std::function<void(const Place&)> on_drop;

 private:
  struct Block {
    int64_t bytes = 0, states = 0;
  };
  // Pages of attention's rows, which states share.
  // A kept state at `node` or below it; null: there is none.
  Node* kept_below(const Node& node) const;
  template <typename Visit>
  static void for_each_page(const SequenceState& state, const Visit& visit);
  int64_t count_in(const SequenceState& state);
  void count_out(const SequenceState& state);
  double worth(const Node& node) const;
  void drop(size_t index);

  int64_t limit_, bytes_ = 0, evictions_ = 0;
  double clock_ = 0;
  std::function<double(int64_t, int64_t)> cost_;
  bool goes_back_;
  std::unordered_map<std::string, std::weak_ptr<Node>> roots_;
  std::unordered_map<const void*, Block> blocks_;
  std::vector<Place> kept_;
};

}  // namespace pronghorn
