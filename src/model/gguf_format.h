// How GGUF files hold models: metadata that says what a config.json says, and other names of
// tensors. A family that is published so has a GgufFormat beside its own.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "model/config.h"
#include "model/tensor_rules.h"

namespace pronghorn {

struct Family;

// A key of the metadata, without the architecture before it, and the key of the family's
// config.json that says the same.
struct GgufKey {
  std::string_view key, config_key;
  GgufKind kind = GgufKind::u32;  // u32, f32 or boolean
  bool required = true;
};

struct GgufFormat {
  std::string_view architecture;  // general.architecture; the first family that has it is taken
  std::vector<GgufKey> keys;
  // Keys that read() looks at, or that change nothing in the computation.
  std::vector<std::string_view> other_keys;
  // What the table cannot say, into the config.json and back; may be null. Before read(), the
  // vocabulary's size and whether the head is tied are known from the tensors.
  void (*read)(const GgufFile& file, nlohmann::json& config) = nullptr;
  void (*write)(const nlohmann::json& config, GgufMetadata& metadata) = nullptr;
  // Ours and those of such files.
  TensorRules (*tensors)(const ModelConfig& config) = nullptr;
};

// The family of a file, and the config.json of that family which says what its metadata does.
// Throws Error for architectures that no family has, and for keys that nothing knows and that are
// not 0.
const Family& gguf_family(const GgufFile& file);
nlohmann::json gguf_config(const GgufFile& file);

// The inverse: general.architecture and the architecture's keys. The family has a GgufFormat.
GgufMetadata gguf_metadata(const Family& family, const nlohmann::json& config,
                           const std::string& where);

// What the families of attention and gated feed-forward layers share.
std::vector<GgufKey> gguf_decoder_keys();
std::vector<std::string_view> gguf_decoder_other_keys();
// Rotary positions of a part of each head, and their scaling.
void read_gguf_rope(const GgufFile& file, nlohmann::json& config);
void write_gguf_rope(const nlohmann::json& config, GgufMetadata& metadata);
// rope_pairs: in the query and key projections the two channels that one angle turns are
// neighbours.
TensorRules gguf_decoder_tensors(const ModelConfig& config, bool rope_pairs);

}  // namespace pronghorn
