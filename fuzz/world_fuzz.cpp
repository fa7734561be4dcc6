// Hostile vocabularies of RWKV's World tokenizer: an input is a vocabulary file, with which texts
// are encoded. Whatever happens must be an Error, or ids whose bytes are the text.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/world_fuzz -max_len=4096 -timeout=20 CORPUS
#include <cstdlib>

#include "base/error.h"
#include "formats/world_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const WorldTokens tokens = read_world_vocabulary(bytes, "fuzz");
    if (read_world_vocabulary(write_world_vocabulary(tokens), "written") != tokens) std::abort();
    const auto tokenizer = make_world_tokenizer(tokens, SideFiles{}, "fuzz", Tokenizer::Files{});
    for (const std::string_view text : {std::string_view("\x01 a\n\xFF"), bytes}) {
      const std::vector<int32_t> ids = tokenizer->encode(text, {.parse_special = false});
      if (tokenizer->decode(ids) != text) std::abort();
    }
  } catch (const Error&) {
  }
  return 0;
}
