// Trains a model on a text, with its progress, and judges it.
//
//   train CONFIG TEXT_FILE DIR SECONDS
#include <pronghorn/pronghorn.h>

#include <cstdlib>
#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 5) {
    std::cerr << "usage: train CONFIG TEXT_FILE DIR SECONDS\n";
    return 2;
  }
  pronghorn::TrainingOptions options;
  options.config = argv[1];
  options.data = {argv[2]};
  options.directory = argv[3];
  options.seconds = std::atof(argv[4]);
  options.resume = true;  // goes on where an earlier call ended
  options.settings = R"({"window": 128, "batch_tokens": 1024})";
  const pronghorn::TrainingResult result =
      pronghorn::train(options, [](const pronghorn::TrainingProgress& now) {
        if (now.step % 10 == 1) std::cout << "step " << now.step << ", loss " << now.loss << "\n";
        return true;  // false would stop here, to be resumed
      });
  std::cout << result.steps << " steps, " << result.tokens_per_second << " tokens/s\n";

  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[3]);
  const pronghorn::Evaluation score = model.evaluate({argv[2]});
  std::cout << model.parameter_count() << " parameters: " << score.bits_per_byte
            << " bits/byte on the whole text, " << result.held_out_bits_per_byte << " held out\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "train: " << error.what() << "\n";
  return 1;
}
