// Fine-tuning: training that starts from the weights and the tokenizer of a checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "model/lora.h"
#include "model/model.h"
#include "train/train_config.h"

namespace pronghorn {

// Whether this is a checkpoint with weights: a directory, or a single file that holds all, whatever
// its name is. Throws Error for a directory with several.
bool is_checkpoint(const std::filesystem::path& path);

// The configuration of a checkpoint directory of texts whose model is to be made anew from it.
// Throws Error for anything else, with what is to be done about a model in one file. purpose:
// "learn ...".
ModelConfig config_to_remake(const std::filesystem::path& path, std::string_view purpose);

// The settings of fine-tuning a model: those that it was trained with, if it says, at a rate that
// does not undo what it knows, without decay of its weights. changes: keys of a "train" object.
// Throws Error for what read_train_config() does not take. where: names the model in messages.
TrainConfig finetune_config(const ModelConfig& model, bool adapter, const nlohmann::json& changes,
                            const std::string& where);

// The model to be trained: with all its weights in f32 or, with `lora`, as it is stored and with a
// fresh adapter. Throws Error for a model of images or sound, and for all weights of a model whose
// file has them packed (BitNet).
std::unique_ptr<Model> load_to_finetune(const std::filesystem::path& path,
                                        const std::optional<LoraConfig>& lora, uint64_t seed);

// A model that predicts the next token as one that fills in masked tokens: its layers see both ways
// from here on, and a row still scores the token after it (Dream, arXiv 2508.15487, section 3.2).
// mask_token: one of its vocabulary that texts do not have. Recurrences
// run in both directions with the same weights.
std::unique_ptr<Model> load_to_adapt(const std::filesystem::path& path, int64_t mask_token,
                                     uint64_t seed);

}  // namespace pronghorn
