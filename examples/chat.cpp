// A chat, by the model's own template: a message a line, until the input ends.
//
//   chat MODEL
#include <pronghorn/pronghorn.h>

#include <exception>
#include <iostream>
#include <string>

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::cerr << "usage: chat MODEL\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  pronghorn::TextSession session = model.start();
  std::vector<pronghorn::Message> messages;
  std::string line;
  while (std::cout << "> " << std::flush, std::getline(std::cin, line)) {
    messages.push_back({"user", line});
    // The session keeps what it has read: only what is new of the conversation is given to it.
    const std::vector<int32_t> ids = model.tokenize(model.apply_template(messages));
    const std::vector<int32_t>& known = session.ids();
    size_t same = 0;
    while (same < known.size() && same < ids.size() && known[same] == ids[same]) ++same;
    session.truncate(static_cast<int64_t>(same));
    session.append_ids(std::span(ids).subspan(same));
    const pronghorn::Continuation answer = session.generate(
        "", {.max_tokens = 200},
        [](std::string_view piece) { return static_cast<bool>(std::cout << piece << std::flush); });
    messages.push_back({"assistant", answer.text});
    std::cout << "\n";
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "chat: " << error.what() << "\n";
  return 1;
}
