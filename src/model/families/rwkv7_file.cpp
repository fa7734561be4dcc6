#include "model/families/rwkv7_file.h"

#include <string>
#include <vector>

#include "base/error.h"
#include "base/quote.h"
#include "model/families.h"

namespace pronghorn {
namespace {

constexpr double kNormEpsilon = 1e-5;
// Of the norm of heads, whatever their width; ours, as flash-linear-attention's, is that width
// times the epsilon of the other norms.
constexpr double kHeadEpsilon = 64e-5;
constexpr int64_t kUsualHead = 64;

// The size of one of the two axes of a matrix.
int64_t size_of(const CheckpointReader& file, const std::string& name, size_t axis) {
  const SafetensorsEntry& entry = file.at(name);
  require(entry.shape.size() == 2, fmt::format("{}: {}", file.directory().string(), quote(name)),
          "has shape [{}], not two axes", fmt::join(entry.shape, ", "));
  return entry.shape[axis];
}

}  // namespace

ModelConfig read_rwkv7_file(const CheckpointReader& file) {
  const std::string where = file.directory().string();
  const std::string first = "blocks.0.att.", bonus = first + "r_k";
  if (file.find(bonus) == nullptr) {
    throw Error(where, fmt::format("is no model of RWKV-7: it has no tensor {}", quote(bonus)),
                "of the authors' .pth files only those of RWKV-7 are read");
  }
  int64_t layers = 0;
  while (file.find(fmt::format("blocks.{}.ln1.weight", layers)) != nullptr) ++layers;
  const int64_t head_dim = size_of(file, bonus, 1);
  const int64_t a_rank = size_of(file, first + "a1", 1);
  const nlohmann::json json = {
      {"model_type", "rwkv7"},
      {"vocab_size", size_of(file, "emb.weight", 0)},
      {"hidden_size", size_of(file, "emb.weight", 1)},
      {"num_hidden_layers", layers},
      {"head_dim", head_dim},
      {"num_heads", size_of(file, bonus, 0)},
      {"decay_low_rank_dim", size_of(file, first + "w1", 1)},
      {"a_low_rank_dim", a_rank},
      // The first layer has no use for it.
      {"v_low_rank_dim", layers > 1 ? size_of(file, "blocks.1.att.v1", 1) : a_rank},
      {"gate_low_rank_dim", size_of(file, first + "g1", 1)},
      {"intermediate_size", size_of(file, "blocks.0.ffn.key.weight", 0)},
      {"norm_first", true},
      {"norm_bias", true},
      {"norm_eps", kNormEpsilon},
      {"tie_word_embeddings", false}};
  ModelConfig config = find_family("rwkv7", where).read(ConfigReader(json, where));
  config.family = "rwkv7";
  if (head_dim != kUsualHead) {
    for (auto& [name, block] : config.blocks) block.mixers.front()["norm_epsilon"] = kHeadEpsilon;
  }
  return config;
}

TensorRules rwkv7_file_tensors() {
  const Transform vector = transforms::squeeze(0).then(transforms::squeeze(0));  // of [1, 1, width]
  const std::string mixer = "layers.*.mixer.", att = "blocks.*.att.";
  TensorRules tensors;
  std::vector<TensorRule>& rules = tensors.rules;
  for (const std::string name : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"}) {
    rules.push_back({{mixer + name}, {att + name}, vector});
  }
  for (const std::string name : {"w", "a", "v", "g"}) {
    const std::string ours = mixer + name + "_lora.lora.";
    rules.push_back({{ours + "0.weight"}, {att + name + "1"}, transforms::transpose()});
    rules.push_back({{ours + "2.weight"}, {att + name + "2"}, transforms::transpose()});
    rules.push_back({{ours + "2.bias"}, {att + name + "0"}, vector});
  }
  const std::vector<TensorRule> rest = {
      {{mixer + "r_k"}, {att + "r_k"}, {}},
      {{mixer + "r_proj.weight"}, {att + "receptance.weight"}, {}},
      {{mixer + "k_proj.weight"}, {att + "key.weight"}, {}},
      {{mixer + "v_proj.weight"}, {att + "value.weight"}, {}},
      {{mixer + "o_proj.weight"}, {att + "output.weight"}, {}},
      {{mixer + "g_norm.*"}, {att + "ln_x.*"}, {}},
      {{"layers.*.ffn.x_k"}, {"blocks.*.ffn.x_k"}, vector},
      {{"layers.*.ffn.*"}, {"blocks.*.ffn.*"}, {}},
      {{"layers.*.mixer_norm.*"}, {"blocks.*.ln1.*"}, {}},
      {{"layers.*.ffn_norm.*"}, {"blocks.*.ln2.*"}, {}},
      {{"embeddings.weight"}, {"emb.weight"}, {}},
      {{"embedding_norm.*"}, {"blocks.0.ln0.*"}, {}},
      {{"norm.*"}, {"ln_out.*"}, {}},
      {{"lm_head.weight"}, {"head.weight"}, {}}};
  rules.insert(rules.end(), rest.begin(), rest.end());
  // What the first layer does with a value before it, of which there is none.
  tensors.passed_over = {"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"};
  return tensors;
}

}  // namespace pronghorn
