#include "model/linearise.h"

#include <algorithm>
#include <map>
#include <span>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "layers/fields.h"
#include "model/families/mapping.h"
#include "model/pattern.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "linearising";
constexpr char kLinear = 'l', kAttention = 'a';

// Which layers become linear.
std::vector<bool> chosen_layers(const ModelConfig& config, const std::string& pattern) {
  require(!layer_blocks(config).empty() && config.prefix_tokens == 0 && config.mtp.heads == 0,
          kWhere,
          "subsampled spans, prefixes and heads for multi-token prediction are not supported");
  require(!config.diffusion, kWhere, "the model sees texts both ways");
  std::vector<bool> chosen;
  for (const PatternStep& step : parse_pattern(pattern, "--pattern")) {
    require(step.kind == PatternStep::Kind::block &&
                (step.block == kLinear || step.block == kAttention),
            "--pattern", "'{}' has more than the letters l (linear) and a (attention)", pattern);
    chosen.push_back(step.block == kLinear);
  }
  require(std::ssize(chosen) == config.block_count(), "--pattern", "{} layers for a model of {}",
          chosen.size(), config.block_count());
  require(std::ranges::count(chosen, true) > 0, "--pattern", "no layer becomes linear (l)");
  return chosen;
}

// The wanted mixer with attention's heads, where it has such settings and does not say.
nlohmann::json mixer_like(const nlohmann::json& attention, const nlohmann::json& wanted) {
  require(wanted.is_object() && wanted.contains("type") && wanted.at("type").is_string(), "--mixer",
          "{} has no type", wanted.dump());
  const MixerType& type = find_mixer_type(wanted.at("type").get<std::string>(), "--mixer");
  const std::map<std::string, const char*> counterparts = {
      {"heads", "heads"}, {"head_dim", "head_dim"}, {"value_head_dim", "head_dim"}};
  nlohmann::json mixer = wanted;
  for (const FieldDescription& field : describe(type)) {
    const auto found = counterparts.find(field.name);
    if (found == counterparts.end() || mixer.contains(field.name)) continue;
    mixer[field.name] = attention.at(found->second);
  }
  return mixer;
}

ModelConfig linearised_config(const ModelConfig& config, const std::vector<bool>& chosen,
                              const nlohmann::json& wanted) {
  nlohmann::json settings = write_pronghorn_config(config);
  const nlohmann::json blocks = settings.at("blocks");
  for (const char* key : {"blocks", "pattern"}) settings.erase(key);
  std::vector<nlohmann::json> layers;
  for (const PatternStep& step : config.steps) {
    nlohmann::json block = blocks.at(std::string(1, step.block));
    if (chosen[layers.size()]) {
      require(block.contains("mixer") && block.at("mixer").at("type") == "attention", kWhere,
              "layer {} is not attention alone", layers.size());
      for (const char* key : {"keys_from", "keys_to"}) {
        require(block.at("mixer").value(key, 0) == 0, kWhere, "layer {} shares its keys",
                layers.size());
      }
      block["mixer"] = mixer_like(block.at("mixer"), wanted);
    }
    layers.push_back(std::move(block));
  }
  return layered_config(ConfigReader(settings, kWhere), settings, layers);
}

// "layers.3.mixer.out_proj.weight" -> "layers.3.mixer.o_proj.weight"
std::string name_in_attention(std::string name) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {".mixer.out_proj.", ".mixer.o_proj."}, {".mixer.i_proj.", ".mixer.v_proj."}};
  for (const auto& [ours, attention] : kNames) {
    if (const size_t at = name.find(ours); at != std::string::npos) {
      return name.replace(at, ours.size(), attention);
    }
  }
  return name;
}

// Rows of a matrix with each group of `group` of them `times` times.
Stored repeated(const Parameter& parameter, int64_t group, int64_t times) {
  const std::span<const float> from = parameter.value.values();
  const auto piece = static_cast<size_t>(group * parameter.value.columns());
  const auto numbers = std::make_shared<std::vector<float>>();
  for (size_t at = 0; at < from.size(); at += piece) {
    for (int64_t i = 0; i < times; ++i) {
      numbers->insert(numbers->end(), from.begin() + static_cast<ptrdiff_t>(at),
                      from.begin() + static_cast<ptrdiff_t>(at + piece));
    }
  }
  return {&encodings::f32, std::as_bytes(std::span(*numbers)), numbers, nullptr};
}

// Which layer's mixer a parameter is of; -1: none's.
int64_t layer_of_mixer(const std::string& name) {
  constexpr std::string_view kLayers = "layers.", kMixer = ".mixer.";
  if (!name.starts_with(kLayers)) return -1;
  const size_t dot = name.find('.', kLayers.size());
  if (dot == std::string::npos || name.compare(dot, kMixer.size(), kMixer) != 0) return -1;
  return std::stoll(name.substr(kLayers.size(), dot - kLayers.size()));
}

// Gives a parameter of a new mixer the numbers of attention's; false: there are none that fit.
bool take(Model& model, size_t index, const Parameter* attention, int64_t head_dim) {
  if (attention == nullptr) return false;
  const Parameter& parameter = model.parameters()[index];
  if (attention->shape == parameter.shape) {
    model.assign(index, attention->stored());
    return true;
  }
  const std::vector<int64_t> own = parameter.shape.to_vector(), from = attention->shape.to_vector();
  if (own.size() != 2 || from.size() != 2 || own[1] != from[1]) return false;
  // Keys and values of groups of heads.
  if (own[0] % from[0] != 0 || from[0] % head_dim != 0) return false;
  model.assign(index, repeated(*attention, head_dim, own[0] / from[0]));
  return true;
}

}  // namespace

Linearised linearise(const Model& model, const LineariseOptions& options) {
  const std::vector<bool> chosen = chosen_layers(model.config(), options.pattern);
  Linearised result;
  result.model = std::make_unique<Model>(linearised_config(model.config(), chosen, options.mixer),
                                         options.seed);
  for (size_t layer = 0; layer < chosen.size(); ++layer) {
    if (chosen[layer]) result.layers.push_back(static_cast<int64_t>(layer));
  }
  std::map<std::string, const Parameter*> known;
  for (const Parameter& parameter : model.parameters()) known[parameter.name] = &parameter;
  const auto find = [&](const std::string& name) {
    const auto found = known.find(name);
    return found != known.end() ? found->second : nullptr;
  };
  const std::vector<const BlockConfig*> blocks = layer_blocks(model.config());
  for (size_t i = 0; i < result.model->parameters().size(); ++i) {
    const std::string& name = result.model->parameters()[i].name;
    const int64_t layer = layer_of_mixer(name);
    if (layer >= 0 && chosen[static_cast<size_t>(layer)]) {
      const nlohmann::json& attention = blocks[static_cast<size_t>(layer)]->mixers.front();
      const bool taken =
          take(*result.model, i, find(name_in_attention(name)), attention.at("head_dim"));
      ++(taken ? result.taken : result.fresh);
    } else if (const Parameter* same = find(name); same != nullptr) {
      result.model->assign(i, same->stored());
    } else {
      ++result.fresh;  // of all layers together, as bounds of decays are
    }
  }
  return result;
}

}  // namespace pronghorn
