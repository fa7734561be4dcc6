// A small operator to test the laws with, whole or with a chosen fault.
#pragma once

#include "laws/operator_case.h"

namespace pronghorn::laws {

enum class Fault {
  none,
  cut,                 // results depend on where a sequence was cut
  long_chunk,          // a long step forgets the state before it
  neighbour,           // results depend on the place in the batch
  threads,             // results depend on the number of threads
  marks,               // writes through to rows that a mark shares
  hidden_state,        // keeps what matters where copies and saved states do not have it
  no_way_back,         // keeps no anchor to truncate to
  tree_as_chain,       // takes a tree for a chain
  tree_fold,           // folds the nodes of a tree in the order of rows once one has been committed
  input_gradient,      // the gradient stops at multiples of 64
  parameter_gradient,  // the gradient of `scale` leaves out a sequence
  gradient_threads,    // the gradient depends on the number of threads
  values,              // results are slightly wrong, and always in the same way
  positions,           // takes positions for row numbers
  strides,             // reads rows as if they lay side by side
  added_gradient,      // replaces a gradient where it should add to it
  unwanted_gradient,   // gives a gradient to an input that requires none
  writes_input,        // changes its input
  tape_and_state,      // does not refuse a tape with a state
};

// h_t = decay h_{t-1} + x_t, y_t = scale h_t, a channel at a time; x [rows, 8], decay and scale
// [8].
OperatorCase cumulative_sum(Fault fault);

}  // namespace pronghorn::laws
