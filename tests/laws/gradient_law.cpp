// Law 4: the backward pass against central differences of the float64 reference.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "laws/laws.h"

namespace pronghorn::laws {
namespace {

constexpr int64_t kLengths[] = {5, 33, 70, 130};
// Half the distance of central differences in float64: at 1e-4 their own error, h^2/6 times the
// third derivative plus 1e-16 |loss| / h, is about 1e-8, far below what f32 gives.
constexpr double kStep = 1e-4;
constexpr int kElements = 14;           // of an input that has rows, in each sequence
constexpr int kParameterElements = 24;  // of a parameter; each costs all sequences
constexpr int kDirections = 2;
// Rows at the edges of steps, chunks and pages.
constexpr int64_t kEdges[] = {0, 1, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128};
// Below this an input does not matter, and its gradient is compared on this scale instead of its
// own. The upstream gradient is of size 1.
constexpr double kSmallestScale = 1e-3;

struct Problem {
  std::vector<Part> parts;
  std::vector<Values> values;                 // of each sequence, float64
  std::vector<std::vector<double>> upstream;  // of each sequence
};

Problem make_problem(const Subject& subject) {
  Problem problem;
  Random random(5, "upstream");
  for (const int64_t length : kLengths) {
    const int source = static_cast<int>(problem.parts.size());
    problem.parts.push_back(chain(nullptr, source, length));
    problem.values.push_back(subject.reference_inputs(source, length));
    std::vector<double>& upstream = problem.upstream.emplace_back();
    for (int64_t i = 0; i < length * subject.width(); ++i) {
      upstream.push_back(static_cast<float>(random.uniform(-1, 1)));
    }
  }
  return problem;
}

double loss(const Subject& subject, const Problem& problem, size_t sequence, const Values& values) {
  const std::vector<double> output =
      subject.spec().reference(values, problem.parts[sequence].positions);
  double total = 0;
  for (size_t i = 0; i < output.size(); ++i) total += output[i] * problem.upstream[sequence][i];
  return total;
}

// d loss / d(input moved along `direction`), summed over the sequences in [first, last). A sequence
// s sees direction[s].
double numeric(const Subject& subject, const Problem& problem, const std::string& name,
               size_t input, size_t first, size_t last,
               const std::vector<std::vector<double>>& direction) {
  const auto known = subject.numeric_gradients().find(name);
  if (known != subject.numeric_gradients().end()) return known->second;
  double difference = 0;
  for (size_t s = first; s < last; ++s) {
    for (const double sign : {1.0, -1.0}) {
      Values moved = problem.values[s];
      for (size_t i = 0; i < moved[input].size(); ++i) {
        moved[input][i] += sign * kStep * direction[s][i];
      }
      difference += sign * loss(subject, problem, s, moved);
    }
  }
  return subject.numeric_gradients()[name] = difference / (2 * kStep);
}

struct Gradients {
  std::vector<float> output;
  std::vector<std::vector<float>> of_inputs;
};

Gradients backward(const Subject& subject, const Problem& problem) {
  const std::vector<Tensor> inputs = subject.inputs(problem.parts);
  for (const Tensor& input : inputs) input.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  const Tensor output = subject.spec().forward(context, inputs, Subject::batch(problem.parts));
  std::vector<float> upstream;
  for (const auto& part : problem.upstream)
    upstream.insert(upstream.end(), part.begin(), part.end());
  require(output.requires_grad(), subject.spec().name,
          "the output requires no gradient though the inputs do");
  output.give_grad(Tensor::from(upstream, output.shape()));
  tape.run_backward();
  Gradients gradients;
  gradients.output.assign(output.values().begin(), output.values().end());
  for (size_t i = 0; i < inputs.size(); ++i) {
    require(inputs[i].has_grad(), subject.spec().name, "input '{}' was given no gradient",
            subject.spec().inputs[i].name);
    const Tensor gradient = inputs[i].grad();
    gradients.of_inputs.emplace_back(gradient.values().begin(), gradient.values().end());
  }
  return gradients;
}

struct Sample {
  std::string name;
  double actual, expected;
};

void compare(Findings& findings, const std::vector<Sample>& samples, double tolerance) {
  double scale = kSmallestScale;
  for (const Sample& sample : samples) scale = std::max(scale, std::fabs(sample.expected));
  for (const Sample& sample : samples) {
    const double difference = std::fabs(sample.actual - sample.expected);
    if (difference <= tolerance * scale) continue;
    findings.add(fmt::format(
        "d loss / d {}: got {:.9g}, central differences give {:.9g}, off by "
        "{:.3g} of {:.3g}, allowed {:.3g}",
        sample.name, sample.actual, sample.expected, difference, scale, tolerance * scale));
  }
}

// Elements of the rows of one sequence, or of a parameter (first = 0, last = all sequences).
void check_elements(const Subject& subject, const Problem& problem, const Gradients& gradients,
                    size_t input, size_t first, size_t last, size_t offset, double tolerance,
                    Findings& findings) {
  const Input& spec = subject.spec().inputs[input];
  const bool parameter = spec.width == 0;
  const size_t size = problem.values[first][input].size();
  Random random(6, fmt::format("{}/{}", spec.name, first));
  std::vector<size_t> elements;
  const size_t wanted =
      std::min(size, static_cast<size_t>(parameter ? kParameterElements : kElements));
  if (wanted == size) {
    for (size_t i = 0; i < size; ++i) elements.push_back(i);
  } else if (parameter) {
    while (elements.size() < wanted) elements.push_back(random.below(size));
  } else {
    const auto width = static_cast<size_t>(spec.width);
    const size_t rows = size / width;
    while (elements.size() < wanted) {
      size_t row = random.below(rows);
      if (elements.size() % 2 == 0) {
        row = static_cast<size_t>(kEdges[random.below(std::size(kEdges))]);
        if (row >= rows) row = rows - 1;
      }
      elements.push_back(row * width + random.below(width));
    }
  }
  std::vector<Sample> samples;
  for (const size_t element : elements) {
    std::vector<std::vector<double>> direction(problem.parts.size(), std::vector<double>(size));
    for (size_t s = first; s < last; ++s) direction[s][element] = 1;
    std::string name =
        parameter ? fmt::format("{}[{}]", spec.name, element)
                  : fmt::format("{} of the sequence of {} tokens, row {} column {}", spec.name,
                                kLengths[first], element / static_cast<size_t>(spec.width),
                                element % static_cast<size_t>(spec.width));
    const double expected = numeric(subject, problem, name, input, first, last, direction);
    samples.push_back({std::move(name), gradients.of_inputs[input][offset + element], expected});
  }
  compare(findings, samples, tolerance);
}

// Along random directions of length 1 through all elements at once.
void check_directions(const Subject& subject, const Problem& problem, const Gradients& gradients,
                      size_t input, double tolerance, Findings& findings) {
  const Input& spec = subject.spec().inputs[input];
  const std::vector<float>& gradient = gradients.of_inputs[input];
  Random random(7, spec.name);
  std::vector<Sample> samples;
  for (int d = 0; d < kDirections; ++d) {
    const double length = 1 / std::sqrt(static_cast<double>(gradient.size()));
    std::vector<std::vector<double>> direction;
    double actual = 0;
    size_t offset = 0;
    for (size_t s = 0; s < problem.parts.size(); ++s) {
      if (spec.width == 0 && s > 0) {
        direction.push_back(direction[0]);
        continue;
      }
      std::vector<double>& part = direction.emplace_back();
      for (size_t i = 0; i < problem.values[s][input].size(); ++i) {
        part.push_back(random.below(2) == 0 ? length : -length);
        actual += part.back() * gradient[offset++];
      }
    }
    std::string name = fmt::format("{}, random direction {}", spec.name, d);
    const double expected =
        numeric(subject, problem, name, input, 0, problem.parts.size(), direction);
    samples.push_back({std::move(name), actual, expected});
  }
  compare(findings, samples, tolerance);
}

}  // namespace

void check_gradient(const Subject& subject, Findings& findings) {
  const Problem problem = make_problem(subject);
  Gradients gradients;
  for (const int threads : {1, 2, 4}) {
    const Threads scope(threads);
    Gradients again = backward(subject, problem);
    if (threads == 1) gradients = again;
    findings.same_bits(fmt::format("output with a tape, {} threads against one", threads),
                       again.output, gradients.output, subject.width());
    for (size_t i = 0; i < gradients.of_inputs.size(); ++i) {
      const Input& spec = subject.spec().inputs[i];
      findings.same_bits(fmt::format("gradient of {}, {} threads against one", spec.name, threads),
                         again.of_inputs[i], gradients.of_inputs[i],
                         std::max<int64_t>(1, spec.width));
    }
  }
  const double tolerance = subject.spec().gradient_tolerance > 0 ? subject.spec().gradient_tolerance
                                                                 : 5 * subject.spec().tolerance;
  for (size_t i = 0; i < subject.spec().inputs.size(); ++i) {
    if (subject.spec().inputs[i].width == 0) {
      check_elements(subject, problem, gradients, i, 0, problem.parts.size(), 0, tolerance,
                     findings);
    } else {
      size_t offset = 0;
      for (size_t s = 0; s < problem.parts.size(); ++s) {
        check_elements(subject, problem, gradients, i, s, s + 1, offset, tolerance, findings);
        offset += problem.values[s][i].size();
      }
    }
    check_directions(subject, problem, gradients, i, tolerance, findings);
  }
}

}  // namespace pronghorn::laws
