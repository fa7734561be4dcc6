// TrainingState: all that decides how training goes on: parameters, optimiser moments, counters.
// One file, replaced atomically, so that a run killed at any moment resumes to the same bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "model/model.h"

namespace pronghorn {

struct TrainingState {
  int64_t step = 0;               // optimiser updates done
  int64_t tokens = 0;             // trained on
  double seconds = 0;             // spent training
  double best_bits_per_byte = 0;  // held out; 0: not measured yet
  std::vector<Tensor> m, v;       // AdamW's moments, one for each parameter that is trained

  // Fresh moments for a model.
  explicit TrainingState(const Model& model);

  // identity: what must be the same for a resumed run to continue this one (model, training
  // configuration, data, seed). Its "budget" may have grown.
  void save(const std::filesystem::path& path, const Model& model,
            const nlohmann::json& identity) const;
  // Restores this state and the model's parameters. Throws Error if the file does not fit the model
  // or the identity, naming what differs.
  void load(const std::filesystem::path& path, const Model& model, const nlohmann::json& identity);
};

}  // namespace pronghorn
