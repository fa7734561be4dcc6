// Shows a text while it is written, and cancels it: after so many characters, or by Ctrl-C.
//
//   stream MODEL PROMPT CHARACTERS
#include <pronghorn/pronghorn.h>

#include <csignal>
#include <cstdlib>
#include <exception>
#include <iostream>

volatile std::sig_atomic_t interrupted = 0;

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: stream MODEL PROMPT CHARACTERS\n";
    return 2;
  }
  std::signal(SIGINT, [](int) { interrupted = 1; });
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  const auto most = static_cast<size_t>(std::atoll(argv[3]));
  size_t shown = 0;
  pronghorn::TextSession session = model.start();
  const pronghorn::Continuation text = session.generate(
      argv[2], {.max_tokens = 1000, .temperature = 0.8}, [&](std::string_view piece) {
        std::cout << piece << std::flush;
        shown += piece.size();
        return shown < most && interrupted == 0;  // false: no more
      });
  // What was written stays in the session, which could go on from here.
  const bool cancelled = text.end == pronghorn::Continuation::End::stopped;
  std::cout << "\n[" << (cancelled ? "cancelled" : "ended") << " after " << text.tokens
            << " tokens; the session has " << session.length() << "]\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "stream: " << error.what() << "\n";
  return 1;
}
