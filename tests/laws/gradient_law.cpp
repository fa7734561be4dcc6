// Law 4: the backward pass against central differences of the float64 reference; and the contract
// that operators share.
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

Problem make_problem(const Subject& subject, std::span<const int64_t> lengths) {
  Problem problem;
  Random random(5, "upstream");
  for (const int64_t length : lengths) {
    const int source = static_cast<int>(problem.parts.size());
    problem.parts.push_back(chain(nullptr, source, length));
    problem.values.push_back(subject.reference_inputs(problem.parts.back()));
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

// The numbers of a matrix, row after row.
std::vector<float> numbers(const Tensor& matrix) {
  std::vector<float> values;
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    values.insert(values.end(), matrix.row(i), matrix.row(i) + matrix.columns());
  }
  return values;
}

// Forward with a tape, and backward. The gradients of inputs that require none are left empty.
Gradients backward(const Subject& subject, const Problem& problem,
                   const std::vector<Tensor>& inputs) {
  Tape tape;
  Context context;
  context.tape = &tape;
  const Tensor output = subject.spec().forward(context, inputs, Subject::batch(problem.parts));
  std::vector<float> upstream;
  for (const auto& part : problem.upstream) {
    upstream.insert(upstream.end(), part.begin(), part.end());
  }
  require(output.requires_grad(), subject.spec().name,
          "the output requires no gradient though an input does");
  output.give_grad(Tensor::from(upstream, output.shape()));
  tape.run_backward();
  Gradients gradients;
  gradients.output = numbers(output);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string& name = subject.spec().inputs[i].name;
    require(inputs[i].requires_grad() == inputs[i].has_grad(), subject.spec().name, "input '{}' {}",
            name,
            inputs[i].has_grad() ? "was given a gradient that it does not require"
                                 : "was given no gradient");
    gradients.of_inputs.push_back(inputs[i].has_grad() ? numbers(inputs[i].grad())
                                                       : std::vector<float>());
  }
  return gradients;
}

Gradients backward(const Subject& subject, const Problem& problem) {
  const std::vector<Tensor> inputs = subject.inputs(problem.parts);
  for (const Tensor& input : inputs) input.set_requires_grad(true);
  return backward(subject, problem, inputs);
}

double gradient_tolerance(const OperatorCase& spec) {
  return spec.gradient_tolerance > 0 ? spec.gradient_tolerance : 5 * spec.tolerance;
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

// Compares the gradient of input `i` with `factor` times the one that check_gradient() vouches for.
void compare_gradient(const Subject& subject, Findings& findings, const std::string& what, size_t i,
                      const Gradients& actual, const Gradients& expected, double factor = 1) {
  std::vector<double> wanted;
  double largest = kSmallestScale;
  for (const float value : expected.of_inputs[i]) {
    wanted.push_back(factor * value);
    largest = std::max(largest, std::fabs(wanted.back()));
  }
  const Input& spec = subject.spec().inputs[i];
  findings.close(fmt::format("gradient of {}, {}", spec.name, what), actual.of_inputs[i],
                 std::span<const double>(wanted), std::max<int64_t>(1, spec.width),
                 2 * gradient_tolerance(subject.spec()) * largest);
}

// The inputs that have rows, as column slices of one wide tensor, which is returned too.
Tensor slice_inputs(const Subject& subject, std::vector<Tensor>& inputs) {
  constexpr int64_t kGap = 3;  // columns between the slices, so that none is aligned
  int64_t columns = kGap, rows = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (subject.spec().inputs[i].width == 0) continue;
    columns += inputs[i].columns() + kGap;
    rows = inputs[i].rows();
  }
  const Tensor wide = Tensor::full({rows, columns}, 1);
  wide.set_requires_grad(true);
  int64_t begin = kGap;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (subject.spec().inputs[i].width == 0) continue;
    const Tensor slice = wide.column_slice(begin, inputs[i].columns());
    slice.copy_from(inputs[i]);
    begin += slice.columns() + kGap;
    inputs[i] = slice;
  }
  return wide;
}

void check_slices(const Subject& subject, const Problem& problem, const Gradients& expected,
                  Findings& findings) {
  std::vector<Tensor> inputs = subject.inputs(problem.parts);
  for (const Tensor& input : inputs) input.set_requires_grad(true);
  const Tensor wide = slice_inputs(subject, inputs);
  const Gradients actual = backward(subject, problem, inputs);
  findings.same_bits("output from column slices", actual.output, expected.output, subject.width());
  std::vector<bool> between(static_cast<size_t>(wide.columns()), true);
  int64_t begin = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    compare_gradient(subject, findings, "from column slices", i, actual, expected);
    if (subject.spec().inputs[i].width == 0) continue;
    begin = inputs[i].data() - wide.data();
    std::fill_n(between.begin() + begin, inputs[i].columns(), false);
  }
  for (int64_t row = 0; row < wide.rows(); ++row) {
    for (int64_t column = 0; column < wide.columns(); ++column) {
      if (!between[static_cast<size_t>(column)] || wide.grad().row(row)[column] == 0) continue;
      findings.add(fmt::format("a gradient of {} between the column slices, row {} column {}",
                               wide.grad().row(row)[column], row, column));
      return;
    }
  }
}

}  // namespace

void check_contract(const Subject& subject, Findings& findings) {
  constexpr int64_t kShort[] = {5, 16, 33};
  const Threads scope(2);
  const Problem problem = make_problem(subject, kShort);
  const Gradients expected = backward(subject, problem);
  check_slices(subject, problem, expected, findings);

  // Inputs are read, not written; a second backward adds to the gradients of the first.
  const std::vector<Tensor> inputs = subject.inputs(problem.parts);
  for (const Tensor& input : inputs) input.set_requires_grad(true);
  backward(subject, problem, inputs);
  const Gradients twice = backward(subject, problem, inputs);
  const std::vector<Tensor> untouched = subject.inputs(problem.parts);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Input& spec = subject.spec().inputs[i];
    compare_gradient(subject, findings, "added to an equal one", i, twice, expected, 2);
    findings.same_bits(fmt::format("input {} after forward and backward", spec.name),
                       numbers(inputs[i]), numbers(untouched[i]), std::max<int64_t>(1, spec.width));
  }

  // Only one input requires a gradient.
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<Tensor> fresh = subject.inputs(problem.parts);
    fresh[i].set_requires_grad(true);
    compare_gradient(subject, findings, "the only one wanted", i, backward(subject, problem, fresh),
                     expected);
  }

  // A state and a tape exclude each other, for those who use it.
  if (subject.spec().journals.empty()) return;
  SequenceState state = subject.fresh();
  const Part part = chain(&state, 0, 4);
  const std::vector<Tensor> rows = subject.inputs({&part, 1});
  for (const Tensor& input : rows) input.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  try {
    subject.spec().forward(context, rows, Subject::batch({&part, 1}));
    findings.add("a tape with a segment that has a state was not refused with an Error");
  } catch (const Error&) {
  }
}

void check_gradient(const Subject& subject, Findings& findings) {
  const Problem problem = make_problem(subject, kLengths);
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
  const double tolerance = gradient_tolerance(subject.spec());
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
