#include "laws/laws.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace pronghorn::laws {
namespace {

constexpr size_t kMostFindings = 8;

constexpr Law kLaws[] = {
    {"Split", check_split},       {"Batch", check_batch},       {"Rollback", check_rollback},
    {"Fork", check_fork},         {"Truncate", check_truncate}, {"Save", check_save},
    {"Tree", check_tree},         {"Gradient", check_gradient}, {"Reference", check_reference},
    {"Contract", check_contract},
};

}  // namespace

void Findings::add(std::string message) {
  if (!full()) messages_.push_back(std::move(message));
}

bool Findings::full() const { return messages_.size() >= kMostFindings; }

void Findings::same_bits(std::string_view what, std::span<const float> actual,
                         std::span<const float> expected, int64_t width, int64_t first_row) {
  if (actual.size() != expected.size()) {
    add(fmt::format("{}: {} values where {} were expected", what, actual.size(), expected.size()));
    return;
  }
  size_t different = 0, first = 0;
  for (size_t i = actual.size(); i-- > 0;) {
    if (std::bit_cast<uint32_t>(actual[i]) != std::bit_cast<uint32_t>(expected[i])) {
      first = i;
      ++different;
    }
  }
  if (different == 0) return;
  const auto columns = static_cast<size_t>(width);
  add(
      fmt::format("{}: {} of {} values differ in their bits; first in row {} column {}: got {:.9g} "
                  "({:08x}), expected {:.9g} ({:08x})",
                  what, different, actual.size(), first_row + static_cast<int64_t>(first / columns),
                  first % columns, actual[first], std::bit_cast<uint32_t>(actual[first]),
                  expected[first], std::bit_cast<uint32_t>(expected[first])));
}

void Findings::close(std::string_view what, std::span<const float> actual,
                     std::span<const double> expected, int64_t width, double bound,
                     int64_t first_row) {
  if (actual.size() != expected.size()) {
    add(fmt::format("{}: {} values where {} were expected", what, actual.size(), expected.size()));
    return;
  }
  size_t worst = 0, outside = 0;
  double largest = -1;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(actual[i]) - expected[i]);
    outside += !(difference <= bound);
    if (!(difference <= largest)) {
      largest = difference;
      worst = i;
    }
  }
  if (outside == 0) return;
  const auto columns = static_cast<size_t>(width);
  add(fmt::format(
      "{}: {} of {} values are off by more than {:.3g}; worst in row {} column {}: got "
      "{:.9g}, expected {:.9g}, off by {:.3g}",
      what, outside, actual.size(), bound, first_row + static_cast<int64_t>(worst / columns),
      worst % columns, actual[worst], expected[worst], largest));
}

void Findings::close(std::string_view what, std::span<const float> actual,
                     std::span<const float> expected, int64_t width, double bound,
                     int64_t first_row) {
  const std::vector<double> wide(expected.begin(), expected.end());
  close(what, actual, std::span<const double>(wide), width, bound, first_row);
}

Part chain(SequenceState* state, int source, int64_t count) {
  Part part;
  part.state = state;
  part.sources.assign(static_cast<size_t>(count), source);
  const auto first = static_cast<int32_t>(state == nullptr ? 0 : state->length());
  for (int32_t i = 0; i < count; ++i) part.positions.push_back(first + i);
  return part;
}

Subject::Subject(OperatorCase spec) : spec_(std::move(spec)) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers.push_back(spec_.journals);
  layout->fingerprint = stream_id(spec_.name);
  layout_ = std::move(layout);
}

void Subject::draw(size_t input, int source, int64_t row, std::span<float> out) const {
  const Input& spec = spec_.inputs[input];
  Random random(1, fmt::format("{}/{}/{}", spec_.name, spec.name, source));
  random.set_counter(static_cast<uint64_t>(row) * out.size());
  for (float& value : out) value = static_cast<float>(random.uniform(spec.low, spec.high));
}

std::vector<Tensor> Subject::inputs(std::span<const Part> parts) const {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.length();
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < spec_.inputs.size(); ++i) {
    const Input& spec = spec_.inputs[i];
    if (spec.width == 0) {
      tensors.push_back(Tensor::empty(spec.shape));
      draw(i, -1, 0, tensors.back().values());
      continue;
    }
    tensors.push_back(Tensor::empty({rows, spec.width}));
    int64_t row = 0;
    for (const Part& part : parts) {
      for (size_t j = 0; j < part.positions.size(); ++j, ++row) {
        draw(i, part.sources[j], part.positions[j],
             {tensors.back().row(row), static_cast<size_t>(spec.width)});
      }
    }
  }
  return tensors;
}

Batch Subject::batch(std::span<const Part> parts) {
  Batch batch;
  for (const Part& part : parts) {
    Segment segment;
    segment.state = part.state;
    segment.first_row = batch.rows();
    segment.length = part.length();
    segment.parents = part.parents;
    batch.segments.push_back(std::move(segment));
    batch.positions.insert(batch.positions.end(), part.positions.begin(), part.positions.end());
  }
  batch.tokens.assign(batch.positions.size(), 0);
  return batch;
}

std::vector<std::vector<float>> Subject::run(std::span<const Part> parts) const {
  const Batch rows = batch(parts);
  const Tensor output = spec_.forward(Context{}, inputs(parts), rows);
  require(output.rows() == rows.rows() && output.columns() == width(), spec_.name,
          "output of shape {} for {} rows of {}", output.shape(), rows.rows(), width());
  std::vector<std::vector<float>> outputs;
  for (size_t s = 0; s < parts.size(); ++s) {
    const Part& part = parts[s];
    std::vector<float>& values = outputs.emplace_back();
    for (int64_t i = 0; i < part.length(); ++i) {
      const float* row = output.row(rows.segments[s].first_row + i);
      values.insert(values.end(), row, row + width());
    }
    for (size_t i = 0; i < values.size(); ++i) {
      require(std::isfinite(values[i]), spec_.name,
              "segment {} of length {}: row {} column {} is {}", s, part.length(),
              i / static_cast<size_t>(width()), i % static_cast<size_t>(width()), values[i]);
    }
    if (part.state == nullptr) continue;
    const int64_t expected = part.state->length() + part.length();
    for (const Journal& journal : part.state->layers()[0]) {
      require(journal.length() == expected, spec_.name, "journal '{}' has {} rows after {} tokens",
              journal.shape().name, journal.length(), expected);
    }
    if (part.parents.empty()) part.state->advance(part.length());
  }
  return outputs;
}

std::vector<float> Subject::run(const Part& part) const {
  return std::move(run(std::span<const Part>(&part, 1))[0]);
}

std::vector<float> Subject::decode(SequenceState& state, int source,
                                   std::span<const int64_t> steps) const {
  std::vector<float> outputs;
  for (const int64_t step : steps) {
    const std::vector<float> part = run(chain(&state, source, step));
    outputs.insert(outputs.end(), part.begin(), part.end());
  }
  return outputs;
}

Values Subject::reference_inputs(const Part& part) const {
  Values values;
  for (const Tensor& tensor : inputs({&part, 1})) {
    values.emplace_back(tensor.values().begin(), tensor.values().end());
  }
  return values;
}

const std::vector<double>& Subject::reference(int source, int64_t tokens) const {
  std::vector<double>& values = references_[{source, tokens}];
  if (values.empty()) {
    const Part whole = chain(nullptr, source, tokens);
    values = spec_.reference(reference_inputs(whole), whole.positions);
    require(static_cast<int64_t>(values.size()) == tokens * width(), spec_.name,
            "the reference gave {} values for {} tokens of {}", values.size(), tokens, width());
  }
  return values;
}

double Subject::bound_between_results() const {
  constexpr int64_t kTokens = 100;
  double largest = 0;
  for (const double value : reference(0, kTokens)) largest = std::max(largest, std::fabs(value));
  return 2 * spec_.tolerance * largest;
}

std::span<const Law> laws() { return kLaws; }

Findings check(std::string_view law, const Subject& subject) {
  Findings findings;
  const auto found =
      std::find_if(std::begin(kLaws), std::end(kLaws), [&](const Law& l) { return law == l.name; });
  if (found == std::end(kLaws)) {
    findings.add(fmt::format("there is no law '{}'", law));
    return findings;
  }
  try {
    found->check(subject, findings);
  } catch (const std::exception& error) {
    findings.add(fmt::format("exception: {}", error.what()));
  }
  return findings;
}

}  // namespace pronghorn::laws
