#include "formats/sentencepiece_model.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <queue>
#include <unordered_map>

#include "base/error.h"
#include "formats/byte_alphabet.h"
#include "formats/utf8.h"
#include "formats/word_cache.h"

namespace pronghorn {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 24;
constexpr size_t kMaxPieceBytes = 4096;
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581 stands for a space in pieces
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

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

bool is_mergeable(PieceType type) {
  return type == PieceType::kNormal || type == PieceType::kUserDefined ||
         type == PieceType::kUnused;
}

void read_piece(std::string_view message, SentencePieceModel& model, const std::string& where) {
  require(model.pieces.size() < kMaxPieces, where, "more than {} pieces", kMaxPieces);
  const std::string place = fmt::format("{}: piece {}", where, model.pieces.size());
  std::string_view text;
  float score = 0;
  uint64_t type = static_cast<uint64_t>(PieceType::kNormal);
  Fields piece(message, place);
  while (piece.next()) {
    if (piece.number == 1) text = piece.bytes;
    if (piece.number == 2 && piece.bytes.size() == 4) std::memcpy(&score, piece.bytes.data(), 4);
    if (piece.number == 3) type = piece.value;
  }
  require(!text.empty() && text.size() <= kMaxPieceBytes, place, "a text of {} bytes", text.size());
  require(find_invalid_utf8(text) == text.npos && text.find('\0') == text.npos, place,
          "its text is not UTF-8");
  require(std::isfinite(score), place, "score {}", score);
  require(type >= 1 && type <= 6, place, "unknown type {}", type);
  model.pieces.emplace_back(text);
  model.scores.push_back(score);
  model.types.push_back(static_cast<PieceType>(type));
}

}  // namespace

SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& where) {
  SentencePieceModel model;
  Fields fields(bytes, where);
  while (fields.next()) {
    if (fields.number == 1) read_piece(fields.bytes, model, where);
    if (fields.number == 2) {  // trainer_spec
      Fields spec(fields.bytes, where);
      while (spec.next()) {
        if (spec.number == 3) {
          require(spec.value >= 1 && spec.value <= 4, where, "unknown model type {}", spec.value);
          model.kind = static_cast<SentencePieceModel::Kind>(spec.value);
        }
        if (spec.number == 24) model.space_is_suffix = spec.value != 0;
        if (spec.number == 35) model.byte_fallback = spec.value != 0;
        if (spec.number == 44) model.unknown_surface = spec.bytes;
        if (spec.number == 46) model.bos_piece = spec.bytes;
        if (spec.number == 47) model.eos_piece = spec.bytes;
      }
    }
    if (fields.number == 3) {  // normalizer_spec
      Fields spec(fields.bytes, where);
      while (spec.next()) {
        if (spec.number == 2) {
          model.rules = Charsmap(spec.bytes, where);
          model.rules_bytes = spec.bytes;
        }
        if (spec.number == 3) model.add_dummy_prefix = spec.value != 0;
        if (spec.number == 4) model.remove_extra_spaces = spec.value != 0;
        if (spec.number == 5) model.escape_spaces = spec.value != 0;
      }
    }
  }
  require(!model.pieces.empty(), where, "no pieces: not a SentencePiece model");
  return model;
}

std::string write_sentencepiece_model(const SentencePieceModel& model) {
  const auto number = [](std::string& out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
    out += static_cast<char>(value);
  };
  const auto bytes = [&](std::string& out, int field, std::string_view value) {
    number(out, static_cast<uint64_t>(field) << 3 | 2);
    number(out, value.size());
    out += value;
  };
  const auto integer = [&](std::string& out, int field, uint64_t value) {
    number(out, static_cast<uint64_t>(field) << 3);
    number(out, value);
  };
  std::string out;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    std::string piece;
    bytes(piece, 1, model.pieces[id]);
    number(piece, 2 << 3 | 5);
    piece.append(reinterpret_cast<const char*>(&model.scores[id]), sizeof(float));
    integer(piece, 3, static_cast<uint64_t>(model.types[id]));
    bytes(out, 1, piece);
  }
  std::string trainer, normalizer;
  integer(trainer, 3, static_cast<uint64_t>(model.kind));
  integer(trainer, 24, model.space_is_suffix ? 1 : 0);
  integer(trainer, 35, model.byte_fallback ? 1 : 0);
  bytes(trainer, 44, model.unknown_surface);
  bytes(trainer, 46, model.bos_piece);
  bytes(trainer, 47, model.eos_piece);
  bytes(out, 2, trainer);
  bytes(normalizer, 2, model.rules_bytes);
  integer(normalizer, 3, model.add_dummy_prefix ? 1 : 0);
  integer(normalizer, 4, model.remove_extra_spaces ? 1 : 0);
  integer(normalizer, 5, model.escape_spaces ? 1 : 0);
  bytes(out, 3, normalizer);
  return out;
}

SentencePieceEncoder::SentencePieceEncoder(const SentencePieceModel& model,
                                           const std::string& where)
    : where_(where), model_(model), pieces_(model.pieces.size()), others_(model.pieces.size()) {
  byte_ids_.fill(-1);
  float lowest = FLT_MAX, highest = FLT_MIN;
  std::vector<std::pair<std::string_view, int32_t>> cuttable, user_defined;
  std::vector<double> scores;
  for (size_t i = 0; i < model_.pieces.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const std::string_view text = model_.pieces[i];
    const PieceType type = model_.types[i];
    scores.push_back(static_cast<double>(model_.scores[i]));
    require((is_mergeable(type) ? pieces_ : others_).add(text, id), where_,
            "pieces {} and another have the same text", i);
    if (type == PieceType::kNormal) {
      lowest = std::min(lowest, model_.scores[i]);
      highest = std::max(highest, model_.scores[i]);
    }
    if (type == PieceType::kUserDefined) user_defined.emplace_back(text, id);
    if (type == PieceType::kNormal || type == PieceType::kUserDefined) {
      cuttable.emplace_back(text, id);
    }
    if (is_mergeable(type)) cuts_.add(text);
    if (type == PieceType::kUnknown) {
      require(unknown_ < 0, where_, "two unknown pieces, {} and {}", unknown_, id);
      unknown_ = id;
    }
    if (type == PieceType::kByte) {
      const std::optional<unsigned char> byte = parse_byte_token(text);
      require(byte.has_value(), where_, "byte piece {} names no byte", i);
      byte_ids_[*byte] = id;
    }
  }
  require(unknown_ >= 0, where_, "no piece is of the unknown type");
  user_defined_ = Trie(user_defined);
  for (size_t byte = 0; byte < plain_.size(); ++byte) {
    const auto first = static_cast<unsigned char>(byte);
    plain_[byte] =
        first != ' ' && !model_.rules.may_begin(first) && !user_defined_.may_begin(first);
  }
  const bool all_bytes = *std::min_element(byte_ids_.begin(), byte_ids_.end()) >= 0;
  require(!model_.byte_fallback || all_bytes, where_,
          "byte_fallback is set, and some of the 256 byte pieces are missing");
  cuts_.finish([&](char c) {
    const int32_t id = pieces_.find({&c, 1});
    return model_.byte_fallback || id >= 0;
  });
  if (model_.kind == SentencePieceModel::Kind::unigram) {
    constexpr float kUnknownPenalty = 10;
    cutter_.emplace(std::move(cuttable), std::move(scores), unknown_,
                    static_cast<double>(lowest - kUnknownPenalty), true);
    for (const auto& entry : user_defined) cutter_->prefer(entry.second, highest);
  }
  cuts_at_marks_ = model_.kind == SentencePieceModel::Kind::bpe &&
                   pieces_.find(kSpaceSymbol) >= 0 && !model_.space_is_suffix;
}

int32_t SentencePieceEncoder::find(std::string_view piece) const {
  const int32_t other = others_.find(piece);
  return other >= 0 ? other : pieces_.find(piece);
}

std::pair<std::string_view, size_t> SentencePieceEncoder::normalize_prefix(
    std::string_view text) const {
  if (const size_t length = user_defined_.longest_prefix(text).first; length > 0) {
    return {text.substr(0, length), length};
  }
  if (const auto rule = model_.rules.longest(text)) return {rule->replacement, rule->length};
  const size_t length = utf8_character(text.substr(0, 4));
  if (length == 0) return {kReplacement, 1};
  return {text.substr(0, length), length};
}

std::string SentencePieceEncoder::normalize(std::string_view text, bool begins,
                                            bool dummy_prefix) const {
  std::string out;
  if (begins && model_.remove_extra_spaces) {
    while (!text.empty()) {
      const auto [replacement, length] = normalize_prefix(text);
      if (replacement != " ") break;
      text.remove_prefix(length);
    }
  }
  if (text.empty()) return out;
  out.reserve(text.size() + text.size() / 2);
  const std::string_view space = model_.escape_spaces ? kSpaceSymbol : " ";
  const bool adds = dummy_prefix && model_.add_dummy_prefix;
  if (adds && !model_.space_is_suffix) out += space;
  bool after_space = begins && model_.remove_extra_spaces;
  while (!text.empty()) {
    size_t run = 0;
    while (run < text.size() && (text[run] & 0x80) == 0 && plain_[static_cast<size_t>(text[run])]) {
      ++run;
    }
    if (run > 0) {
      out += text.substr(0, run);
      text.remove_prefix(run);
      after_space = false;
      continue;
    }
    auto [replacement, length] = normalize_prefix(text);
    text.remove_prefix(length);
    while (after_space && replacement.starts_with(' ')) replacement.remove_prefix(1);
    for (const char c : replacement) {
      if (c == ' ') {
        out += space;
      } else {
        out += c;
      }
    }
    if (!replacement.empty()) after_space = replacement.ends_with(' ');
    if (!model_.remove_extra_spaces) after_space = false;
  }
  if (model_.remove_extra_spaces) {
    while (out.ends_with(space)) out.erase(out.size() - space.size());
  }
  if (adds && model_.space_is_suffix) out += space;
  return out;
}

// Joins neighbours into the piece with the highest score, the leftmost of equal ones, until none is
// left. User-defined pieces stand from the start and are not joined.
void SentencePieceEncoder::merge(std::string_view text, Pieces& out) const {
  struct Symbol {
    int32_t previous, next;
    uint32_t begin, size;  // size 0: joined to another
    bool fixed;
  };
  struct Candidate {
    float score;
    int32_t left, right;
    uint32_t size;
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < text.size();) {
    const size_t whole = user_defined_.longest_prefix(text.substr(at)).first;
    const size_t length =
        whole > 0 ? whole : std::max<size_t>(utf8_character(text.substr(at, 4)), 1);
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({index - 1, index + 1, static_cast<uint32_t>(at),
                       static_cast<uint32_t>(length), whole > 0});
    at += length;
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  std::priority_queue<Candidate> queue;
  // How an unused piece was joined: it is taken apart again at the end.
  std::unordered_map<std::string_view, size_t> left_sizes;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Symbol &a = symbols[static_cast<size_t>(left)], &b = symbols[static_cast<size_t>(right)];
    if (a.fixed || b.fixed) return;
    const std::string_view joined = text.substr(a.begin, a.size + b.size);
    const int32_t found = pieces_.find(joined);
    if (found < 0) return;
    const auto id = static_cast<size_t>(found);
    queue.push({model_.scores[id], left, right, a.size + b.size});
    if (model_.types[id] == PieceType::kUnused) left_sizes[joined] = a.size;
  };
  for (size_t i = 1; i < symbols.size(); ++i) {
    consider(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  }
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(best.left)];
    Symbol& right = symbols[static_cast<size_t>(best.right)];
    if (left.size == 0 || right.size == 0 || left.size + right.size != best.size) continue;
    left.size += right.size;
    right.size = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.left;
    consider(left.previous, best.left);
    consider(best.left, left.next);
  }
  std::vector<std::string_view> stack;
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    stack.push_back(text.substr(symbol.begin, symbol.size));
    while (!stack.empty()) {
      const std::string_view piece = stack.back();
      stack.pop_back();
      const int32_t id = find(piece);
      const bool unused = id >= 0 && model_.types[static_cast<size_t>(id)] == PieceType::kUnused;
      const auto apart = left_sizes.find(piece);
      if (!unused || apart == left_sizes.end()) {
        out.push_back({piece, id});
        continue;
      }
      stack.push_back(piece.substr(apart->second));
      stack.push_back(piece.substr(0, apart->second));
    }
  }
}

// Words, or single characters and user-defined pieces.
void SentencePieceEncoder::look_up(std::string_view text, Pieces& out) const {
  const bool words = model_.kind == SentencePieceModel::Kind::word;
  for (size_t at = 0; at < text.size();) {
    size_t length = user_defined_.longest_prefix(text.substr(at)).first;
    if (words) {
      const size_t mark = text.find(kSpaceSymbol, at + (model_.space_is_suffix ? 0 : 1));
      length = mark == text.npos ? text.size() - at
                                 : mark - at + (model_.space_is_suffix ? kSpaceSymbol.size() : 0);
    } else if (length == 0) {
      length = std::max<size_t>(utf8_character(text.substr(at, 4)), 1);
    }
    const std::string_view piece = text.substr(at, length);
    out.push_back({piece, find(piece)});
    at += length;
  }
}

void SentencePieceEncoder::append_ids(const Pieces& pieces, std::vector<int32_t>& ids) const {
  bool after_unknown = false;
  for (const UnigramPiece& piece : pieces) {
    const bool unknown = piece.id < 0 || piece.id == unknown_;
    if (!unknown) {
      ids.push_back(piece.id);
    } else if (model_.byte_fallback) {
      for (const char c : piece.text) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    } else if (!after_unknown) {
      ids.push_back(unknown_);
    }
    after_unknown = unknown;
  }
}

void SentencePieceEncoder::encode_normalized(std::string_view text,
                                             std::vector<int32_t>& ids) const {
  constexpr size_t kLongest = size_t{1} << 31;  // positions are 32 bits
  require(text.size() < kLongest, where_, "a text of {} bytes is too long", text.size());
  Pieces pieces;
  switch (model_.kind) {
    case SentencePieceModel::Kind::unigram:
      return append_ids(cutter_->cut(text, where_), ids);
    case SentencePieceModel::Kind::word:
    case SentencePieceModel::Kind::character:
      look_up(text, pieces);
      return append_ids(pieces, ids);
    case SentencePieceModel::Kind::bpe:
      break;
  }
  if (!cuts_at_marks_) {
    merge(text, pieces);
    return append_ids(pieces, ids);
  }
  // Word by word, each once: no piece goes on from one into the next.
  WordCache words;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, cuts_.first(text));
    text.remove_prefix(word.size());
    if (words.append(word, ids)) continue;
    const size_t begin = ids.size();
    pieces.clear();
    merge(word, pieces);
    append_ids(pieces, ids);
    words.add(word, std::span(ids).subspan(begin));
  }
}

}  // namespace pronghorn
