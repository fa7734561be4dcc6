// Drafts from a suffix automaton of the text so far and of earlier texts (after SuffixDecoding,
// arXiv 2411.04975: what it weighs by counts is left to the controller, which knows how often
// matches of each length have come true).
#include <mutex>
#include <utility>

#include "decode/lookup_drafter.h"
#include "decode/suffix_automaton.h"

namespace pronghorn {

// What one sequence wrote another may be offered as a guess. That cannot change a text, but the
// time that a text takes then tells something of others: give a pool to those who may know.
class SuffixPool {
 public:
  std::mutex mutex;
  SuffixAutomaton automaton;
};

std::shared_ptr<SuffixPool> make_suffix_pool() { return std::make_shared<SuffixPool>(); }

namespace {

class SuffixDrafter final : public Drafter {
 public:
  explicit SuffixDrafter(std::shared_ptr<SuffixPool> pool) : pool_(std::move(pool)) {}
  SuffixDrafter(const SuffixDrafter&) = delete;
  SuffixDrafter& operator=(const SuffixDrafter&) = delete;
  ~SuffixDrafter() override { give_all_to_pool(); }

  std::string name() const override { return pool_ ? "suffix with pool" : "suffix"; }
  int kinds() const override { return kMatchKinds; }
  int costly_kind() const override { return -1; }

  void start(size_t count) override {
    give_all_to_pool();
    texts_.clear();
    texts_.resize(count);
  }

  void forget(size_t sequence) override {
    give_to_pool(texts_[sequence]);
    texts_[sequence] = {};
  }

  void append(size_t sequence, std::span<const int32_t> tokens) override {
    Text& text = texts_[sequence];
    text.unread.insert(text.unread.end(), tokens.begin(), tokens.end());
  }

  void draft(const Context&, std::span<DraftRequest> requests) override {
    const auto growth = [this](const DraftRequest& request) {
      return static_cast<int64_t>(texts_[request.sequence].unread.size());
    };
    answer_each(requests, growth, [this](DraftRequest& request) {
      Text& text = texts_[request.sequence];
      request.draft = {};
      const std::vector<int32_t> unread = std::exchange(text.unread, {});
      for (const int32_t token : unread) text.automaton.append(token);
      const SuffixAutomaton::Match own = text.automaton.repeated();
      if (pool_ != nullptr) {
        const std::scoped_lock lock(pool_->mutex);
        for (const int32_t token : unread) pool_->automaton.follow(text.cursor, token);
        const SuffixAutomaton::Match other = pool_->automaton.match(text.cursor);
        if (other.length > own.length) return copy(pool_->automaton, other, request);
      }
      if (own.length > 0) copy(text.automaton, own, request);
    });
  }

 private:
  struct Text {
    SuffixAutomaton automaton;
    SuffixAutomaton::Cursor cursor;  // in the pool
    std::vector<int32_t> unread;     // by both
  };

  static void copy(const SuffixAutomaton& automaton, const SuffixAutomaton::Match& match,
                   DraftRequest& request) {
    copy_continuation(automaton.tokens(), match.next, match_kind(match.length), request);
    // Not beyond the end of a text of the pool.
    Draft& draft = request.draft;
    size_t good = 0;
    while (good < draft.tokens.size() && draft.tokens[good] >= 0) ++good;
    draft.tokens.resize(good);
    draft.shape = DraftShape::chain(static_cast<int64_t>(good));
  }

  void give_to_pool(const Text& text) {
    if (pool_ == nullptr) return;
    if (text.automaton.tokens().empty() && text.unread.empty()) return;
    const std::scoped_lock lock(pool_->mutex);
    for (const int32_t token : text.automaton.tokens()) pool_->automaton.append(token);
    for (const int32_t token : text.unread) pool_->automaton.append(token);
    pool_->automaton.separate();
  }
  void give_all_to_pool() {
    for (const Text& text : texts_) give_to_pool(text);
    texts_.clear();
  }

  std::shared_ptr<SuffixPool> pool_;
  std::vector<Text> texts_;
};

}  // namespace

std::unique_ptr<Drafter> make_suffix_drafter(std::shared_ptr<SuffixPool> pool) {
  return std::make_unique<SuffixDrafter>(std::move(pool));
}

}  // namespace pronghorn
