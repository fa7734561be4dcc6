// Hostile SentencePiece models: an input is a model file, with which texts are encoded.
// Whatever happens must be an Error, or ids of the vocabulary.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/sentencepiece_fuzz -max_len=16384 -timeout=20 CORPUS
#include <cstdlib>

#include "base/error.h"
#include "formats/sentencepiece_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    SentencePieceModel model = read_sentencepiece_model(bytes, "fuzz");
    const auto tokenizer =
        make_sentencepiece_tokenizer(std::move(model), SideFiles{}, "fuzz", Tokenizer::Files{});
    for (const std::string_view text :
         {bytes, std::string_view("The anchor <s> 123 \xE4\xBD\xA0\n")}) {
      const std::vector<int32_t> ids = tokenizer->encode(text);
      for (const int32_t id : ids) {
        if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
      }
      tokenizer->decode(ids);
    }
  } catch (const Error&) {
  }
  return 0;
}
