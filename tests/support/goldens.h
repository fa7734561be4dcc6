// Tiny models of published families, with the scores that transformers computed
// (scripts/make_model_goldens.py).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace pronghorn::testing_support {

inline std::filesystem::path golden_path(const std::string& name) {
  return std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden" / name;
}

inline std::vector<int32_t> golden_tokens(const std::string& name) {
  const std::string file = (golden_path(name) / "tokens.json").string();
  return parse_json(read_file(file), file).get<std::vector<int32_t>>();
}

inline std::vector<float> golden_logits(const std::string& name) {
  const SafetensorsFile file(golden_path(name) / "logits.safetensors");
  const SafetensorsEntry* entry = file.find("logits");
  require(entry != nullptr, name, "has no logits");
  std::vector<float> logits(static_cast<size_t>(entry->elements()));
  to_f32(*entry, logits.data());
  return logits;
}

}  // namespace pronghorn::testing_support
