// The same text sooner: a drafter guesses tokens, several of which the model checks in one step.
//
//   speculate MODEL DRAFTER PROMPT      DRAFTER: ngram, suffix, early-exit:LAYERS, mtp, or the
//                                       directory of a smaller model; several with commas
#include <pronghorn/pronghorn.h>

#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: speculate MODEL DRAFTER PROMPT\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  pronghorn::ContinueOptions options = {.max_tokens = 200};
  const pronghorn::Continuation plain = model.generate(argv[3], options);
  options.draft = argv[2];
  const pronghorn::Continuation drafted = model.generate(argv[3], options);
  std::cout << drafted.text << "\n"
            << plain.decode_seconds << " s alone, " << drafted.decode_seconds << " s with "
            << drafted.accepted << " of " << drafted.drafted << " guesses right\n"
            << (drafted.ids == plain.ids ? "the same text" : "another text") << "\n";
  return drafted.ids == plain.ids ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "speculate: " << error.what() << "\n";
  return 1;
}
