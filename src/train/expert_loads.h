// How evenly the experts of a model are used.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "layers/carry.h"

namespace pronghorn {

// Loads of layers, added up over forwards.
class ExpertLoads {
 public:
  void add(const ExpertLoad& load);
  ExpertLoads& operator+=(const ExpertLoads& other);

  // By layer, the rows that each expert was given.
  const std::map<int64_t, std::vector<int64_t>>& rows() const { return rows_; }
  bool empty() const { return rows_.empty(); }
  // By layer, what each expert was given in shares of what it would be if all were given alike.
  std::map<int64_t, std::vector<double>> shares() const;
  // The least and the largest of these shares over all layers. Not of no loads.
  double least() const;
  double most() const;

 private:
  std::map<int64_t, std::vector<int64_t>> rows_;
};

}  // namespace pronghorn
