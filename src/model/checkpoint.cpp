#include "model/checkpoint.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/quote.h"
#include "base/threads.h"
#include "base/warning.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "model/checkpoint_tensors.h"
#include "model/families/rwkv7_file.h"
#include "model/gguf_format.h"
#include "model/tensor_rules.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";

// Several numbers in a byte, by a rule of their family: written as they are, and only named.
const Encoding kPacked = {.name = "u8", .file_dtype = "U8", .torch_dtype = "uint8"};

const Family& family_of(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / kConfigFile;
  return find_family(ConfigReader(read_config_json(file), file.string()));
}

// Bytes of a file that is mapped.
struct MappedPart {
  std::shared_ptr<const MappedFile> file;
  std::span<const std::byte> bytes;
};

// What a parameter is given: the bytes as they are, in a file of one of the `parts` or owned, if
// their dtype is one of our encodings.
Stored numbers_of(const StoredTensor& tensor, const std::vector<MappedPart>& parts,
                  const std::string& where) {
  if (const Encoding* encoding = find_encoding(tensor.dtype)) {
    for (const MappedPart& part : parts) {
      if (part.file->holds(tensor.bytes)) return {encoding, tensor.bytes, nullptr, part.file};
    }
    return {encoding, tensor.bytes, tensor.owner, nullptr};
  }
  const SafetensorsEntry entry{tensor.dtype, tensor.shape, tensor.bytes, nullptr, nullptr};
  const size_t bytes = static_cast<size_t>(entry.elements()) * sizeof(float);
  const auto numbers = std::make_shared<Storage>(std::max<size_t>(1, bytes), Lifetime::model);
  to_f32(entry, reinterpret_cast<float*>(numbers->data()), where);
  return {&encodings::f32, {numbers->data(), bytes}, numbers, nullptr};
}

// The tensors of a GGUF file as CheckpointReader shows those of a directory.
class GgufReader {
 public:
  explicit GgufReader(const GgufFile& file) : file_(file) {}

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const GgufTensor& tensor : file_.tensors()) names.emplace_back(tensor.name);
    return names;
  }
  SafetensorsEntry at(std::string_view name) const {
    const GgufTensor* tensor = file_.find(name);
    require(tensor != nullptr, file_.path().string(), "no tensor {}", quote(name));
    require(find_encoding(tensor->type->name) != nullptr || tensor->type->block == 1,
            fmt::format("{}: {}", file_.path().string(), quote(name)),
            "is stored in {}, which is not supported", tensor->type->name);
    return {std::string(tensor->type->name), tensor->shape(), tensor->bytes, file_.file_of(*tensor),
            nullptr};
  }
  const std::filesystem::path& directory() const { return file_.path(); }

 private:
  const GgufFile& file_;
};

// The published names, or others by which the checkpoint has them.
std::vector<std::string> names_in(const std::set<std::string>& checkpoint, const TensorRules& rules,
                                  std::vector<std::string> names) {
  for (std::string& name : names) {
    if (checkpoint.contains(name)) continue;
    for (const std::string& other : other_names(rules, name)) {
      if (!checkpoint.contains(other)) continue;
      name = other;
      break;
    }
  }
  return names;
}

bool fits(const CheckpointReader&, const StoredShape& stored, const StoredShape& wanted) {
  return stored == wanted;
}

// These files do not tell a vector from a matrix of one row.
bool fits(const GgufReader&, const StoredShape& stored, const StoredShape& wanted) {
  const auto sizes = [](const StoredShape& shape) {
    const auto first = std::ranges::find_if(shape, [](int64_t size) { return size != 1; });
    return std::span(first, shape.end());
  };
  return std::ranges::equal(sizes(stored), sizes(wanted));
}

template <typename Checkpoint>
void load_rule(const BoundRule& rule, const Checkpoint& checkpoint, Model& model) {
  Shapes ours;
  for (const size_t place : rule.ours) {
    ours.push_back(model.parameters()[place].shape.to_vector());
  }
  const std::string where =
      fmt::format("{}: {}", checkpoint.directory().string(), fmt::join(rule.published, ", "));
  const size_t count = rule.published.size();
  const Shapes shapes = naming(where, [&] { return rule.transform.published_shapes(ours, count); });
  StoredTensors tensors;
  std::vector<MappedPart> parts;
  for (size_t i = 0; i < count; ++i) {
    const SafetensorsEntry entry = checkpoint.at(rule.published[i]);
    require(fits(checkpoint, entry.shape, shapes[i]),
            fmt::format("{}: {}", checkpoint.directory().string(), rule.published[i]),
            "has shape [{}] where the configuration says [{}]", fmt::join(entry.shape, ", "),
            fmt::join(shapes[i], ", "));
    std::shared_ptr<const void> owner = entry.owner;
    if (entry.file != nullptr) {
      owner = entry.file;
      parts.push_back({entry.file, entry.bytes});
    }
    tensors.push_back({entry.dtype, shapes[i], entry.bytes, std::move(owner)});
  }
  tensors = naming(where, [&] { return rule.transform.forward(std::move(tensors), ours); });
  for (size_t i = 0; i < rule.ours.size(); ++i) {
    model.assign(rule.ours[i], numbers_of(tensors[i], parts, where));
  }
  // What a transform has read of a file it has copied, and what is used as it is stored is read
  // again when it is packed.
  for (const MappedPart& part : parts) part.file->release(part.bytes);
}

std::vector<float> numbers_of(const SafetensorsEntry& entry, const std::string& where) {
  std::vector<float> numbers(static_cast<size_t>(entry.elements()));
  to_f32(entry, numbers.data(), where);
  return numbers;
}

bool same_numbers(const SafetensorsEntry& a, const SafetensorsEntry& b, const std::string& where) {
  if (a.shape != b.shape) return false;
  if (a.dtype != b.dtype) return numbers_of(a, where) == numbers_of(b, where);
  return a.bytes.data() == b.bytes.data() || std::ranges::equal(a.bytes, b.bytes);
}

// Whether a checkpoint whose configuration ties the head to the embedding stores another head. The
// reference then uses that.
bool has_other_head(const ModelConfig& config, const CheckpointReader& checkpoint,
                    const Family& family) {
  if (!config.tie_embeddings) return false;
  ModelConfig untied = config;
  untied.tie_embeddings = false;
  const std::string where = checkpoint.directory().string();
  const std::vector<BoundRule> names = naming(where, [&] {
    return bind_rules(family.tensors(untied), {"embeddings.weight", "lm_head.weight"});
  });
  const std::string &embedding = names[0].published[0], &head = names[1].published[0];
  const SafetensorsEntry* stored = checkpoint.find(head);
  if (stored == nullptr || checkpoint.find(embedding) == nullptr) return false;
  if (same_numbers(*stored, checkpoint.at(embedding), where)) return false;
  warn_once(
      fmt::format("{}: the configuration ties {} to {}, but the file holds another: that is used",
                  where, quote(head), quote(embedding)));
  return true;
}

// The heads for multi-token prediction that a published checkpoint holds: many tools drop them, or
// a part of them, and leave their key.
template <typename Checkpoint>
int64_t stored_predictors(const ModelConfig& config, const Checkpoint& checkpoint,
                          TensorRules (*tensors)(const ModelConfig&)) {
  if (config.mtp.published == 0) return config.mtp.heads;
  const std::vector<std::string> names = checkpoint.names();
  const TensorRules rules = tensors(config);
  const auto holds = [&](int64_t head) {
    std::vector<std::string> ours;
    for (const char* part : {"projection", "hidden_norm", "embedding_norm", "norm"}) {
      ours.push_back(fmt::format("mtp.{}.{}.weight", head, part));
    }
    const std::vector<BoundRule> bound =
        naming(checkpoint.directory().string(), [&] { return bind_rules(rules, ours); });
    return std::ranges::all_of(bound, [&](const BoundRule& rule) {
      return std::ranges::count(names, rule.published[0]) > 0;
    });
  };
  int64_t heads = 0;
  while (heads < config.mtp.heads && holds(heads)) ++heads;
  return heads;
}

// Tensors that follow from the configuration, or count what training did, and that older tools
// stored all the same: rotary tables, causal masks and what they put in place of -infinity.
bool is_derived(std::string_view name, const SafetensorsEntry& entry) {
  for (const char* end : {"rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached",
                          "rotary_emb.original_inv_freq", "position_ids", "num_batches_tracked",
                          ".masked_bias", ".causal_mask"}) {
    if (name.ends_with(end)) return true;
  }
  const bool square = entry.shape.size() == 4 && entry.shape[0] == 1 && entry.shape[1] == 1 &&
                      entry.shape[2] == entry.shape[3];
  return square && (name.ends_with("attn.bias") || name.ends_with("attention.bias"));
}

template <typename Checkpoint>
void load(Model& model, const Checkpoint& checkpoint, TensorRules rules) {
  const std::vector<std::string> all = checkpoint.names();
  rules = rules_for(std::move(rules), all);
  const std::set<std::string> there(all.begin(), all.end());
  std::set<std::string> used;
  const std::string where = checkpoint.directory().string();
  for (BoundRule& rule : bound(rules, model.parameters(), where)) {
    rule.published = names_in(there, rules, std::move(rule.published));
    load_rule(rule, checkpoint, model);
    used.insert(rule.published.begin(), rule.published.end());
  }
  for (const std::string& name : all) {
    require(
        used.contains(name) || is_passed_over(rules, name) || is_derived(name, checkpoint.at(name)),
        where, "holds a tensor {} that the configuration has no place for", quote(name));
  }
}

}  // namespace

void load_weights(Model& model, const std::filesystem::path& directory, const Family& family) {
  load(model, CheckpointReader(directory), family.tensors(model.config()));
}

void save_checkpoint(const Model& model, const std::filesystem::path& directory,
                     const Family& family, const std::map<std::string, std::string>& metadata,
                     const SaveOptions& options) {
  require(expresses(family, model.config()), directory.string(),
          "the family {} cannot express this configuration", family.model_type);
  require(options.encoding == nullptr || layout_of(*options.encoding) == nullptr,
          directory.string(), "safetensors files do not hold blocks of {}",
          options.encoding == nullptr ? "" : options.encoding->name);
  nlohmann::json json = family.write(model.config()).value();
  if (!model.config().train.is_null()) json["train"] = model.config().train;

  StoredTensors tensors;  // keep what is written alive
  std::vector<std::string> names;
  const std::string where = directory.string();
  for (const BoundRule& rule : bound(family.tensors(model.config()), model.parameters(), where)) {
    StoredTensors all = published(model, rule, where);
    for (size_t i = 0; i < all.size(); ++i) {
      const Encoding* in = find_encoding(all[i].dtype);
      if (in == nullptr) {
        note(options, rule.published[i], kPacked, all[i].shape);
        tensors.push_back(std::move(all[i]));
        continue;
      }
      const Encoding& to = options.encoding != nullptr ? *options.encoding
                           : layout_of(*in) == nullptr ? *in
                                                       : encodings::f32;
      note(options, rule.published[i], to, all[i].shape);
      tensors.push_back(encoded(std::move(all[i]), to));
    }
    names.insert(names.end(), rule.published.begin(), rule.published.end());
  }
  std::vector<TensorToWrite> to_write;
  for (size_t i = 0; i < names.size(); ++i) {
    const StoredTensor& tensor = tensors[i];
    to_write.push_back({names[i], tensor.dtype, tensor.shape, tensor.bytes.data(),
                        static_cast<uint64_t>(tensor.bytes.size())});
  }
  if (json.contains("torch_dtype")) {
    const Encoding& head =
        options.encoding != nullptr ? *options.encoding : model.head().encoding();
    json["torch_dtype"] = head.torch_dtype;
  }
  make_directories(directory);
  write_safetensors(directory / kWeightsFile, std::move(to_write), metadata);
  write_file(directory / kConfigFile, json.dump(2) + "\n");
}

std::unique_ptr<Model> Model::load(const std::filesystem::path& directory, Purpose purpose) {
  if (const auto gguf = find_gguf(directory)) {
    const GgufFile file(*gguf);
    const GgufReader reader(file);
    ModelConfig config = read_gguf_config(file);
    const auto tensors = find_family(config.family, gguf->string()).gguf->tensors;
    config.mtp.heads = stored_predictors(config, reader, tensors);
    std::unique_ptr<Model> model(new Model(std::move(config), 0, false, purpose));
    pronghorn::load(*model, reader, tensors(model->config()));
    return model;
  }
  if (is_torch_model(directory)) {
    const CheckpointReader file(directory);
    std::unique_ptr<Model> model(new Model(read_rwkv7_file(file), 0, false, purpose));
    pronghorn::load(*model, file, rwkv7_file_tensors());
    return model;
  }
  require(std::filesystem::is_directory(directory), directory.string(),
          "is not a checkpoint directory (it needs {} and {})", kConfigFile, kWeightsFile);
  const CheckpointReader checkpoint(directory);
  const Family& family = family_of(directory);
  ModelConfig config = load_config(directory);
  if (has_other_head(config, checkpoint, family)) config.tie_embeddings = false;
  config.mtp.heads = stored_predictors(config, checkpoint, family.tensors);
  std::unique_ptr<Model> model(new Model(std::move(config), 0, false, purpose));
  pronghorn::load(*model, checkpoint, family.tensors(model->config()));
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
