// Chat templates from nowhere: each input is a template, run on a small conversation within tight
// limits. Whatever happens must be an Error, or a text.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/jinja_fuzz -max_len=512 -max_total_time=600 -dict=fuzz/jinja.dict
#include "formats/jinja.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  static const auto context = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "be <good>"}, {"role": "user", "content": "Grüße 🙂"}],
    "tools": [{"name": "f", "parameters": {"a": [1, 2.5, null, true]}}],
    "x": 3, "s": "a b\nc", "add_generation_prompt": true})");
  try {
    const JinjaTemplate chat({reinterpret_cast<const char*>(data), size}, "fuzz");
    (void)chat.render(context, 0, {20'000, 1 << 20, 300});
  } catch (const Error&) {
  }
  return 0;
}
