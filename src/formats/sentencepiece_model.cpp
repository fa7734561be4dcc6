#include "formats/sentencepiece_model.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 24;
constexpr size_t kMaxPieceBytes = 4096;

// A walk over the fields of one protocol buffer message.
class Fields {
 public:
  Fields(std::string_view message, const std::string& where) : rest_(message), where_(where) {}

  // Moves to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    number = static_cast<int>(tag >> 3 & 0x1FFFFFFF);
    bytes = {};
    value = 0;
    switch (tag & 7) {
      case 0:
        value = varint();
        break;
      case 1:
        bytes = take(8);
        break;
      case 2:
        bytes = take(varint());
        break;
      case 5:
        bytes = take(4);
        break;
      default:
        throw Error(where_, fmt::format("field of unknown wire type {}", tag & 7));
    }
    return true;
  }

  int number = 0;
  uint64_t value = 0;      // of a varint field
  std::string_view bytes;  // of any other

 private:
  uint64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      if (shift < 64) result |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return result;
    }
    throw Error(where_, "a number longer than ten bytes");
  }

  std::string_view take(uint64_t count) {
    require(count <= rest_.size(), where_, "the file ends inside a field");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_;
  const std::string& where_;
};

// Rules are a double-array trie (Darts-clone: 32-bit units) followed by replacement strings, each
// ended by a zero byte. A lookup steps from unit i to (i xor offset(i)) xor byte, and its value is
// a place among the strings: neither may leave its table, from any unit.
void check_rules(std::string_view rules, const std::string& where) {
  if (rules.empty()) return;
  uint32_t trie_bytes = 0;
  require(rules.size() > sizeof(trie_bytes), where, "normalisation rules of {} bytes",
          rules.size());
  std::memcpy(&trie_bytes, rules.data(), sizeof(trie_bytes));
  rules.remove_prefix(sizeof(trie_bytes));
  constexpr uint32_t kBlock = 256 * 4;  // tries are made of blocks of 256 units
  require(trie_bytes > 0 && trie_bytes % kBlock == 0 && trie_bytes < rules.size(), where,
          "a normalisation trie of {} bytes in rules of {}", trie_bytes, rules.size());
  const std::string_view strings = rules.substr(trie_bytes);
  require(strings.back() == '\0', where, "the last normalisation rule does not end");
  const uint32_t units = trie_bytes / 4;
  for (uint32_t i = 0; i < units; ++i) {
    uint32_t unit;
    std::memcpy(&unit, rules.data() + size_t{i} * 4, 4);
    if ((unit & 0x80000000u) != 0) {  // a leaf: its value
      require((unit & 0x7FFFFFFFu) < strings.size(), where, "normalisation rule at {} of {} bytes",
              unit & 0x7FFFFFFFu, strings.size());
      continue;
    }
    const uint32_t offset = (unit >> 10) << ((unit & (1u << 9)) >> 6);
    require(((i ^ offset) | 0xFFu) < units, where, "normalisation trie leaves its {} units", units);
    if ((unit & (1u << 8)) != 0) {  // has a leaf, whose low 31 bits are read as the value
      uint32_t leaf;
      std::memcpy(&leaf, rules.data() + size_t{i ^ offset} * 4, 4);
      require((leaf & 0x7FFFFFFFu) < strings.size(), where, "normalisation rule at {} of {} bytes",
              leaf & 0x7FFFFFFFu, strings.size());
    }
  }
}

}  // namespace

SentencePieceModel check_sentencepiece_model(std::string_view bytes, const std::string& where) {
  SentencePieceModel model;
  Fields fields(bytes, where);
  while (fields.next()) {
    if (fields.number == 1) {  // pieces
      require(model.types.size() < kMaxPieces, where, "more than {} pieces", kMaxPieces);
      const std::string piece_where = fmt::format("{}: piece {}", where, model.types.size());
      std::string_view text;
      float score = 0;
      uint64_t type = static_cast<uint64_t>(PieceType::kNormal);
      Fields piece(fields.bytes, piece_where);
      while (piece.next()) {
        if (piece.number == 1) text = piece.bytes;
        if (piece.number == 2 && piece.bytes.size() == 4) {
          std::memcpy(&score, piece.bytes.data(), 4);
        }
        if (piece.number == 3) type = piece.value;
      }
      require(!text.empty() && text.size() <= kMaxPieceBytes, piece_where, "a text of {} bytes",
              text.size());
      require(find_invalid_utf8(text) == text.npos && text.find('\0') == text.npos, piece_where,
              "its text is not UTF-8");
      require(std::isfinite(score), piece_where, "score {}", score);
      require(type >= 1 && type <= 6, piece_where, "unknown type {}", type);
      model.types.push_back(static_cast<PieceType>(type));
    }
    if (fields.number == 3 || fields.number == 5) {  // normalizer_spec, denormalizer_spec
      Fields spec(fields.bytes, where);
      while (spec.next()) {
        if (spec.number == 2) check_rules(spec.bytes, where);
      }
    }
  }
  require(!model.types.empty(), where, "no pieces: not a SentencePiece model");
  return model;
}

}  // namespace pronghorn
