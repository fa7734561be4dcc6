// Prompt lookup: what followed an earlier occurrence of the last n tokens (Saxena, 2023).
//
// For each n a table maps the hash of n tokens to where they ended last. The hash rolls: with
// prefix hashes H_i = H_(i-1) B + x_i + 1, that of tokens i-n+1 ... i is H_i - H_(i-n) B^n (mod
// 2^64), so a token costs a constant number of steps. A match is compared with the text before it
// is used.
#include <algorithm>
#include <bit>
#include <unordered_map>

#include "base/error.h"
#include "decode/lookup_drafter.h"

namespace pronghorn {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull;

// Tokens by which a match is followed back at most, to tell its kind.
constexpr size_t kLongest = 64;

class NgramDrafter final : public Drafter {
 public:
  NgramDrafter(int64_t minimum, int64_t maximum) {
    require(minimum >= 1 && minimum <= maximum && maximum <= 64, "ngram",
            "matches of {} to {} tokens", minimum, maximum);
    for (int64_t n = maximum; n >= minimum; --n) lengths_.push_back(static_cast<size_t>(n));
    for (const size_t n : lengths_) {
      uint64_t power = 1;
      for (size_t i = 0; i < n; ++i) power *= kBase;
      powers_.push_back(power);
    }
  }

  std::string name() const override { return "ngram"; }
  int kinds() const override { return kMatchKinds; }
  int costly_kind() const override { return -1; }

  void start(size_t count) override {
    texts_.resize(count);
    for (size_t i = 0; i < count; ++i) forget(i);
  }

  void forget(size_t sequence) override {
    texts_[sequence] = {};
    texts_[sequence].ends.resize(lengths_.size());
  }

  void append(size_t sequence, std::span<const int32_t> tokens) override {
    Text& text = texts_[sequence];
    text.tokens.insert(text.tokens.end(), tokens.begin(), tokens.end());
  }

  void draft(const Context&, std::span<DraftRequest> requests) override {
    const auto unread = [this](const DraftRequest& request) {
      const Text& text = texts_[request.sequence];
      return static_cast<int64_t>(text.tokens.size() + 1 - text.hashes.size());
    };
    answer_each(requests, unread, [this](DraftRequest& request) {
      Text& text = texts_[request.sequence];
      request.draft = {};
      while (text.hashes.size() <= text.tokens.size()) read(text);
      if (text.match == 0) return;
      const size_t length = common_end(text.tokens, text.match, text.tokens.size());
      copy_continuation(text.tokens, text.match, match_kind(static_cast<int64_t>(length)), request);
    });
  }

 private:
  struct Text {
    std::vector<int32_t> tokens;
    std::vector<uint64_t> hashes = {0};  // of the first i tokens, of as many as have been read
    std::vector<std::unordered_map<uint64_t, size_t>> ends;  // for each length: hash -> end
    size_t match = 0;  // where an earlier occurrence of the text's end ends; 0: there is none
  };

  // The next token that has not been read.
  void read(Text& text) const {
    const size_t size = text.hashes.size();
    text.hashes.push_back(text.hashes.back() * kBase +
                          static_cast<uint32_t>(text.tokens[size - 1]) + 1);
    text.match = 0;
    for (size_t i = 0; i < lengths_.size(); ++i) {
      const size_t n = lengths_[i];
      if (size < n) continue;
      const uint64_t hash = text.hashes[size] - text.hashes[size - n] * powers_[i];
      size_t& end = text.ends[i][hash];  // 0: new
      if (end > 0 && text.match == 0 && common_end(text.tokens, end, size) >= n) text.match = end;
      end = size;
    }
  }

  // How many tokens before `a` and before `b` are the same, up to kLongest.
  static size_t common_end(const std::vector<int32_t>& tokens, size_t a, size_t b) {
    size_t n = 0;
    while (n < kLongest && n < a && tokens[a - n - 1] == tokens[b - n - 1]) ++n;
    return n;
  }

  std::vector<size_t> lengths_;  // longest first
  std::vector<uint64_t> powers_;
  std::vector<Text> texts_;
};

}  // namespace

int match_kind(int64_t length) {
  if (length <= 4) return static_cast<int>(std::max<int64_t>(1, length)) - 1;
  // 5-8, 9-16, 17-32, more
  const int doublings = std::bit_width(static_cast<uint64_t>(length - 1)) - 3;
  return std::min(kMatchKinds, 4 + doublings + 1) - 1;
}

void copy_continuation(std::span<const int32_t> text, size_t next, int kind,
                       DraftRequest& request) {
  Draft& draft = request.draft;
  draft.kind = kind;
  const auto wanted = static_cast<size_t>(std::min(request.limit, kMaxDraft));
  for (size_t i = 0; i < wanted; ++i) {
    const size_t from = next + i;
    const int32_t token = from < text.size() ? text[from] : draft.tokens[from - text.size()];
    draft.add(token, static_cast<int32_t>(i) - 1, 0);
  }
}

std::unique_ptr<Drafter> make_ngram_drafter(int64_t minimum, int64_t maximum) {
  return std::make_unique<NgramDrafter>(minimum, maximum);
}

}  // namespace pronghorn
