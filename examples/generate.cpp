// Loads a model and continues a text.
//
//   generate MODEL PROMPT
#include <pronghorn/pronghorn.h>

#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: generate MODEL PROMPT\n";
    return 2;
  }
  // What it would take, before any of it is taken.
  const pronghorn::MemoryEstimate needed = pronghorn::LanguageModel::estimate(argv[1], 1024);
  std::cerr << needed.weight_bytes << " bytes of weights, " << needed.state_bytes
            << " for a text of 1024 tokens\n";

  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  const pronghorn::Continuation text =
      model.generate(argv[2], {.max_tokens = 100, .temperature = 0.7, .top_p = 0.95, .seed = 1});
  std::cout << argv[2] << text.text << "\n";
  std::cerr << text.tokens << " tokens in " << text.decode_seconds << " s\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "generate: " << error.what() << "\n";
  return 1;
}
