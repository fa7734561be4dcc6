#include "train/expert_loads.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace pronghorn {

void ExpertLoads::add(const ExpertLoad& load) {
  std::vector<int64_t>& rows = rows_[load.layer];
  rows.resize(std::max(rows.size(), load.rows.size()));
  for (size_t e = 0; e < load.rows.size(); ++e) rows[e] += load.rows[e];
}

ExpertLoads& ExpertLoads::operator+=(const ExpertLoads& other) {
  for (const auto& [layer, rows] : other.rows_) add({layer, rows});
  return *this;
}

std::map<int64_t, std::vector<double>> ExpertLoads::shares() const {
  std::map<int64_t, std::vector<double>> shares;
  for (const auto& [layer, rows] : rows_) {
    const double mean = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0})) /
                        static_cast<double>(rows.size());
    for (const int64_t count : rows) {
      shares[layer].push_back(mean == 0 ? 1 : static_cast<double>(count) / mean);
    }
  }
  return shares;
}

double ExpertLoads::least() const {
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [layer, values] : shares()) {
    least = std::min(least, *std::ranges::min_element(values));
  }
  return least;
}

double ExpertLoads::most() const {
  double most = 0;
  for (const auto& [layer, values] : shares()) {
    most = std::max(most, *std::ranges::max_element(values));
  }
  return most;
}

}  // namespace pronghorn
