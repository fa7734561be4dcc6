// Pre-tokenizers by the names that GGUF files have for them (tokenizer.ggml.pre).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

struct GgufPre {
  std::vector<std::string_view> names;     // the first is the one to write
  std::vector<std::string_view> patterns;  // the text is cut by each in turn
  bool ignore_merges = false;              // a piece that is a token becomes that token
  bool add_bos = false;                    // where the file does not say
  bool nfc = false;                        // normalised before
  bool marks_spaces = false;               // U+2581 for spaces, and characters instead of bytes
};

std::span<const GgufPre> gguf_pres();

}  // namespace pronghorn
