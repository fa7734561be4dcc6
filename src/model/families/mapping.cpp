#include "model/families/mapping.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "model/block_place.h"

namespace pronghorn {

std::vector<const BlockConfig*> layer_blocks(const ModelConfig& config) {
  std::vector<const BlockConfig*> blocks;
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) return {};
    blocks.push_back(&config.blocks.at(step.block));
  }
  return blocks;
}

const BlockConfig* uniform_block(const ModelConfig& config, std::string_view mixer) {
  const std::vector<const BlockConfig*> blocks = layer_blocks(config);
  if (blocks.empty()) return nullptr;
  const BlockConfig* first = blocks.front();
  if (std::ranges::count(blocks, first) != std::ssize(blocks)) return nullptr;
  if (first->mixers.size() != 1 || first->mixers.front().at("type") != mixer) return nullptr;
  return first;
}

std::vector<const nlohmann::json*> mixers_of(const ModelConfig& config, std::string_view type) {
  std::vector<const nlohmann::json*> mixers;
  for (const BlockConfig* block : layer_blocks(config)) {
    for (const nlohmann::json& mixer : block->mixers) {
      if (mixer.at("type") == type) mixers.push_back(&mixer);
    }
  }
  return mixers;
}

namespace {

// "layers[0-2,5]": the layers whose letter this is; of many, the first few.
std::string layers_with_letter(std::string_view letters, char letter) {
  constexpr int kShown = 4;
  std::string text;
  int shown = 0;
  for (size_t i = letters.find(letter); i != letters.npos; i = letters.find(letter, i)) {
    if (shown++ == kShown) {
      text += ",...";
      break;
    }
    const size_t end = std::min(letters.size(), letters.find_first_not_of(letter, i));
    text += fmt::format("{}{}", text.empty() ? "" : ",", i);
    if (end - i > 1) text += fmt::format("-{}", end - 1);
    i = end;
  }
  return fmt::format("layers[{}]", text);
}

// What published files call sizes of ours.
struct PublishedNames {
  std::string_view ours;
  std::vector<std::string_view> names;
};

const std::vector<PublishedNames>& published_names() {
  static const std::vector<PublishedNames> all = {
      {"adapter_rank", {"adapter_rank"}},
      {"conv_kernel",
       {"conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim", "conv_size", "conv_L_cache"}},
      {"experts", {"num_experts", "num_local_experts", "n_routed_experts"}},
      {"groups", {"n_group", "n_groups", "mamba_n_groups", "mamba_ngroups"}},
      {"head_dim",
       {"head_dim", "qk_nope_head_dim", "linear_key_head_dim", "mamba_head_dim", "mamba_d_head",
        "attention_head_dim"}},
      {"heads",
       {"num_attention_heads", "n_head", "n_heads", "num_heads", "mamba_n_heads", "n_mamba_heads",
        "mamba_num_heads", "linear_num_key_heads"}},
      {"hidden_size", {"hidden_size", "n_embd", "d_model"}},
      {"index_dim", {"index_head_dim"}},
      {"index_heads", {"index_n_heads"}},
      {"kv_heads", {"num_key_value_heads", "num_kv_heads", "n_kv_heads"}},
      {"latent", {"kv_lora_rank"}},
      {"learned_positions", {"max_position_embeddings", "n_positions"}},
      {"query_rank", {"q_lora_rank"}},
      {"rope_dim", {"qk_rope_head_dim"}},
      {"size",
       {"intermediate_size", "n_inner", "mlp_hidden_size", "moe_intermediate_size",
        "expert_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size"}},
      {"state", {"state_size", "ssm_state_size", "mamba_d_state"}},
      {"top", {"index_topk"}},
      {"top_groups", {"topk_group"}},
      {"top_k", {"num_experts_per_tok"}},
      {"value_dim", {"v_head_dim"}},
      {"value_head_dim", {"linear_value_head_dim"}},
      {"value_heads", {"linear_num_value_heads", "num_v_heads"}},
      {"vocab_size", {"vocab_size"}},
      {"width", {"lru_width"}},
      {"window", {"sliding_window", "attention_window_size"}},
  };
  return all;
}

// Those of a key of ours that the file has with the very value: "num_attention_heads", or several
// with "or" between.
std::string names_in_file(const ConfigReader& file, std::string_view key,
                          const nlohmann::json& value) {
  std::vector<std::string> found;
  for (const PublishedNames& size : published_names()) {
    if (size.ours != key) continue;
    for (const std::string_view name : size.names) {
      if (file.has(name) && file.peek(name) == value) found.push_back(file.name_in_file(name));
    }
  }
  return fmt::format("{}", fmt::join(found, " or "));
}

}  // namespace

ModelConfig layered_config(const ConfigReader& reader, nlohmann::json settings,
                           const std::vector<nlohmann::json>& layers) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::vector<nlohmann::json> kinds;
  std::string letters;
  for (const nlohmann::json& layer : layers) {
    const auto kind = static_cast<size_t>(std::ranges::find(kinds, layer) - kinds.begin());
    require(kind < kLetters.size(), reader.where(), "more than {} kinds of layers",
            kLetters.size());
    if (kind == kinds.size()) {
      kinds.push_back(layer);
      settings["blocks"][std::string(1, kLetters[kind])] = layer;
    }
    letters += kLetters[kind];
  }
  settings["pattern"] = compressed_pattern(letters);
  ConfigReader made(std::move(settings), reader.where());
  made.set_file_names([&](std::string_view key, const nlohmann::json& value) {
    return names_in_file(reader, key, value);
  });
  return read_pronghorn_config(
      std::move(made), [&](char block) { return reader.path(layers_with_letter(letters, block)); });
}

ModelConfig uniform_config(const ConfigReader& reader, nlohmann::json settings,
                           const nlohmann::json& layer, int64_t layers) {
  return layered_config(reader, std::move(settings),
                        std::vector<nlohmann::json>(static_cast<size_t>(layers), layer));
}

namespace {

// A count of tokens that a file may well mean; 0 for all else.
int64_t tokens_of(const nlohmann::json& value) {
  constexpr double kMeant = 1e12;
  if (!value.is_number()) return 0;
  const double tokens = value.get<double>();
  return tokens >= 1 && tokens <= kMeant ? static_cast<int64_t>(tokens) : 0;
}

}  // namespace

void read_trained_context(const ConfigReader& reader, nlohmann::json& settings) {
  int64_t tokens = 0;
  for (const char* key : {"max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length",
                          "max_seq_len", "max_seq_length", "model_max_length", "seq_length"}) {
    if (tokens == 0) tokens = tokens_of(reader.peek(key));
  }
  int64_t original = tokens_of(reader.peek("original_max_position_embeddings"));
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const nlohmann::json& rope = reader.peek(key);
    if (!rope.is_object()) continue;
    const std::string type = rope.value("rope_type", rope.value("type", nlohmann::json())).dump();
    const nlohmann::json factor = rope.value("factor", nlohmann::json());
    const double scale = factor.is_number() ? factor.get<double>() : 1;
    if (const int64_t said =
            tokens_of(rope.value("original_max_position_embeddings", nlohmann::json()))) {
      original = said;
      // Some files still give the original length, and the factor beside it.
      if (tokens <= original) tokens = tokens_of(static_cast<double>(original) * scale);
    } else if (tokens > 0 && scale > 1 && (type == "\"linear\"" || type == "\"dynamic\"")) {
      // Without a length in the object, max_position_embeddings is the one before scaling.
      original = tokens;
      tokens = tokens_of(static_cast<double>(original) * scale);
    }
  }
  if (tokens > 0) settings["max_position_embeddings"] = tokens;
  if (tokens > 0 && original > 0 && original < tokens) {
    settings["original_max_position_embeddings"] = original;
  }
}

nlohmann::json write_trained_context(const ModelConfig& config) {
  const TrainedContext context = trained_context(config);
  if (context.tokens == 0) return nlohmann::json::object();
  return {{"max_position_embeddings", context.tokens}};
}

double divisor_of(double factor) {
  const double near = 1 / factor;
  for (const double x : {std::round(near), std::round(near * 1e6) / 1e6, std::nextafter(near, 0.0),
                         std::nextafter(near, 2 * near)}) {
    if (1 / x == factor) return x;
  }
  return near;
}

void read_time_step_rank(ConfigReader& reader, const std::string& key, nlohmann::json& mixer) {
  if (reader.raw(key) == "auto") return;
  if (reader.has(key)) mixer["time_step_rank"] = reader.integer(key, {}, 1);
}

bool is_null(ConfigReader& reader, const std::string& key) {
  return std::ranges::count(reader.keys(), key) > 0 && !reader.has(key);
}

std::vector<std::string> tied_head(const ModelConfig& config, std::string name) {
  if (!config.tie_embeddings) return {};
  return {std::move(name)};
}

}  // namespace pronghorn
