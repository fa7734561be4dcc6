// A session is a value: it is copied to fork a text, saved, resumed, and taken back to an earlier
// token.
//
//   session MODEL PROMPT FILE
#include <pronghorn/pronghorn.h>

#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: session MODEL PROMPT FILE\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  pronghorn::TextSession session = model.start();
  session.generate(argv[2], {.max_tokens = 20});
  const int64_t length = session.length();
  std::cout << "so far: " << session.text() << "\n(" << session.state_bytes() << " bytes)\n";
  session.save(argv[3]);

  // Both know the text so far, and neither sees what the other writes.
  pronghorn::TextSession fork = session;
  const std::string one = session.generate("", {.max_tokens = 20}).text;
  const std::string other = fork.generate(" And then", {.max_tokens = 20}).text;
  std::cout << "one way on: " << one << "\nanother: " << other << "\n";

  // Back to where it forked, or from the file: the same words again.
  session.truncate(length);
  const bool back = session.generate("", {.max_tokens = 20}).text == one;
  pronghorn::TextSession resumed = model.resume(argv[3]);
  const bool kept = resumed.generate("", {.max_tokens = 20}).text == one;
  std::cout << "truncated: " << (back ? "the same" : "another")
            << ", resumed: " << (kept ? "the same" : "another") << "\n";
  return back && kept ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "session: " << error.what() << "\n";
  return 1;
}
