// Checkpoint directories: a config.json and the weights of a model, in the format of a family.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "model/families.h"
#include "model/model.h"

namespace pronghorn {

// Gives the model the numbers of the checkpoint in `directory`, which is of this family and of the
// very configuration of `model`. A model for inference keeps the file mapped. Throws Error for missing, extra or misshapen tensors.
void load_weights(Model& model, const std::filesystem::path& directory, const Family& family);

// Writes config.json and model.safetensors, each file atomically. metadata: kept in the header of
// the latter. Throws Error if the family cannot express the model.
void save_checkpoint(const Model& model, const std::filesystem::path& directory,
                     const Family& family, const std::map<std::string, std::string>& metadata = {});

}  // namespace pronghorn
