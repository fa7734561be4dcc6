// Embeddings: the mean of a text's hidden states, and the cosine between those of two texts.
//
//   similarity MODEL TEXT TEXT
#include <pronghorn/pronghorn.h>

#include <cmath>
#include <exception>
#include <iostream>
#include <numeric>

// The mean of the rows, of length 1.
std::vector<float> embedding(const pronghorn::LanguageModel& model, const char* text) {
  const pronghorn::TokenMatrix states = model.hidden_states(model.tokenize(text));
  std::vector<float> sum(static_cast<size_t>(states.columns));
  for (size_t i = 0; i < states.values.size(); ++i) sum[i % sum.size()] += states.values[i];
  const float length = std::sqrt(std::inner_product(sum.begin(), sum.end(), sum.begin(), 0.0F));
  for (float& value : sum) value /= length;
  return sum;
}

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: similarity MODEL TEXT TEXT\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  const std::vector<float> a = embedding(model, argv[2]), b = embedding(model, argv[3]);
  std::cout << "cosine " << std::inner_product(a.begin(), a.end(), b.begin(), 0.0F) << " of "
            << a.size() << " numbers each\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "similarity: " << error.what() << "\n";
  return 1;
}
