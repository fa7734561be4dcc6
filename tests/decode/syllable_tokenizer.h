// A tokenizer for the vocabulary of the tiny models of tests.
#pragma once

#include <optional>
#include <string>

#include "base/error.h"
#include "formats/tokenizer.h"

namespace pronghorn::testing_support {

// 61 tokens of one to three letters, so that texts have places between tokens.
class SyllableTokenizer final : public Tokenizer {
 public:
  explicit SyllableTokenizer(std::optional<int32_t> eos = {}) : Tokenizer({}), eos_(eos) {}

  std::vector<int32_t> encode(std::string_view, const EncodeOptions&) const override { return {}; }
  std::string token_bytes(int32_t id, bool) const override {
    require(id >= 0 && id < 61, "tokenizer", "no token {}", id);
    const std::string letters = {static_cast<char>('a' + id % 26),
                                 static_cast<char>('a' + id * 7 % 26),
                                 static_cast<char>('a' + id * 11 % 26)};
    return letters.substr(0, static_cast<size_t>(id % 3) + 1);
  }
  int64_t vocab_size() const override { return 61; }
  std::optional<int32_t> eos() const override { return eos_; }

 private:
  std::optional<int32_t> eos_;
};

}  // namespace pronghorn::testing_support
