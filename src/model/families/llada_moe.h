// LLaDA with experts, which is published under the model_type of LLaDA and, by some, its own.
#pragma once

#include <optional>
#include <string>

#include "model/families/mapping.h"

namespace pronghorn {

ModelConfig read_llada_moe(ConfigReader reader);
// Nothing for a model without experts.
std::optional<nlohmann::json> write_llada_moe(const ModelConfig& config,
                                              const std::string& model_type);

}  // namespace pronghorn
