#include "model/families.h"

#include "base/error.h"

namespace pronghorn {

const std::vector<Family>& families() {
  static const std::vector<Family> all = {llama_family(),    mistral_family(), qwen2_family(),
                                          qwen3_family(),    mamba_family(),   mamba2_family(),
                                          pronghorn_family()};
  return all;
}

const Family& find_family(std::string_view model_type, std::string_view where) {
  std::vector<std::string> names;
  for (const Family& family : families()) {
    if (family.model_type == model_type) return family;
    names.push_back(family.model_type);
  }
  throw Error(where, fmt::format("model family '{}' is not known here", model_type),
              fmt::format("known: {}", fmt::join(names, ", ")));
}

const Family& family_for(const ModelConfig& config) {
  for (const Family& family : families()) {
    if (family.write(config)) return family;
  }
  throw Error("checkpoint", "no family can express this configuration");
}

}  // namespace pronghorn
