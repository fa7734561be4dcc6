// How GGUF files hold models: metadata that says what a config.json says, and other names of
// tensors. A family that is published so has a GgufFormat beside its own.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "model/config.h"
#include "model/tensor_rules.h"

namespace pronghorn {

struct Family;

// What a file says of a model besides the numbers of its weights, read or about to be written.
struct GgufModel {
  GgufMetadata metadata;
  // The sizes of its tensors.
  std::map<std::string, std::vector<int64_t>, std::less<>> shapes;
  // Of a file that is read: how many numbers are in a block of each tensor.
  std::map<std::string, int64_t, std::less<>> blocks;
  // Vectors that are no weights, by the names of their tensors: divisors of rotary angles.
  std::map<std::string, std::vector<float>, std::less<>> tables;

  bool has(std::string_view tensor) const { return shapes.contains(tensor); }
  // "llama.block_count" for "block_count".
  std::string key(std::string_view name) const;
};

// A key of the metadata, without the architecture before it, and the key of the family's
// config.json that says the same.
struct GgufKey {
  std::string_view key, config_key;
  GgufKind kind = GgufKind::u32;  // u32, f32 or boolean
  bool required = true;
  // Whether the file may have a list that is 0 for layers without such a thing.
  bool by_layer = false;
};

struct GgufFormat {
  // general.architecture; of several families the first whose reads_it() says so is taken.
  std::string_view architecture;
  std::vector<GgufKey> keys;
  // Keys that read() looks at, or that change nothing in the computation.
  std::vector<std::string_view> other_keys;
  // What the table cannot say, into the config.json and back (json: the config.json); may be null.
  // Before read(), the vocabulary's size and whether the head is tied are known from the tensors.
  void (*read)(const GgufModel& file, nlohmann::json& config) = nullptr;
  void (*write)(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) = nullptr;
  // Ours and those of such files.
  TensorRules (*tensors)(const ModelConfig& config) = nullptr;
  // Whether the head is the embedding, where llama.cpp has only one way for the architecture:
  // for writing.
  std::optional<bool> tied = {};
  // Whether a file of the architecture is read as this family; null: always.
  bool (*reads_it)(const GgufModel& file) = nullptr;
  // What the metadata has to say of a configuration where tensors() puts some of it, such as
  // factors, into the numbers of weights; null: all of it.
  ModelConfig (*folded)(ModelConfig config) = nullptr;
  // general.architecture of models with experts, if that is another; the keys are those above.
  std::string_view with_experts = {};
  // Whether its models fill in masked tokens: all rows see one another.
  bool both_ways = false;

  // That of the files of a model.
  std::string_view architecture_of(const ModelConfig& config) const;
};

// The shortest decimal number that is this f32: what a configuration once said.
double decimal_number(double value);

GgufModel gguf_model(const GgufFile& file);

// The family of a file, and the config.json of that family which says what the file does.
// Throws Error for architectures that no family has, and for keys that nothing knows and that are
// not 0.
const Family& gguf_family(const GgufModel& file);
nlohmann::json gguf_config(const GgufModel& file);

// The configuration that a file has.
ModelConfig read_gguf_config(const GgufFile& file);

// The inverse: a file's metadata and tables for a model of a family with a GgufFormat that
// expresses() it. shapes: of the tensors that are to be written. Throws Error if the file would be
// read as a model that computes something else, with what it cannot say.
GgufModel write_gguf_config(const Family& family, const ModelConfig& config,
                            std::map<std::string, std::vector<int64_t>, std::less<>> shapes,
                            const std::string& where);

}  // namespace pronghorn
