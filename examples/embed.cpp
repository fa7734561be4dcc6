// Pronghorn inside a program: train a small model on a text, or load one; stream a continuation;
// fork the session and let both go their own way.
//
//   embed CONFIG TEXT_FILE DIR [SECONDS] [PROMPT]    trains into DIR first, unless it is trained
//   embed DIR                                        uses the model in DIR
#include <pronghorn/pronghorn.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

namespace {

void train_model(const char* config, const char* text, const char* directory, double seconds) {
  pronghorn::TrainingOptions options;
  options.config = config;
  options.data = {text};
  options.directory = directory;
  options.seconds = seconds;
  options.resume = true;
  options.settings = R"({"window": 128, "batch_tokens": 1024})";
  const pronghorn::TrainingResult result =
      pronghorn::train(options, [](const pronghorn::TrainingProgress& now) {
        if (now.step % 10 == 1) {
          std::printf("step %lld, loss %.3f\n", static_cast<long long>(now.step), now.loss);
        }
        return true;  // false would stop here, to be resumed
      });
  std::printf("trained %lld steps: %.3f bits/byte on held-out text\n\n",
              static_cast<long long>(result.steps), result.held_out_bits_per_byte);
}

// Shows a piece of text; false would end the text here.
bool print(std::string_view piece) {
  std::fwrite(piece.data(), 1, piece.size(), stdout);
  return std::fflush(stdout) == 0;
}

void write_text(const char* directory, const std::string& prompt) {
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(directory);
  std::printf("%lld parameters, a state of %lld bytes after 4096 tokens\n\n",
              static_cast<long long>(model.parameter_count()),
              static_cast<long long>(model.state_bytes(4096)));

  pronghorn::ContinueOptions options;
  options.max_tokens = 100;
  options.temperature = 0.7;
  pronghorn::TextSession session = model.start();
  print(prompt);
  session.generate(prompt, options, print);

  // A copy is a fork: both know the text so far, and neither sees what the other writes.
  pronghorn::TextSession fork = session;
  options.seed = 1;
  print("\n\nOne way on:\n");
  session.generate("", options, print);
  options.seed = 2;
  print("\n\nAnother:\n");
  fork.generate("", options, print);
  print("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc < 4) {
    std::fprintf(stderr,
                 "usage: embed CONFIG TEXT_FILE DIR [SECONDS] [PROMPT]\n       embed DIR\n");
    return 2;
  }
  try {
    const char* directory = argv[argc == 2 ? 1 : 3];
    if (argc > 2) train_model(argv[1], argv[2], directory, argc > 4 ? std::atof(argv[4]) : 10);
    write_text(directory, argc > 5 ? argv[5] : "In the beginning ");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "embed: %s\n", error.what());
    return 1;
  }
  return 0;
}
