// TrainingState: all that decides how training goes on: parameters, optimiser moments, counters.
// One file, replaced atomically, so that a run killed at any moment resumes to the same bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/ranks.h"
#include "model/model.h"
#include "train/gradient_sum.h"

namespace pronghorn {

inline constexpr const char* kTrainingStateFile = "training_state.safetensors";

struct TrainingState {
  int64_t step = 0;               // optimiser updates done
  int64_t tokens = 0;             // trained on
  double seconds = 0;             // spent training
  double best_bits_per_byte = 0;  // held out; 0: not measured yet
  Ranks& ranks;                   // that train together
  Ownership ownership;
  // AdamW's moments of what this rank owns, one for each parameter that is trained: of its shape
  // where all of it is owned, else flat.
  std::vector<Tensor> m, v;

  // Fresh moments for a model. The ranks outlive it.
  explicit TrainingState(const Model& model, Ranks& ranks = one_rank());

  Part own(size_t parameter) const { return ownership.part(parameter, ranks.rank()); }

  // The first rank writes the file; all call it. Any number of ranks can read it.
  // identity: what must be the same for a resumed run to continue this one (model, training
  // configuration, data, seed). Its "budget" may have grown.
  void save(const std::filesystem::path& path, const Model& model,
            const nlohmann::json& identity) const;
  // Restores this state and the model's parameters. Throws Error if the file does not fit the model
  // or the identity, naming what differs.
  void load(const std::filesystem::path& path, const Model& model, const nlohmann::json& identity);
};

// Optimiser updates of the run that a state was saved by. Throws Error if the file is none.
int64_t saved_step(const std::filesystem::path& path);

// The identity that a state was saved with. Throws Error if the file is none.
nlohmann::json saved_identity(const std::filesystem::path& path);

}  // namespace pronghorn
