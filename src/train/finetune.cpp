#include "train/finetune.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "formats/json.h"
#include "layers/both_ways.h"

namespace pronghorn {
namespace {

// Usual rates: an adapter starts at zero and may move faster.
constexpr double kRate = 5e-5, kAdapterRate = 3e-4;
constexpr int64_t kBatchTokens = 2048;

// Whether matrices hold -1, 0 and 1 alone, packed into bytes (BitNet, "offline"). Trained, they
// would be of others, for which the model's files have no place.
bool is_packed(const ModelConfig& config) {
  return config.family == "bitnet" && std::ranges::any_of(config.blocks, [](const auto& block) {
           return std::ranges::any_of(block.second.mixers, [](const nlohmann::json& mixer) {
             return mixer.value("bits", "") == "inputs";
           });
         });
}

}  // namespace

bool is_checkpoint(const std::filesystem::path& path) {
  return find_weights(path) || is_torch_model(path) || find_gguf(path);
}

ModelConfig config_to_remake(const std::filesystem::path& path, std::string_view purpose) {
  if (is_torch_model(path) || find_gguf(path)) {
    throw Error(path.string(), fmt::format("is a model in one file, which cannot {}", purpose),
                "make a directory of it first: pronghorn convert FILE DIRECTORY");
  }
  require(find_weights(path).has_value(), path.string(),
          "is no checkpoint directory, whose model could {}", purpose);
  ModelConfig config = load_config(path);
  require_reads_texts(config, path.string());
  return config;
}

TrainConfig finetune_config(const ModelConfig& model, bool adapter, const nlohmann::json& changes,
                            const std::string& where) {
  TrainConfig config;
  config.batch_tokens = kBatchTokens;
  if (!model.train.is_null()) {
    config = read_train_config(ConfigReader(model.train, where + ": train"), config);
  }
  config.learning_rate = adapter ? kAdapterRate : kRate;
  config.weight_decay = 0;
  return read_train_config(ConfigReader(changes, where + ": train"), config);
}

std::unique_ptr<Model> load_to_finetune(const std::filesystem::path& path,
                                        const std::optional<LoraConfig>& lora, uint64_t seed) {
  require(is_checkpoint(path), path.string(),
          "has no weights to start from (to train new ones, give a configuration file)");
  std::unique_ptr<Model> model = Model::load(path, lora ? Purpose::inference : Purpose::training);
  require_reads_texts(model->config(), path.string());
  if (!lora && is_packed(model->config())) {
    throw Error(path.string(),
                "its matrices hold -1, 0 and 1 alone, packed into bytes, and cannot be trained",
                "train an adapter (--lora), or the checkpoint that it was packed from");
  }
  if (lora) model->set_adapter(Adapter::fresh(*model, *lora, seed));
  return model;
}

std::unique_ptr<Model> load_to_adapt(const std::filesystem::path& path, int64_t mask_token,
                                     uint64_t seed) {
  ModelConfig config = config_to_remake(path, "learn to fill in masked tokens");
  require(!config.diffusion, path.string(), "is a diffusion model already (fine-tune it)");
  require(mask_token >= 0 && mask_token < config.vocab_size, "mask token",
          "{} is none of a vocabulary of {}", mask_token, config.vocab_size);
  config.diffusion = {.mask_token = mask_token, .shift = true, .shared_directions = true};
  // Read again: not every model can see both ways.
  ModelConfig checked = read_pronghorn_config({write_pronghorn_config(config), path.string()});
  checked.family = config.family;
  // Said only where it matters: published families do not.
  const std::unique_ptr<Model> outline = Model::outline(checked);
  checked.diffusion->shared_directions =
      std::ranges::any_of(outline->blocks(), [](const std::unique_ptr<Block>& block) {
        return std::ranges::any_of(block->mixers(),
                                   [](const auto& mixer) { return runs_both_ways(*mixer); });
      });
  auto model = std::make_unique<Model>(std::move(checked), seed);
  model->load_weights(path);
  return model;
}

}  // namespace pronghorn
