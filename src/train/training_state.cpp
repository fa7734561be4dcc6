#include "train/training_state.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace pronghorn {
namespace {

constexpr const char* kState = "pronghorn_state";
constexpr const char* kIdentity = "pronghorn_identity";

std::string metadata_at(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  require(found != file.metadata().end(), file.path().string(),
          "is not a training state: it has no '{}'", key);
  return found->second;
}

void restore(const SafetensorsFile& file, const std::string& name, const Tensor& to) {
  const SafetensorsEntry* entry = file.find(name);
  require(entry != nullptr, file.path().string(), "has no tensor '{}'", name);
  require(entry->dtype == "F32" && std::ranges::equal(entry->shape, to.shape()),
          file.path().string(), "tensor '{}' is {} [{}] where F32 {} was expected", name,
          entry->dtype, fmt::join(entry->shape, ", "), to.shape());
  std::memcpy(to.data(), entry->bytes.data(), entry->bytes.size());
  to.bump_version();
}

// Whether a budget goes on where another of the same kind ended.
bool is_larger(const nlohmann::json& budget, const nlohmann::json& than) {
  if (!budget.is_object() || !than.is_object() || budget.size() != 1 || than.size() != 1) {
    return false;
  }
  const auto now = budget.begin(), then = than.begin();
  return now.key() == then.key() && now->is_number() && then->is_number() &&
         now->get<double>() > then->get<double>();
}

// Names the innermost value in which two identities differ, so that the message stays one short
// line.
[[noreturn]] void refuse_identity(const std::string& where, const std::string& name,
                                  const nlohmann::json& saved, const nlohmann::json& wanted) {
  if (saved.is_object() && wanted.is_object()) {
    for (const auto& [key, value] : wanted.items()) {
      const auto found = saved.find(key);
      if (found != saved.end() && *found == value) continue;
      refuse_identity(where, name + "." + key,
                      found == saved.end() ? nlohmann::json("none") : *found, value);
    }
    for (const auto& [key, value] : saved.items()) {
      if (!wanted.contains(key)) refuse_identity(where, name + "." + key, value, "none");
    }
  }
  throw Error(
      where,
      fmt::format("was made with another {}: {} then, {} now", name, saved.dump(), wanted.dump()),
      "use another directory, or the same settings");
}

}  // namespace

TrainingState::TrainingState(const Model& model) {
  for (const Parameter& parameter : model.trained()) {
    require(parameter.value.requires_grad(), parameter.name,
            "cannot be trained: the model was made for inference");
    m.push_back(Tensor::zeros(parameter.value.shape()));
    v.push_back(Tensor::zeros(parameter.value.shape()));
  }
}

void TrainingState::save(const std::filesystem::path& path, const Model& model,
                         const nlohmann::json& identity) const {
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    tensors.push_back({name, "F32", tensor.shape().to_vector(), tensor.data(),
                       static_cast<uint64_t>(tensor.bytes())});
  };
  for (size_t i = 0; i < m.size(); ++i) {
    const Parameter& parameter = model.trained()[i];
    add("parameter." + parameter.name, parameter.value);
    add("m." + parameter.name, m[i]);
    add("v." + parameter.name, v[i]);
  }
  const nlohmann::json counters = {{"step", step},
                                   {"tokens", tokens},
                                   {"seconds", seconds},
                                   {"best_bits_per_byte", best_bits_per_byte}};
  write_safetensors(path, std::move(tensors),
                    {{kState, counters.dump()}, {kIdentity, identity.dump()}});
}

void TrainingState::load(const std::filesystem::path& path, const Model& model,
                         const nlohmann::json& identity) {
  const SafetensorsFile file(path);
  const std::string where = path.string();
  const nlohmann::json saved = parse_json(metadata_at(file, kIdentity), where);
  for (const auto& [key, value] : identity.items()) {
    const nlohmann::json then = saved.is_object() ? saved.value(key, nlohmann::json()) : nullptr;
    if (then != value && !(key == "budget" && is_larger(value, then))) {
      refuse_identity(where, key, then, value);
    }
  }
  for (size_t i = 0; i < m.size(); ++i) {
    const Parameter& parameter = model.trained()[i];
    restore(file, "parameter." + parameter.name, parameter.value);
    restore(file, "m." + parameter.name, m[i]);
    restore(file, "v." + parameter.name, v[i]);
  }
  ConfigReader counters(parse_json(metadata_at(file, kState), where), where);
  step = counters.integer("step", {}, 0);
  tokens = counters.integer("tokens", {}, 0);
  seconds = counters.number("seconds", {}, 0);
  best_bits_per_byte = counters.number("best_bits_per_byte", {}, 0);
}

}  // namespace pronghorn
