#include "model/checkpoint.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "model/tensor_rules.h"

namespace pronghorn {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";

const Family& family_of(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / kConfigFile;
  ConfigReader reader(read_config_json(file), file.string());
  return find_family(reader.string("model_type", "pronghorn"), reader.path("model_type"));
}

StoredTensor stored(const Parameter& parameter) {
  const Stored numbers = parameter.stored();
  const auto owner = std::make_shared<Stored>(numbers);
  return {std::string(numbers.encoding->file_dtype), parameter.shape.to_vector(), numbers.bytes,
          owner};
}

// What a parameter is given: the bytes as they are, in one of the `files` or owned, if their dtype
// is one of our encodings.
Stored numbers_of(const StoredTensor& tensor,
                  const std::vector<std::shared_ptr<const MappedFile>>& files,
                  const std::string& where) {
  if (const Encoding* encoding = find_encoding(tensor.dtype)) {
    for (const auto& file : files) {
      if (file->holds(tensor.bytes)) return {encoding, tensor.bytes, nullptr, file};
    }
    return {encoding, tensor.bytes, tensor.owner, nullptr};
  }
  const SafetensorsEntry entry{tensor.dtype, tensor.shape, tensor.bytes, nullptr};
  const size_t bytes = static_cast<size_t>(entry.elements()) * sizeof(float);
  const auto numbers = std::make_shared<Storage>(std::max<size_t>(1, bytes));
  to_f32(entry, reinterpret_cast<float*>(numbers->data()), where);
  return {&encodings::f32, {numbers->data(), bytes}, numbers, nullptr};
}

std::vector<BoundRule> bound(const TensorRules& rules, const std::vector<Parameter>& parameters) {
  std::vector<std::string> names;
  for (const Parameter& parameter : parameters) names.push_back(parameter.name);
  return bind_rules(rules, names);
}

// What a rule throws says what is wrong; this says of which tensors.
template <typename Function>
auto naming(const std::string& where, Function&& function) {
  try {
    return function();
  } catch (const Error& error) {
    throw Error(where, error.what());
  }
}

void load_rule(const BoundRule& rule, const CheckpointReader& checkpoint, Model& model) {
  Shapes ours;
  for (const size_t place : rule.ours) {
    ours.push_back(model.parameters()[place].shape.to_vector());
  }
  const std::string where =
      fmt::format("{}: {}", checkpoint.directory().string(), fmt::join(rule.published, ", "));
  const size_t count = rule.published.size();
  const Shapes shapes = naming(where, [&] { return rule.transform.published_shapes(ours, count); });
  StoredTensors tensors;
  std::vector<std::shared_ptr<const MappedFile>> files;
  for (size_t i = 0; i < count; ++i) {
    const SafetensorsEntry& entry = checkpoint.at(rule.published[i]);
    require(entry.shape == shapes[i],
            fmt::format("{}: {}", checkpoint.directory().string(), rule.published[i]),
            "has shape [{}] where the configuration says [{}]", fmt::join(entry.shape, ", "),
            fmt::join(shapes[i], ", "));
    tensors.push_back({entry.dtype, entry.shape, entry.bytes, entry.file});
    files.push_back(entry.file);
  }
  tensors = naming(where, [&] { return rule.transform.forward(std::move(tensors), ours); });
  for (size_t i = 0; i < rule.ours.size(); ++i) {
    model.assign(rule.ours[i], numbers_of(tensors[i], files, where));
  }
}

}  // namespace

void load_weights(Model& model, const std::filesystem::path& directory, const Family& family) {
  const CheckpointReader checkpoint(directory);
  const TensorRules rules = family.tensors(model.config());
  std::set<std::string> used;
  for (const BoundRule& rule : bound(rules, model.parameters())) {
    load_rule(rule, checkpoint, model);
    used.insert(rule.published.begin(), rule.published.end());
  }
  for (const std::string& name : checkpoint.names()) {
    require(used.contains(name) || is_passed_over(rules, name), directory.string(),
            "holds a tensor '{}' that the configuration has no place for", name);
  }
}

void save_checkpoint(const Model& model, const std::filesystem::path& directory,
                     const Family& family, const std::map<std::string, std::string>& metadata) {
  require(expresses(family, model.config()), directory.string(),
          "the family {} cannot express this configuration", family.model_type);
  nlohmann::json json = family.write(model.config()).value();
  if (!model.config().train.is_null()) json["train"] = model.config().train;

  StoredTensors tensors;  // keep what is written alive
  std::vector<std::string> names;
  for (const BoundRule& rule : bound(family.tensors(model.config()), model.parameters())) {
    StoredTensors ours;
    for (const size_t place : rule.ours) ours.push_back(stored(model.parameters()[place]));
    const std::string where = fmt::format("{}", fmt::join(rule.published, ", "));
    ours = naming(where,
                  [&] { return rule.transform.inverse(std::move(ours), rule.published.size()); });
    tensors.insert(tensors.end(), ours.begin(), ours.end());
    names.insert(names.end(), rule.published.begin(), rule.published.end());
  }
  std::vector<TensorToWrite> to_write;
  for (size_t i = 0; i < names.size(); ++i) {
    const StoredTensor& tensor = tensors[i];
    to_write.push_back({names[i], tensor.dtype, tensor.shape, tensor.bytes.data(),
                        static_cast<uint64_t>(tensor.bytes.size())});
  }
  if (json.contains("torch_dtype")) json["torch_dtype"] = model.head().encoding().torch_dtype;
  make_directories(directory);
  write_safetensors(directory / kWeightsFile, std::move(to_write), metadata);
  write_file(directory / kConfigFile, json.dump(2) + "\n");
}

std::unique_ptr<Model> Model::load(const std::filesystem::path& directory, Purpose purpose) {
  require(std::filesystem::is_directory(directory), directory.string(),
          "is not a checkpoint directory (it needs {} and {})", kConfigFile, kWeightsFile);
  std::unique_ptr<Model> model(new Model(load_config(directory), 0, false, purpose));
  model->load_weights(directory);
  return model;
}

void Model::load_weights(const std::filesystem::path& directory) {
  pronghorn::load_weights(*this, directory, family_of(directory));
}

void Model::save(const std::filesystem::path& directory,
                 const std::map<std::string, std::string>& metadata) const {
  save_checkpoint(*this, directory, family_for(config_), metadata);
}

}  // namespace pronghorn
