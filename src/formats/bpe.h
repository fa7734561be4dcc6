// Byte-pair encoding: merges of neighbouring symbols in order of rank (Sennrich et al., "Neural
// machine translation of rare words with subword units", 2016).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pronghorn {

// The byte-level alphabet of GPT-2: each byte has a printable character of its own, so that
// vocabularies can be written as text.
void append_byte_alphabet(std::string_view bytes, std::string& out);
// The reverse; nothing if a character is not in that alphabet.
std::optional<std::string> from_byte_alphabet(std::string_view text);

// The byte that a token such as "<0x0A>" names.
std::optional<unsigned char> parse_byte_token(std::string_view token);

class BpeModel {
 public:
  // model: the "model" object of a tokenizer.json. byte_level: its vocabulary is written in the
  // byte alphabet, and symbols are bytes; otherwise symbols are characters. Throws Error.
  BpeModel(const nlohmann::json& model, bool byte_level, const std::string& where);

  // Appends the ids of one piece of text.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  // Number of ids, holes included.
  size_t size() const { return tokens_.size(); }
  // Bytes of a token: decoded from the byte alphabet, or as written.
  const std::string& token(size_t id) const { return tokens_[id]; }
  bool byte_fallback() const { return byte_fallback_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  struct Merge {
    uint64_t pair = kNoPair;
    int32_t rank = 0, merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void read_vocabulary(const nlohmann::json& vocabulary);
  void read_merges(const nlohmann::json& merges);
  std::optional<int32_t> find(std::string_view token) const;
  void insert_merge(const Merge& merge);
  const Merge* find_merge(int32_t left, int32_t right) const;
  // The symbols that a piece starts as.
  void split_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;
  void merge_symbols(const std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;

  std::string where_;
  bool byte_level_, byte_fallback_ = false, ignore_merges_ = false, fuse_unknown_ = false;
  std::optional<int32_t> unknown_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  std::vector<int32_t> byte_ids_;  // by byte: its symbol, or its fallback token; -1 if none
  std::vector<Merge> merges_;      // open addressing, a power of two
};

}  // namespace pronghorn
