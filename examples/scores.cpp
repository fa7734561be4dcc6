// How likely a model finds a text: ln p of every token, perplexity, and what it expected next.
//
//   scores MODEL TEXT
#include <pronghorn/pronghorn.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <iomanip>
#include <iostream>
#include <numeric>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: scores MODEL TEXT\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  const std::vector<int32_t> ids = model.tokenize(argv[2]);
  const std::vector<double> scores = model.log_probabilities(ids);  // from the second token on
  for (size_t i = 0; i < scores.size(); ++i) {
    std::cout << std::setw(9) << scores[i] << "  " << model.detokenize(std::span(&ids[i + 1], 1))
              << "\n";
  }
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  const auto count = static_cast<double>(scores.size());
  std::cout << "perplexity " << std::exp(-sum / count) << "\n";

  const pronghorn::TokenMatrix logits = model.logits(ids);  // a row per token
  const auto last = logits.values.end() - logits.columns;
  const auto likeliest = static_cast<int32_t>(std::max_element(last, logits.values.end()) - last);
  std::cout << "then: " << model.detokenize(std::span(&likeliest, 1)) << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "scores: " << error.what() << "\n";
  return 1;
}
