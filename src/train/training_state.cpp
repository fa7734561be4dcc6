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

// Reads `part` of a tensor of `shape` into `to`.
void restore(const SafetensorsFile& file, const std::string& name, const Shape& shape, Part part,
             const Tensor& to) {
  const SafetensorsEntry* entry = file.find(name);
  require(entry != nullptr, file.path().string(), "has no tensor '{}'", name);
  require(entry->dtype == "F32" && std::ranges::equal(entry->shape, shape), file.path().string(),
          "tensor '{}' is {} [{}] where F32 {} was expected", name, entry->dtype,
          fmt::join(entry->shape, ", "), shape);
  if (part.count == 0) return;
  std::memcpy(to.data(), entry->bytes.data() + static_cast<size_t>(part.begin) * sizeof(float),
              static_cast<size_t>(part.count) * sizeof(float));
  to.bump_version();
}

// The first rank's copy of a tensor whose parts the ranks own; an undefined one elsewhere.
Tensor collect(const TrainingState& state, size_t parameter, const Shape& shape,
               const Tensor& own) {
  Ranks& ranks = state.ranks;
  if (ranks.count() == 1) return own;
  const auto count = static_cast<size_t>(ranks.count());
  std::vector<std::span<const std::byte>> to(count);
  std::vector<std::span<std::byte>> from(count);
  if (own.defined()) to[0] = std::as_bytes(own.values());
  Tensor whole;
  if (ranks.is_root()) {
    whole = Tensor::empty(shape);
    for (size_t r = 0; r < count; ++r) {
      const Part part = state.ownership.part(parameter, static_cast<int64_t>(r));
      from[r] = std::as_writable_bytes(
          whole.values().subspan(static_cast<size_t>(part.begin), static_cast<size_t>(part.count)));
    }
  }
  ranks.exchange(to, from);
  return whole;
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

TrainingState::TrainingState(const Model& model, Ranks& all_ranks)
    : ranks(all_ranks), ownership(model.trained(), all_ranks.count()) {
  for (const Parameter& parameter : model.trained()) {
    require(parameter.value.requires_grad(), parameter.name,
            "cannot be trained: the model was made for inference");
    const Part part = own(m.size());
    const bool whole = part.count == parameter.value.size();
    const Shape shape = whole ? parameter.value.shape() : Shape{part.count};
    m.push_back(part.count == 0 ? Tensor() : Tensor::zeros(shape));
    v.push_back(part.count == 0 ? Tensor() : Tensor::zeros(shape));
  }
}

void TrainingState::save(const std::filesystem::path& path, const Model& model,
                         const nlohmann::json& identity) const {
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    tensors.push_back({name, "F32", tensor.shape().to_vector(), tensor.data(),
                       static_cast<uint64_t>(tensor.bytes())});
  };
  std::vector<Tensor> collected;  // until they are written
  for (size_t i = 0; i < m.size(); ++i) {
    const Parameter& parameter = model.trained()[i];
    collected.push_back(collect(*this, i, parameter.value.shape(), m[i]));
    collected.push_back(collect(*this, i, parameter.value.shape(), v[i]));
    if (!ranks.is_root()) continue;
    add("parameter." + parameter.name, parameter.value);
    add("m." + parameter.name, collected[2 * i]);
    add("v." + parameter.name, collected[2 * i + 1]);
  }
  if (!ranks.is_root()) return wait_for_all(ranks);
  const nlohmann::json counters = {{"step", step},
                                   {"tokens", tokens},
                                   {"seconds", seconds},
                                   {"best_bits_per_byte", best_bits_per_byte}};
  write_safetensors(path, std::move(tensors),
                    {{kState, counters.dump()}, {kIdentity, identity.dump()}});
  wait_for_all(ranks);
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
    const Shape& shape = parameter.value.shape();
    restore(file, "parameter." + parameter.name, shape, {0, parameter.value.size()},
            parameter.value);
    restore(file, "m." + parameter.name, shape, own(i), m[i]);
    restore(file, "v." + parameter.name, shape, own(i), v[i]);
  }
  ConfigReader counters(parse_json(metadata_at(file, kState), where), where);
  step = counters.integer("step", {}, 0);
  tokens = counters.integer("tokens", {}, 0);
  seconds = counters.number("seconds", {}, 0);
  best_bits_per_byte = counters.number("best_bits_per_byte", {}, 0);
}

int64_t saved_step(const std::filesystem::path& path) {
  const nlohmann::json counters =
      parse_json(metadata_at(SafetensorsFile(path), kState), path.string());
  return ConfigReader(counters, path.string()).integer("step", {}, 0);
}

nlohmann::json saved_identity(const std::filesystem::path& path) {
  return parse_json(metadata_at(SafetensorsFile(path), kIdentity), path.string());
}

}  // namespace pronghorn
