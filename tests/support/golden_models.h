// Models of goldens, as they are or changed, and what they compute.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/goldens.h"
#include "support/model_runs.h"
#include "support/steps.h"

namespace pronghorn::testing_support {

inline std::vector<float> scores(const Model& model, const std::string& golden) {
  const std::vector<int32_t> tokens = golden_tokens(golden);
  if (model.config().diffusion) {
    return run(model, fresh_segments(tokens, std::ssize(tokens)), Precision::f32);
  }
  SequenceState state = model.new_state();
  return decode(model, state, tokens, equal_steps(std::ssize(tokens), 9));
}

// The golden's weights under a configuration with some keys changed.
inline std::unique_ptr<Model> changed_golden(
    const Folder& folder, const std::string& name,
    const nlohmann::json& changes = nlohmann::json::object()) {
  nlohmann::json json = read_config_json(golden_path(name) / "config.json");
  json.update(changes, true);
  std::filesystem::create_directories(folder / "changed");
  write_file(folder / "changed/config.json", json.dump());
  std::filesystem::copy_file(golden_path(name) / "model.safetensors",
                             folder / "changed/model.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  return Model::load(folder / "changed");
}

// Why such a model cannot be a GGUF file, of which nothing is written.
inline std::string gguf_refusal(const std::string& golden,
                                const nlohmann::json& changes = nlohmann::json::object()) {
  const Folder folder;
  const auto model = changed_golden(folder, golden, changes);
  const std::string error =
      error_of([&] { save_gguf(*model, folder / "model.gguf", GgufMetadata("test")); });
  EXPECT_FALSE(std::filesystem::exists(folder / "model.gguf"));
  return error;
}

}  // namespace pronghorn::testing_support
