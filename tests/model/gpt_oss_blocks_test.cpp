// gpt-oss with its experts in MXFP4, as it is published.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "formats/checkpoint_reader.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "model/families.h"
#include "support/folder.h"
#include "support/gguf_contents.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

using testing_support::Bytes;
using testing_support::Contents;
using testing_support::Folder;

// Numbers of a block side by side, scales in tensors of their own, rows
// of gates and values in turn.
class PublishedBlocks {
 public:
  // Of rows, which are in the blocks of a GGUF file.
  void add(const std::string& name, const std::vector<Bytes>& rows, StoredShape shape) {
    constexpr size_t kBlock = 17, kHalf = 16;
    std::vector<uint8_t> blocks, scales;
    for (const Bytes& row : rows) {
      for (size_t at = 0; at < row.size(); at += kBlock) {
        scales.push_back(static_cast<uint8_t>(row[at]));
        const auto number = [&](size_t i) {
          return static_cast<uint8_t>(row[at + 1 + i % kHalf]) >> (i < kHalf ? 0 : 4) & 0xF;
        };
        for (size_t i = 0; i < 2 * kHalf; i += 2) {
          blocks.push_back(static_cast<uint8_t>(number(i) | number(i + 1) << 4));
        }
      }
    }
    shape.back() /= 32;
    keep(name + "_scales", shape, std::move(scales));
    shape.push_back(kHalf);
    keep(name + "_blocks", shape, std::move(blocks));
  }
  std::vector<TensorToWrite> tensors;

 private:
  void keep(std::string name, StoredShape shape, std::vector<uint8_t> bytes) {
    kept_.push_back(std::make_unique<std::vector<uint8_t>>(std::move(bytes)));
    tensors.push_back({std::move(name), "U8", std::move(shape), kept_.back()->data(),
                       static_cast<uint64_t>(kept_.back()->size())});
  }
  std::vector<std::unique_ptr<std::vector<uint8_t>>> kept_;
};

std::vector<Bytes> rows_of(const Contents::Tensor& tensor) {
  std::vector<Bytes> rows;
  const size_t count = static_cast<size_t>(tensor.shape[0] * tensor.shape[1]);
  const size_t bytes = tensor.bytes.size() / count;
  for (size_t i = 0; i < count; ++i) {
    const std::byte* begin = tensor.bytes.data() + i * bytes;
    rows.emplace_back(begin, begin + bytes);
  }
  return rows;
}

TEST(GptOss, PublishedBlocksAreRead) {
  // As wide inside as outside, so that the sizes alone would not tell rows from columns.
  const nlohmann::json json = {{"model_type", "gpt_oss"},
                               {"vocab_size", 96},
                               {"hidden_size", 64},
                               {"num_hidden_layers", 2},
                               {"num_attention_heads", 2},
                               {"num_key_value_heads", 2},
                               {"intermediate_size", 64},
                               {"head_dim", 32},
                               {"num_local_experts", 3},
                               {"num_experts_per_tok", 2},
                               {"tie_word_embeddings", false},
                               {"rope_scaling", {{"rope_type", "default"}}}};
  const Model model(find_family("gpt_oss", "test").read(ConfigReader(json, "test")), 7);
  const Folder folder;
  SaveOptions options;
  options.encoding = &encodings::mxfp4;
  save_gguf(model, folder / "model.gguf", GgufMetadata("test"), options);
  const auto wanted = Model::load(folder / "model.gguf");
  wanted->save(folder / "plain");

  const Contents gguf(folder / "model.gguf");
  const CheckpointReader plain(folder / "plain");
  PublishedBlocks published;
  for (const std::string& name : plain.names()) {
    const SafetensorsEntry& entry = plain.at(name);
    if (name.ends_with("experts.gate_up_proj")) {
      const std::string layer = "blk." + name.substr(std::string("model.layers.").size(), 1);
      const std::vector<Bytes> gate = rows_of(gguf.tensors.at(layer + ".ffn_gate_exps.weight"));
      const std::vector<Bytes> up = rows_of(gguf.tensors.at(layer + ".ffn_up_exps.weight"));
      std::vector<Bytes> both;
      for (size_t i = 0; i < gate.size(); ++i) both.insert(both.end(), {gate[i], up[i]});
      published.add(name, both, {3, 128, 64});
    } else if (name.ends_with("experts.down_proj")) {
      const std::string layer = "blk." + name.substr(std::string("model.layers.").size(), 1);
      published.add(name, rows_of(gguf.tensors.at(layer + ".ffn_down_exps.weight")), {3, 64, 64});
    } else {
      published.tensors.push_back({name, entry.dtype, entry.shape, entry.bytes.data(),
                                   static_cast<uint64_t>(entry.bytes.size())});
    }
  }
  std::filesystem::create_directories(folder / "published");
  write_safetensors(folder / "published/model.safetensors", published.tensors, {});
  std::filesystem::copy_file(folder / "plain/config.json", folder / "published/config.json");
  const auto found = Model::load(folder / "published");
  for (size_t i = 0; i < found->parameters().size(); ++i) {
    const Parameter &one = found->parameters()[i], &two = wanted->parameters()[i];
    if (one.name.find(".experts.") == std::string::npos || !one.matrix.defined()) continue;
    EXPECT_EQ(&one.matrix.encoding(), &encodings::mxfp4) << one.name;
    EXPECT_TRUE(std::ranges::equal(one.stored().bytes, two.stored().bytes)) << one.name;
  }
}

}  // namespace
}  // namespace pronghorn
