// A row of the table of the five laws: what the suite in laws_test.cpp needs to know of a sequence
// operator. A new operator adds a file <operator>_case.cpp with its naive float64 form, and gets
// all five laws: laws_test --gtest_filter='Laws/*.<case>__*'.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn::laws {

struct Input {
  std::string name;
  // Width of a row of an input that has a row per token; empty for a parameter, which has `shape`.
  int64_t width = 0;
  Shape shape;
  double low = -1, high = 1;  // values are drawn uniformly from this range
};

// All inputs of one sequence in float64, row-major: [tokens, width] or the parameter's shape.
using Values = std::vector<std::vector<double>>;

struct OperatorCase {
  std::string name;  // letters, digits and underscores
  std::vector<Input> inputs;
  int64_t output_width = 0;
  std::vector<JournalShape> journals;  // of one layer that holds this operator, slots {0, 0}, ...

  // A row of a chain also sees later rows of its segment: results depend on the cut by design, so
  // that only sequences in one segment are compared with the reference, and cuts not at all.
  bool sees_later_rows = false;

  // The operator under test. inputs in the order above, those with a width holding batch.rows()
  // rows.
  std::function<Tensor(const Context&, const std::vector<Tensor>& inputs, const CheckedBatch&)>
      forward;

  // The naive form: one whole fresh sequence, token by token, straight from the paper's equations.
  // positions: of its tokens. Returns [tokens, output_width].
  std::function<std::vector<double>(const Values& inputs, const std::vector<int32_t>& positions)>
      reference;

  // Largest difference from the reference, relative to the largest output, that f32 explains.
  double tolerance = 2e-5;

  // Largest difference of a gradient from central differences of the reference, relative to the
  // largest element of that gradient. 0: five times `tolerance`, since a backward pass reads the
  // forward's rounded results and adds up a few sums of the same length again.
  double gradient_tolerance = 0;
};

// The table: <operator>_cases(), defined in tests/laws/<operator>_case.cpp, returns an operator's
// variants. The build finds the files and writes the list.
#define CASES(function) std::vector<OperatorCase> function();
#include "laws/case_list.inc"
#undef CASES

}  // namespace pronghorn::laws
