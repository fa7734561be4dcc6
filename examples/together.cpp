// Continues several texts together: a step of the model serves all that have not ended.
//
//   together MODEL PROMPT...
#include <pronghorn/pronghorn.h>

#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::cerr << "usage: together MODEL PROMPT...\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  const std::vector<std::string> prompts(argv + 2, argv + argc);
  const pronghorn::ContinueOptions options = {.max_tokens = 40, .temperature = 0.7};
  const std::vector<pronghorn::Continuation> texts = model.generate(prompts, options);
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::cout << prompts[i] << texts[i].text << "\n---\n";
  }
  // Neighbours change nothing: alone, a text is the same.
  const bool same = model.generate(prompts.back(), options).ids == texts.back().ids;
  std::cout << "the last one alone is " << (same ? "the same" : "another") << "\n";
  return same ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "together: " << error.what() << "\n";
  return 1;
}
