// Normalisers of a tokenizer.json: what is done to a text before it is cut into pieces.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/charsmap.h"
#include "formats/regex.h"
#include "formats/unicode.h"

namespace pronghorn {

std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// BertNormalizer, ByteLevel, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, Precompiled, Prepend, Replace,
// Strip, StripAccents, and sequences of them.
class Normalizer {
 public:
  // description: "normalizer" of tokenizer.json; null for none. Throws Error.
  Normalizer(const nlohmann::json& description, const std::string& where);

  bool empty() const { return steps_.empty(); }
  // text must be UTF-8. begins: false for a text that continues another; then nothing is put before
  // it. Throws Error if a pattern takes too long.
  std::string apply(std::string_view text, bool begins) const;

 private:
  enum class Kind : uint8_t {
    bert,
    byte_level,
    lowercase,
    form,
    nmt,
    precompiled,
    prepend,
    replace,
    strip,
    strip_accents
  };
  struct Step {
    Kind kind;
    NormalForm form = NormalForm::nfc;
    std::string text{};                                               // to be put before or instead
    std::shared_ptr<const Regex> pattern{};                           // Replace
    std::shared_ptr<const Charsmap> rules{};                          // Precompiled
    bool left = false, right = false;                                 // Strip
    bool clean = false, cjk = false, accents = false, lower = false;  // BertNormalizer
  };
  static std::string apply(const Step& step, std::string text, bool begins);

  std::vector<Step> steps_;
};

}  // namespace pronghorn
