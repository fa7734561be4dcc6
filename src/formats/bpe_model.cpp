#include "formats/bpe_model.h"

#include <algorithm>
#include <bit>
#include <queue>

#include "base/error.h"
#include "base/quote.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Spreads a pair over the table (the finaliser of SplitMix64).
uint64_t scatter(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

std::pair<std::string, std::string> read_merge(const json& merge, size_t rank,
                                               const std::string& where) {
  if (merge.is_array()) {
    require(merge.size() == 2 && merge[0].is_string() && merge[1].is_string(), where,
            "merges[{}] is not a pair", rank);
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  require(merge.is_string(), where, "merges[{}] is not a pair", rank);
  const auto& text = merge.get_ref<const std::string&>();
  const size_t space = text.find(' ', 1);
  require(space != text.npos && space + 1 < text.size(), where, "merges[{}] {} is not a pair", rank,
          quote(text));
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

BpeModel::BpeModel(Vocabulary vocabulary, const BpeOptions& options, const std::string& where)
    : SubwordModel(std::move(vocabulary)),
      where_(where),
      prefix_(options.prefix),
      suffix_(options.suffix),
      byte_fallback_(options.byte_fallback),
      ignore_merges_(options.ignore_merges),
      fuse_unknown_(options.fuse_unknown) {
  // A token that the vocabulary lacks is an error when it is needed: text without unknown
  // characters does not ask.
  if (!options.unknown.empty()) unknown_ = vocabulary_.find(options.unknown).value_or(-2);
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
  for (uint32_t code = 0; code < characters_.size(); ++code) {
    std::string character;
    append_utf8(code, character);
    characters_[code] = vocabulary_.find(character).value_or(-1);
  }
  read_merges(options);
  cuts_at_marks_ = !ignore_merges_ && prefix_.empty() && suffix_.empty() &&
                   vocabulary_.find(kWordMark).has_value();
  const bool all_bytes =
      byte_fallback_ && *std::min_element(byte_ids_.begin(), byte_ids_.end()) >= 0;
  cuts_.finish(
      [&](char c) { return all_bytes || vocabulary_.find(std::string_view(&c, 1)).has_value(); });
}

void BpeModel::read_merges(const BpeOptions& options) {
  merges_.assign(std::bit_ceil(2 * options.merges.size() + 16), Merge{});
  int32_t rank = 0;
  std::string merged;
  for (const auto& [left, right] : options.merges) {
    merged = left;
    merged.append(right, right.starts_with(prefix_) ? prefix_.size() : 0);
    const auto left_id = vocabulary_.find(left), right_id = vocabulary_.find(right),
               merged_id = vocabulary_.find(merged);
    require(left_id && right_id && merged_id, where_,
            "merges[{}]: {}, {} or the two together are not in the vocabulary", rank, quote(left),
            quote(right));
    insert_merge({pair_of(*left_id, *right_id), rank, *merged_id});
    cuts_.add(merged);
    ++rank;
  }
}

void BpeModel::insert_merge(const Merge& merge) {
  size_t at = scatter(merge.pair);
  while (true) {
    Merge& slot = merges_[at++ & (merges_.size() - 1)];
    if (slot.pair == kNoPair || slot.pair == merge.pair) {
      slot = merge;  // of a pair listed twice the last rank counts, as in the reference
      return;
    }
  }
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  size_t at = scatter(pair);
  while (true) {
    const Merge& slot = merges_[at++ & (merges_.size() - 1)];
    if (slot.pair == pair) return &slot;
    if (slot.pair == kNoPair) return nullptr;
  }
}

int32_t BpeModel::find_character(std::string_view character) const {
  if (character.size() <= 2) {
    const uint32_t code = decode_utf8(character);
    if (code < characters_.size()) return characters_[code];
  }
  return vocabulary_.find(character).value_or(-1);
}

void BpeModel::split_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
  // The unknown token of what has not been found yet: a run of such characters may become one. As
  // in the reference it waits for the next character that is in the vocabulary, also after bytes.
  bool waiting = false;
  const auto flush = [&] {
    if (waiting) symbols.push_back(unknown_);
    waiting = false;
  };
  std::string written;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = std::max<size_t>(utf8_character(piece.substr(at, 4)), 1);
    std::string_view symbol = piece.substr(at, length);
    int32_t id = -1;
    if (prefix_.empty() && suffix_.empty()) {
      id = find_character(symbol);
    } else {
      written = at > 0 ? prefix_ : "";
      written += symbol;
      if (at + length == piece.size()) written += suffix_;
      symbol = written;
      id = vocabulary_.find(symbol).value_or(-1);
    }
    at += length;
    if (id >= 0) {
      flush();
      symbols.push_back(id);
      continue;
    }
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; };
    if (byte_fallback_ && std::all_of(symbol.begin(), symbol.end(), has_byte)) {
      for (const char c : symbol) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      continue;
    }
    if (unknown_ == -1) continue;
    require(unknown_ >= 0, where_, "its unk_token is not in the vocabulary, and {} is needed",
            quote(symbol));
    if (!fuse_unknown_) flush();
    waiting = true;
  }
  flush();
}

// Looks for the lowest rank again after every merge: fastest for the length of words.
void BpeModel::merge_few(std::vector<int32_t>& symbols) const {
  struct Candidate {
    int32_t rank, merged;
  };
  constexpr int32_t kNoRank = INT32_MAX;
  std::array<Candidate, kFewSymbols> candidates{};
  const auto look = [&](size_t i) {
    const Merge* merge = find_merge(symbols[i], symbols[i + 1]);
    candidates[i] =
        merge == nullptr ? Candidate{kNoRank, -1} : Candidate{merge->rank, merge->merged};
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) look(i);
  while (symbols.size() > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < symbols.size(); ++i) {
      if (candidates[i].rank < candidates[best].rank) best = i;
    }
    if (candidates[best].rank == kNoRank) return;
    symbols[best] = candidates[best].merged;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(candidates.begin() + static_cast<std::ptrdiff_t>(best) + 1,
              candidates.begin() + static_cast<std::ptrdiff_t>(symbols.size()),
              candidates.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) look(best - 1);
    if (best + 1 < symbols.size()) look(best);
  }
}

void BpeModel::merge_many(std::vector<int32_t>& symbols) const {
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, position, merged;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<Symbol> chain(symbols.size());
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(storage));
  const auto consider = [&](int32_t at) {
    if (at < 0 || chain[at].next >= count) return;
    if (const Merge* merge = find_merge(chain[at].id, chain[chain[at].next].id)) {
      queue.push({merge->rank, at, merge->merged});
    }
  };
  for (int32_t i = 0; i < count; ++i) chain[i] = {symbols[i], i - 1, i + 1};
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  constexpr int32_t kGone = -1;
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& symbol = chain[best.position];
    if (symbol.id == kGone || symbol.next >= count) continue;
    // Out of date if what stands there now does not merge into the same.
    const Merge* merge = find_merge(symbol.id, chain[symbol.next].id);
    if (merge == nullptr || merge->merged != best.merged) continue;
    Symbol& absorbed = chain[symbol.next];
    absorbed.id = kGone;
    symbol.id = best.merged;
    symbol.next = absorbed.next;
    if (symbol.next < count) chain[symbol.next].previous = best.position;
    consider(symbol.previous);
    consider(best.position);
  }
  symbols.clear();
  for (int32_t at = 0; at < count; at = chain[at].next) symbols.push_back(chain[at].id);
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  constexpr size_t kLongest = size_t{1} << 30;  // positions are 32 bits
  require(piece.size() <= kLongest, where_, "a piece of {} bytes is too long", piece.size());
  if (ignore_merges_) {
    if (const auto id = vocabulary_.find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  split_symbols(piece, symbols);
  if (symbols.size() <= kFewSymbols) {
    merge_few(symbols);
  } else {
    merge_many(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

size_t BpeModel::independent_part(std::string_view text) const {
  return cuts_at_marks_ ? cuts_.first(text) : text.size();
}

std::unique_ptr<SubwordModel> make_bpe_model(const Component& model) {
  BpeOptions options;
  options.unknown = model.text("unk_token", "");
  options.fuse_unknown = model.flag("fuse_unk", false);
  options.byte_fallback = model.flag("byte_fallback", false);
  options.ignore_merges = model.flag("ignore_merges", false);
  options.prefix = model.text("continuing_subword_prefix", "");
  options.suffix = model.text("end_of_word_suffix", "");
  const json& merges = model.list("merges");
  options.merges.reserve(merges.size());
  for (const json& merge : merges) {
    if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
    options.merges.push_back(read_merge(merge, options.merges.size(), model.where()));
  }
  return std::make_unique<BpeModel>(Vocabulary(model.member("vocab"), model.where()), options,
                                    model.where());
}

}  // namespace pronghorn
