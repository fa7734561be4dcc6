// Weights out and in: lists the tensors of a model, changes one, and saves what that gives.
//
//   weights MODEL DIR
#include <pronghorn/pronghorn.h>

#include <cmath>
#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: weights MODEL DIR\n";
    return 2;
  }
  const pronghorn::LanguageModel model = pronghorn::LanguageModel::load(argv[1]);
  std::string first_matrix;
  for (const pronghorn::ParameterInfo& tensor : model.parameters()) {
    double squares = 0;
    const std::vector<float> numbers = model.parameter(tensor.name);
    for (const float value : numbers) squares += double{value} * double{value};
    std::cout << tensor.name << " [";
    for (const int64_t size : tensor.shape) std::cout << " " << size;
    std::cout << " ] " << std::sqrt(squares / static_cast<double>(numbers.size())) << "\n";
    if (first_matrix.empty() && tensor.shape.size() == 2) first_matrix = tensor.name;
  }
  std::vector<float> numbers = model.parameter(first_matrix);
  for (float& value : numbers) value *= 0.5F;
  const pronghorn::LanguageModel changed = model.with_parameters({{first_matrix, numbers}});
  changed.save(argv[2]);
  const bool same = pronghorn::LanguageModel::load(argv[2]).parameter(first_matrix) == numbers;
  std::cout << first_matrix << " halved, and read again: " << (same ? "the same" : "another")
            << "\n";
  return same ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "weights: " << error.what() << "\n";
  return 1;
}
