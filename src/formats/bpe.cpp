#include "formats/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <queue>

#include "base/error.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

// Printable bytes stand for themselves, the others for U+0100 onwards in their order (the encoder
// of GPT-2).
struct ByteAlphabet {
  ByteAlphabet() {
    code_to_byte.fill(-1);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      code[byte] = printable ? byte : next++;
      code_to_byte[code[byte]] = static_cast<int>(byte);
    }
  }
  std::array<uint32_t, 256> code;
  std::array<int, 512> code_to_byte;
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet instance;
  return instance;
}

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Spreads a pair over the table (the finaliser of SplitMix64).
uint64_t scatter(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

bool flag(const json& model, const char* key) {
  const auto found = model.find(key);
  return found != model.end() && found->is_boolean() && found->get<bool>();
}

}  // namespace

void append_byte_alphabet(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) append_utf8(alphabet().code[static_cast<unsigned char>(byte)], out);
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const size_t length = utf8_character(text);
    if (length == 0) return {};
    const uint32_t code = decode_utf8(text.substr(0, length));
    if (code >= alphabet().code_to_byte.size() || alphabet().code_to_byte[code] < 0) return {};
    bytes += static_cast<char>(alphabet().code_to_byte[code]);
    text.remove_prefix(length);
  }
  return bytes;
}

std::optional<unsigned char> parse_byte_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return {};
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return {};
    value = value * 16 + digit;
  }
  return static_cast<unsigned char>(value);
}

BpeModel::BpeModel(const json& model, bool byte_level, const std::string& where)
    : where_(where), byte_level_(byte_level) {
  require(model.is_object(), where, "model must be an object");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto found = model.find(key);
    require(found == model.end() || found->is_null() || *found == "", where,
            "model.{} is not supported", key);
  }
  byte_fallback_ = flag(model, "byte_fallback");
  ignore_merges_ = flag(model, "ignore_merges");
  fuse_unknown_ = flag(model, "fuse_unk");
  require(model.contains("vocab"), where, "no model.vocab");
  read_vocabulary(model["vocab"]);
  require(model.contains("merges"), where, "no model.merges");
  read_merges(model["merges"]);
  if (const auto found = model.find("unk_token"); found != model.end() && !found->is_null()) {
    require(found->is_string(), where, "model.unk_token must be a string");
    unknown_ = find(found->get_ref<const std::string&>());
  }
  byte_ids_.assign(256, -1);
  for (int byte = 0; byte < 256; ++byte) {
    const std::string name =
        byte_level_ ? std::string(1, static_cast<char>(byte)) : fmt::format("<0x{:02X}>", byte);
    byte_ids_[static_cast<size_t>(byte)] = find(name).value_or(-1);
  }
}

void BpeModel::read_vocabulary(const json& vocabulary) {
  require(vocabulary.is_object() && !vocabulary.empty(), where_,
          "model.vocab must be an object with tokens");
  // Ids may leave holes, but not so large ones that a small file takes much memory.
  const uint64_t limit = 4 * vocabulary.size() + 65536;
  for (const auto& item : vocabulary.items()) {
    require(item.value().is_number_unsigned() && item.value().get<uint64_t>() < limit, where_,
            "model.vocab: the id of '{}' must be a whole number below {}", item.key(), limit);
    const auto id = item.value().get<uint64_t>();
    if (id >= tokens_.size()) tokens_.resize(id + 1);
    require(tokens_[id].empty(), where_, "model.vocab: id {} belongs to two tokens", id);
    std::optional<std::string> bytes;
    if (byte_level_) bytes = from_byte_alphabet(item.key());
    tokens_[id] = bytes.value_or(item.key());
    // A token that is not written in the byte alphabet is never the result of a merge.
    if (!byte_level_ || bytes) ids_.emplace(tokens_[id], static_cast<int32_t>(id));
  }
}

void BpeModel::read_merges(const json& merges) {
  require(merges.is_array(), where_, "model.merges must be an array");
  merges_.assign(std::bit_ceil(2 * merges.size() + 16), Merge{});
  int32_t rank = 0;
  for (const json& merge : merges) {
    std::string left, right;
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ', 1);
      require(space != text.npos && space + 1 < text.size(), where_,
              "model.merges[{}] '{}' is not a pair", rank, text);
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      require(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
              where_, "model.merges[{}] is not a pair", rank);
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    }
    if (byte_level_) {
      left = from_byte_alphabet(left).value_or(left);
      right = from_byte_alphabet(right).value_or(right);
    }
    const auto left_id = find(left), right_id = find(right), merged = find(left + right);
    require(left_id && right_id && merged, where_,
            "model.merges[{}]: '{}', '{}' or the two together are not in the vocabulary", rank,
            left, right);
    insert_merge({pair_of(*left_id, *right_id), rank, *merged});
    ++rank;
  }
}

std::optional<int32_t> BpeModel::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional<int32_t>(found->second);
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

void BpeModel::split_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
  if (byte_level_) {
    for (const char byte : piece) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
      if (id >= 0) {
        symbols.push_back(id);
      } else if (unknown_) {
        symbols.push_back(*unknown_);
      }
    }
    return;
  }
  bool after_unknown = false;
  while (!piece.empty()) {
    const size_t length = std::max<size_t>(utf8_character(piece.substr(0, 4)), 1);
    const std::string_view character = piece.substr(0, length);
    piece.remove_prefix(length);
    if (const auto id = find(character)) {
      symbols.push_back(*id);
      after_unknown = false;
      continue;
    }
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), has_byte)) {
      for (const char c : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      after_unknown = false;
    } else if (unknown_) {
      if (!(fuse_unknown_ && after_unknown)) symbols.push_back(*unknown_);
      after_unknown = true;
    }
  }
}

void BpeModel::merge_symbols(const std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, position, left, right, merged;
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
    const int32_t left = chain[at].id, right = chain[chain[at].next].id;
    if (const Merge* merge = find_merge(left, right)) {
      queue.push({merge->rank, at, left, right, merge->merged});
    }
  };
  for (int32_t i = 0; i < count; ++i) chain[i] = {symbols[i], i - 1, i + 1};
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  constexpr int32_t kGone = -1;
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& symbol = chain[best.position];
    // Out of date if either half has been merged since.
    if (symbol.id != best.left || symbol.next >= count || chain[symbol.next].id != best.right) {
      continue;
    }
    Symbol& absorbed = chain[symbol.next];
    absorbed.id = kGone;
    symbol.id = best.merged;
    symbol.next = absorbed.next;
    if (symbol.next < count) chain[symbol.next].previous = best.position;
    consider(symbol.previous);
    consider(best.position);
  }
  for (int32_t at = 0; at < count; at = chain[at].next) ids.push_back(chain[at].id);
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  constexpr size_t kLongest = size_t{1} << 30;  // positions are 32 bits
  require(piece.size() <= kLongest, where_, "a piece of {} bytes is too long", piece.size());
  if (ignore_merges_) {
    if (const auto id = find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<int32_t> symbols;
  split_symbols(piece, symbols);
  if (!symbols.empty()) merge_symbols(symbols, ids);
}

}  // namespace pronghorn
