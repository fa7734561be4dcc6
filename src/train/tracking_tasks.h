// Tasks that ask how a state is kept up to date: counting, composing, telling apart, holding.
#pragma once

#include <vector>

#include "train/tasks.h"

namespace pronghorn {

// parity, modular_addition, permutations, fuzzy_recall and compression.
std::vector<TaskType> tracking_tasks();

}  // namespace pronghorn
