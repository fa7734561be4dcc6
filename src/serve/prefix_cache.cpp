#include "serve/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pronghorn {

struct PrefixCache::Node : std::enable_shared_from_this<PrefixCache::Node> {
  Node(Place parent, uint64_t key, bool exact, std::span<const int32_t> tokens)
      : parent(std::move(parent)), key(key), exact(exact), tokens(tokens.begin(), tokens.end()) {
    length = (this->parent ? this->parent->length : 0) + std::ssize(tokens);
    depth = this->parent ? this->parent->depth + 1 : 0;
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  // Ancestors that nobody else holds go too, one after another: a long text has many.
  ~Node() {
    Place up = leave();
    while (up && up.use_count() == 1) up = up->leave();
  }
  // Takes itself from its parent, which it returns.
  Place leave() {
    if (parent) {
      const auto found = parent->children.find(key);
      if (found != parent->children.end() && found->second == this) parent->children.erase(found);
    }
    return std::move(parent);
  }

  Place parent;
  uint64_t key;
  bool exact;
  std::vector<int32_t> tokens;  // of the piece that led here
  int64_t length, depth;
  std::string salt;                              // of a root
  std::unordered_map<uint64_t, Node*> children;  // by key
  std::optional<SequenceState> state;
  int64_t own_bytes = 0;
  double uses = 0, since = 0;  // the clock when it was last used
};

namespace {

// Salts are hashed with a seed of their own by the table; pieces by this.
uint64_t key_of(bool exact, std::span<const int32_t> tokens) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), exact ? 1 : 0);
}

PrefixCache::Node* child(const PrefixCache::Node& node, bool exact,
                         std::span<const int32_t> tokens) {
  const auto found = node.children.find(key_of(exact, tokens));
  if (found == node.children.end()) return nullptr;
  PrefixCache::Node* next = found->second;
  return next->exact == exact && std::ranges::equal(next->tokens, tokens) ? next : nullptr;
}

// The child by the longest exact step that `tokens` begin with.
PrefixCache::Node* exact_child(const PrefixCache::Node& node, std::span<const int32_t> tokens) {
  if (node.children.empty()) return nullptr;
  for (auto n = std::min<size_t>(tokens.size(), kExactStep); n > 0; --n) {
    if (PrefixCache::Node* next = child(node, true, tokens.first(n))) return next;
  }
  return nullptr;
}

}  // namespace

PrefixCache::PrefixCache(int64_t bytes, std::function<double(int64_t, int64_t)> cost,
                         bool goes_back)
    : limit_(bytes), cost_(std::move(cost)), goes_back_(goes_back) {}

PrefixCache::~PrefixCache() = default;

PrefixCache::Place PrefixCache::root(const std::string& salt) {
  std::erase_if(roots_, [&](const auto& root) { return root.second.expired(); });
  std::weak_ptr<Node>& known = roots_[salt];
  Place place = known.lock();
  if (place == nullptr) {
    place = std::make_shared<Node>(nullptr, 0, true, std::span<const int32_t>());
    place->salt = salt;
    known = place;
  }
  return place;
}

PrefixCache::Found PrefixCache::find(const std::string& salt, std::span<const int32_t> tokens,
                                     std::span<const ReadingRun> plan) {
  Place root = this->root(salt);
  Node *node = root.get(), *best = nullptr, *last = nullptr;
  size_t run = 0;
  while (node != nullptr && run < plan.size()) {
    const auto rest = tokens.subspan(static_cast<size_t>(node->length));
    size_t end = run;  // of the runs that are exact from here on
    while (end < plan.size() && plan[end].exact) ++end;
    Node* next =
        end > run
            ? exact_child(*node,
                          rest.first(static_cast<size_t>(plan[end - 1].tokens.end - node->length)))
            : child(*node, false, rest.first(static_cast<size_t>(plan[run].tokens.size())));
    if (next == nullptr) break;
    node = next;
    while (run < plan.size() && plan[run].tokens.end <= node->length) ++run;
    if (node->length == std::ssize(tokens)) continue;
    last = node;
    if (node->state) best = node;
  }
  Found found{root, node->length, !root->children.empty(), {}};
  Node* from = best;
  if (goes_back_ && last != best) {
    from = kept_below(*last);
    if (from == nullptr) from = best;
  }
  if (from == nullptr) return found;
  from->uses += 1;
  from->since = clock_;
  found.state = *from->state;
  found.place = (from == best ? best : last)->shared_from_this();
  if (from != best) found.state.truncate(last->length);
  return found;
}

PrefixCache::Node* PrefixCache::kept_below(const Node& node) const {
  for (const Place& place : kept_) {
    Node* above = place.get();
    while (above->depth > node.depth) above = above->parent.get();
    if (above == &node) return place.get();
  }
  return nullptr;
}

PrefixCache::Place PrefixCache::follow(const Place& place, bool exact,
                                       std::span<const int32_t> tokens) {
  if (tokens.empty()) return place;
  const uint64_t key = key_of(exact, tokens);
  if (Node* next = child(*place, exact, tokens)) return next->shared_from_this();
  // Of two pieces with the same hash the first is known.
  const bool taken = place->children.contains(key);
  Place next = std::make_shared<Node>(place, key, exact, tokens);
  if (!taken) place->children[key] = next.get();
  return next;
}

bool PrefixCache::branches(const Place& place, bool exact, std::span<const int32_t> tokens) const {
  if (place->children.empty()) return false;
  return (exact ? exact_child(*place, tokens) : child(*place, false, tokens)) == nullptr;
}

bool PrefixCache::has_kept_below(const Place& place) const {
  return std::ranges::any_of(kept_, [&](const Place& other) {
    const Node* above = other.get();
    while (above->depth > place->depth) above = above->parent.get();
    return above == place.get() && other != place;
  });
}

std::vector<const PrefixCache::Node*> PrefixCache::kept_before(const Place& place) {
  std::vector<const Node*> result;
  for (const Node* node = place->parent.get(); node != nullptr; node = node->parent.get()) {
    if (node->state) result.push_back(node);
  }
  return result;
}

int64_t PrefixCache::length(const Place& place) { return place->length; }
bool PrefixCache::is_kept(const Place& place) { return place->state.has_value(); }
const SequenceState& PrefixCache::state(const Place& place) { return *place->state; }

std::string PrefixCache::salt(const Place& place) {
  const Node* node = place.get();
  while (node->parent) node = node->parent.get();
  return node->salt;
}

std::vector<PrefixCache::Piece> PrefixCache::pieces(const Place& place) {
  std::vector<Piece> pieces;
  for (const Node* node = place.get(); node->parent; node = node->parent.get()) {
    pieces.push_back({node->exact, node->tokens});
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

template <typename Visit>
void PrefixCache::for_each_page(const SequenceState& state, const Visit& visit) {
  constexpr int64_t kRows = Journal::kPageRows;
  for (const std::vector<Journal>& layer : state.layers()) {
    for (const Journal& journal : layer) {
      const int64_t row_bytes = journal.shape().row_bytes();
      if (row_bytes == 0) continue;
      const int64_t bytes = kRows * (row_bytes + static_cast<int64_t>(sizeof(int32_t)));
      const auto visit_rows = [&](int64_t begin, int64_t end) {
        if (begin >= end) return;
        for (int64_t page = begin / kRows; page * kRows < end; ++page) {
          const int64_t row = std::max(begin, page * kRows);
          visit(journal.row_data(row) - row % kRows * row_bytes, bytes);
        }
      };
      const int64_t held = journal.first_row() / kRows * kRows;
      visit_rows(0, std::min(journal.kept(), held));
      visit_rows(journal.first_row(), journal.length());
    }
  }
}

int64_t PrefixCache::count_in(const SequenceState& state) {
  int64_t added = state.bytes();
  for_each_page(state, [&](const void* page, int64_t bytes) {
    Block& block = blocks_[page];
    block.bytes = bytes;
    if (block.states++ > 0) added -= bytes;
  });
  bytes_ += added;
  return added;
}

void PrefixCache::count_out(const SequenceState& state) {
  int64_t freed = state.bytes();
  for_each_page(state, [&](const void* page, int64_t bytes) {
    const auto block = blocks_.find(page);
    if (--block->second.states > 0) {
      freed -= bytes;
    } else {
      blocks_.erase(block);
    }
  });
  bytes_ -= freed;
}

double PrefixCache::worth(const Node& node) const {
  const Node* before = node.parent.get();
  while (before->parent && !before->state) before = before->parent.get();
  return node.since + node.uses * cost_(before->length, node.length) /
                          static_cast<double>(std::max<int64_t>(1, node.own_bytes));
}

void PrefixCache::drop(size_t index) {
  const Place place = kept_[index];
  if (on_drop) on_drop(place);
  count_out(*place->state);
  place->state.reset();
  kept_[index] = kept_.back();
  kept_.pop_back();
}

void PrefixCache::keep(const Place& place, const SequenceState& state) {
  require(place->length == state.length(), "cache", "a state of {} tokens at a place of {}",
          state.length(), place->length);
  if (place->state || !place->parent || limit_ <= 0) return;
  place->own_bytes = count_in(state);
  if (place->own_bytes > limit_) return count_out(state);  // others would go for nothing
  place->state = state;
  place->uses = 1;
  place->since = clock_;
  kept_.push_back(place);
  while (bytes_ > limit_) {
    size_t least = 0;
    double value = worth(*kept_.front());
    for (size_t i = 1; i < kept_.size(); ++i) {
      const double other = worth(*kept_[i]);
      if (other < value) {
        value = other;
        least = i;
      }
    }
    clock_ = std::max(clock_, value);
    ++evictions_;
    drop(least);
  }
}

}  // namespace pronghorn
