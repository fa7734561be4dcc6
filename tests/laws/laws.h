// The five laws that every sequence operator obeys, as functions that say what they found wrong.
// laws_test.cpp runs them over the table of operators (operator_case.h) and proves on operators
// with known faults that each can fail.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "laws/operator_case.h"
#include "support/machine.h"
#include "support/steps.h"

namespace pronghorn::laws {

using testing_support::equal_steps;
using testing_support::random_steps;
using testing_support::Threads;

// What a law found wrong, one line each; stops noting after the first few.
class Findings {
 public:
  void add(std::string message);
  const std::vector<std::string>& messages() const { return messages_; }
  bool empty() const { return messages_.empty(); }
  bool full() const;

  // Notes the first difference of two matrices of `width` columns: of any bit, or by more than
  // `bound`. first_row: what row 0 is called in the message.
  void same_bits(std::string_view what, std::span<const float> actual,
                 std::span<const float> expected, int64_t width, int64_t first_row = 0);
  void close(std::string_view what, std::span<const float> actual, std::span<const double> expected,
             int64_t width, double bound, int64_t first_row = 0);
  void close(std::string_view what, std::span<const float> actual, std::span<const float> expected,
             int64_t width, double bound, int64_t first_row = 0);

 private:
  std::vector<std::string> messages_;
};

// The rows that one sequence adds to a forward. The inputs of a row are a function of (source,
// position): two rows with the same source and position are the same token.
struct Part {
  SequenceState* state = nullptr;  // null: a fresh sequence whose state is not kept
  std::vector<int> sources;        // one per row
  std::vector<int32_t> positions;  // one per row
  std::vector<int32_t> parents;    // of a token tree; empty: a chain

  int64_t length() const { return static_cast<int64_t>(positions.size()); }
};

// The next `count` tokens of `source` after `state`, or its first ones where there is no state.
Part chain(SequenceState* state, int source, int64_t count);

// An operator of the table with inputs drawn for it. What does not depend on the instruction set
// (references, numeric gradients) is computed once.
class Subject {
 public:
  explicit Subject(OperatorCase spec);

  const OperatorCase& spec() const { return spec_; }
  int64_t width() const { return spec_.output_width; }
  SequenceState fresh() const { return SequenceState(layout_); }
  const std::shared_ptr<const StateLayout>& layout() const { return layout_; }

  // The inputs in f32: of the rows of `parts` one after another, and the parameters.
  std::vector<Tensor> inputs(std::span<const Part> parts) const;
  static Batch batch(std::span<const Part> parts);

  // One forward; returns the outputs of each part, and advances the states of chains. Throws Error
  // where the output has the wrong shape or numbers that are not finite, or where a journal did not
  // grow by a row per token.
  std::vector<std::vector<float>> run(std::span<const Part> parts) const;
  std::vector<float> run(const Part& part) const;

  // Continues `state` with the tokens of `source` in the given steps; returns all outputs.
  std::vector<float> decode(SequenceState& state, int source, std::span<const int64_t> steps) const;

  // Outputs for the first `tokens` tokens of `source` in float64.
  const std::vector<double>& reference(int source, int64_t tokens) const;
  // The inputs of a part in float64: exactly the values that run() is given.
  Values reference_inputs(const Part& part) const;
  // How far two results may lie apart that both are within the case's tolerance of the reference.
  double bound_between_results() const;

  // Derivatives of a loss by central differences, kept by name (see gradient_law.cpp).
  std::map<std::string, double>& numeric_gradients() const { return numeric_gradients_; }

 private:
  void draw(size_t input, int source, int64_t row, std::span<float> out) const;

  OperatorCase spec_;
  std::shared_ptr<const StateLayout> layout_;
  mutable std::map<std::pair<int, int64_t>, std::vector<double>> references_;
  mutable std::map<std::string, double> numeric_gradients_;
};

// The laws, each split into the parts that can fail on their own, and the contract that all
// operators share: inputs may be column slices, gradients are added, states refuse a tape. An
// exception is a finding.
struct Law {
  const char* name;
  void (*check)(const Subject&, Findings&);
};
std::span<const Law> laws();
Findings check(std::string_view law, const Subject& subject);

// split_laws.cpp
void check_split(const Subject& subject, Findings& findings);
void check_batch(const Subject& subject, Findings& findings);
void check_reference(const Subject& subject, Findings& findings);
// rollback_laws.cpp
void check_rollback(const Subject& subject, Findings& findings);
void check_fork(const Subject& subject, Findings& findings);
void check_truncate(const Subject& subject, Findings& findings);
void check_save(const Subject& subject, Findings& findings);
void check_tree(const Subject& subject, Findings& findings);
// gradient_law.cpp
void check_gradient(const Subject& subject, Findings& findings);
void check_contract(const Subject& subject, Findings& findings);

}  // namespace pronghorn::laws
