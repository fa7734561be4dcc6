// Heads for multi-token prediction as published families have them: DeepSeek-V3 (arXiv 2412.19437,
// section 2.2) and those that follow it. A head is a layer like the last with attention; its
// projection takes the embedding first, which ours has second.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/families.h"
#include "model/gguf_format.h"

namespace pronghorn {

// The key of GGUF files for how many heads there are.
constexpr const char* kGgufPredictors = "nextn_predict_layers";

// Gives the model that many heads. A file need not hold them: load() omits those that it lacks.
void add_predictors(ModelConfig& config, int64_t heads);

// Where a file has head k: the layer, and its tensors without ".weight".
struct PredictorNames {
  std::string layer, embedding_norm, hidden_norm, projection, norm;
  std::vector<std::string> copies = {};  // of the model's own: passed over
};

// `tensors` of the family's layers, which are named `layers` and a number, with the same for the
// heads. norm: of the head's own norms. Heads that the file says it has beyond the model's are
// passed over.
TensorRules with_predictors(TensorRules tensors, const ModelConfig& config,
                            const std::function<TensorRules(const ModelConfig&)>& family,
                            const std::string& layers,
                            const std::function<PredictorNames(int64_t head)>& names,
                            const Transform& norm = {});

// The same in GGUF files, where heads follow the layers and are counted with them. `key` of the
// config.json: how many there are, at most `most`. num_hidden_layers becomes the number of the
// other layers.
void read_gguf_predictors(const GgufModel& file, const char* key, nlohmann::json& config,
                          int64_t most);
void write_gguf_predictors(const ModelConfig& config, GgufModel& file);
TensorRules with_gguf_predictors(const ModelConfig& config,
                                 const std::function<TensorRules(const ModelConfig&)>& family);

}  // namespace pronghorn
