// Checkpoints as others leave them: other containers, other layouts, tensors that nobody needs. The
// goldens of family_test.cpp in such a form must give the very scores of the goldens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/files.h"
#include "base/float16.h"
#include "formats/pickle.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "model/model.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/torch_file.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::decode;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::write_fast;

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden" / name;
}

struct Numbers {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Numbers>;

Tensors tensors_of(const std::filesystem::path& directory) {
  const SafetensorsFile file(directory / "model.safetensors");
  Tensors tensors;
  for (const std::string& name : file.names()) {
    const SafetensorsEntry& entry = *file.find(name);
    tensors[name] = {
        entry.dtype, entry.shape,
        std::string(reinterpret_cast<const char*>(entry.bytes.data()), entry.bytes.size())};
  }
  return tensors;
}

Numbers floats(const std::vector<int64_t>& shape, float value) {
  Numbers numbers{"F32", shape, {}};
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  for (int64_t i = 0; i < count; ++i) numbers.bytes += testing_support::raw(value);
  return numbers;
}

void write_weights(const std::filesystem::path& directory, const Tensors& tensors) {
  std::vector<TensorToWrite> list;
  for (const auto& [name, tensor] : tensors) {
    list.push_back({name, tensor.dtype, tensor.shape, tensor.bytes.data(), tensor.bytes.size()});
  }
  write_safetensors(directory / "model.safetensors", std::move(list));
}

// The same as torch.save would write it.
std::string torch_bytes(const Tensors& tensors) {
  std::vector<testing_support::TorchTensor> list;
  std::vector<testing_support::ZipPart> parts = {{"archive/data.pkl", "", false}};
  for (const auto& [name, tensor] : tensors) {
    const std::string key = std::to_string(list.size());
    std::vector<int64_t> strides(tensor.shape.size(), 1);
    int64_t elements = 1;
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      strides[i] = elements;
      elements *= tensor.shape[i];
    }
    list.push_back({name, "FloatStorage", key, elements, 0, tensor.shape, strides});
    parts.push_back({"archive/data/" + key, tensor.bytes, false});
  }
  parts[0].bytes = testing_support::torch_pickle(list);
  return testing_support::zipped(parts);
}

std::vector<float> scores(const std::filesystem::path& directory) {
  const auto model = Model::load(directory);
  SequenceState state = model->new_state();
  return decode(*model, state, std::vector<int32_t>{1, 5, 9, 2, 7}, std::vector<int64_t>{5});
}

class PublishedFiles : public testing::Test {
 protected:
  // The golden's configuration with these keys, and its tensors as `change` leaves them.
  void make(
      const std::string& name, const nlohmann::json& keys,
      const std::function<void(Tensors&)>& change = [](Tensors&) {}) {
    nlohmann::json config = read_config_json(golden(name) / "config.json");
    config.update(keys);
    write_fast(folder_ / "config.json", config.dump());
    Tensors tensors = tensors_of(golden(name));
    change(tensors);
    write_weights(folder_, tensors);
  }
  std::string warning_of_loading() {
    testing::internal::CaptureStderr();
    const std::string error = error_of([&] { Model::load(folder_); });
    const std::string warning = testing::internal::GetCapturedStderr();
    return error == "no error" ? warning : error;
  }

  Folder folder_;
};

TEST_F(PublishedFiles, TorchFilesOfEveryFamily) {
  for (const char* name : {"llama", "llama_tied", "mistral", "qwen2", "qwen3", "mamba", "mamba2"}) {
    const std::filesystem::path folder = folder_ / name;
    std::filesystem::create_directory(folder);
    std::filesystem::copy_file(golden(name) / "config.json", folder / "config.json");
    write_fast(folder / "pytorch_model.bin", torch_bytes(tensors_of(golden(name))));
    EXPECT_EQ(bit_difference(scores(folder), scores(golden(name))), "") << name;
  }
}

// RWKV-7 as its authors publish it, made of the golden by scripts/make_rwkv_file.py.
class RwkvFile : public PublishedFiles {
 protected:
  // The tensors of the golden, as one file may hold them.
  std::string written(const std::function<void(Tensors&)>& change) {
    const TorchFile file(golden("rwkv7.pth"));
    Tensors tensors;
    for (const auto& [name, entry] : file.entries()) {
      tensors[name] = {
          entry.dtype, entry.shape,
          std::string(reinterpret_cast<const char*>(entry.bytes.data()), entry.bytes.size())};
    }
    change(tensors);
    const std::filesystem::path path = folder_ / "model.pth";
    write_fast(path, torch_bytes(tensors));
    return error_of([&] { Model::load(path); });
  }
};

// Those files have one epsilon of the norm of heads, whatever their width.
TEST_F(RwkvFile, GivesTheScoresOfTheDirectoryWithTheSameWeights) {
  ModelConfig config = load_config(golden("rwkv7"));
  for (auto& [name, block] : config.blocks) block.mixers.front()["norm_epsilon"] = 64e-5;
  Model same(std::move(config), 0);
  load_weights(same, golden("rwkv7"), find_family("rwkv7", "test"));
  same.save(folder_ / "same");
  const std::vector<float> expected = scores(folder_ / "same");
  EXPECT_EQ(bit_difference(scores(golden("rwkv7.pth")), expected), "");
  EXPECT_NE(bit_difference(scores(golden("rwkv7")), expected), "");
  EXPECT_EQ(load_config(golden("rwkv7.pth")).family, "rwkv7");

  const auto model = Model::load(golden("rwkv7.pth"));
  model->save(folder_ / "again");
  EXPECT_EQ(bit_difference(scores(folder_ / "again"), expected), "");
}

// Heads of 64, as all published ones have: what flash-linear-attention can say.
TEST_F(RwkvFile, IsSavedInTheFamilyOfTheDirectory) {
  constexpr int64_t kHeads = 1, kWidth = 64;
  const std::string error = written([](Tensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      // The golden's hidden size is 24, of three heads of 8.
      for (int64_t& size : tensor.shape) size = size == 24 ? kWidth : size;
      if (name.ends_with("r_k")) tensor.shape = {kHeads, kWidth};
      tensor = floats(tensor.shape, 0.1f);
    }
  });
  EXPECT_EQ(error, "no error");
  const auto model = Model::load(folder_ / "model.pth");
  model->save(folder_ / "again");
  EXPECT_EQ(read_config_json(folder_ / "again" / "config.json").at("model_type"), "rwkv7");
  EXPECT_EQ(bit_difference(scores(folder_ / "again"), scores(folder_ / "model.pth")), "");
}

TEST_F(RwkvFile, RefusesWhatItCannotRead) {
  EXPECT_THAT(written([](Tensors& tensors) { tensors.erase("blocks.0.att.r_k"); }),
              AllOf(HasSubstr("model.pth"), HasSubstr("no model of RWKV-7")));
  EXPECT_THAT(written([](Tensors& tensors) { tensors.erase("blocks.2.att.w1"); }),
              HasSubstr("blocks.2.att.w1"));
  EXPECT_THAT(written([](Tensors& tensors) { tensors["blocks.0.att.g1"].shape = {144}; }),
              AllOf(HasSubstr("'blocks.0.att.g1'"), HasSubstr("not two axes")));
  EXPECT_THAT(written([](Tensors& tensors) { tensors["blocks.1.s_emb"] = floats({3}, 1); }),
              HasSubstr("'blocks.1.s_emb'"));
  EXPECT_THAT(written([](Tensors& tensors) { tensors["blocks.1.att.x_r"] = floats({24}, 1); }),
              AllOf(HasSubstr("blocks.1.att.x_r"), HasSubstr("[1, 1, 24]")));
}

TEST_F(PublishedFiles, DerivedTensorsArePassedOver) {
  make("llama", nlohmann::json::object(), [](Tensors& tensors) {
    tensors["model.rotary_emb.inv_freq"] = floats({4}, 1);
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = floats({4}, 1);
    tensors["model.layers.1.self_attn.rotary_emb.cos_cached"] = floats({1, 1, 8, 8}, 1);
    tensors["model.layers.1.self_attn.bias"] = floats({1, 1, 16, 16}, 1);
    tensors["model.layers.1.self_attn.masked_bias"] = floats({}, -1e4f);
    tensors["model.embed_positions.position_ids"] = floats({1, 16}, 0);
  });
  EXPECT_EQ(warning_of_loading(), "");
  EXPECT_EQ(bit_difference(scores(folder_), scores(golden("llama"))), "");
  // A bias of an attention layer is none of them.
  make("llama", nlohmann::json::object(),
       [](Tensors& tensors) { tensors["model.layers.1.self_attn.bias"] = floats({32}, 1); });
  EXPECT_THAT(warning_of_loading(), HasSubstr("'model.layers.1.self_attn.bias'"));
}

TEST_F(PublishedFiles, PartsOfPredictorsArePassedOver) {
  const auto with_layer = [&](const std::string& layer) {
    make("deepseek_v3", {{"num_nextn_predict_layers", 1}}, [&](Tensors& tensors) {
      tensors["model.layers." + layer + ".eh_proj.weight"] = floats({16, 32}, 1);
      tensors["model.layers." + layer + ".self_attn.o_proj.weight"] = floats({16, 15}, 1);
    });
  };
  with_layer("2");  // after 0 and 1
  EXPECT_EQ(warning_of_loading(), "");
  EXPECT_EQ(bit_difference(scores(folder_), scores(golden("deepseek_v3"))), "");
  with_layer("1.x");
  EXPECT_THAT(warning_of_loading(), HasSubstr("'model.layers.1.x.eh_proj.weight'"));
}

TEST_F(PublishedFiles, MatricesOfEightBitsWithScales) {
  const std::string name = "model.layers.1.mlp.gate_proj.weight";
  Numbers codes, scales, numbers;
  make("llama", nlohmann::json::object(), [&](Tensors& tensors) {
    codes = {"F8_E4M3", tensors.at(name).shape, {}};
    numbers = {"BF16", codes.shape, {}};
    scales = {"F32", {1, 1}, testing_support::raw(0.5f)};
    for (int64_t i = 0; i < codes.shape[0] * codes.shape[1]; ++i) {
      const bool even = i % 2 == 0;
      codes.bytes += static_cast<char>(even ? 0x38 : 0xB0);  // 1 and -0.5
      numbers.bytes += testing_support::raw(to_bf16(even ? 0.5f : -0.25f));
    }
    tensors[name] = numbers;
  });
  const std::vector<float> expected = scores(folder_);
  make("llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}},
       [&](Tensors& tensors) {
         tensors[name] = codes;
         tensors[name + "_scale_inv"] = scales;
       });
  EXPECT_EQ(warning_of_loading(), "");
  EXPECT_EQ(bit_difference(scores(folder_), expected), "");
}

TEST_F(PublishedFiles, ATiedHeadThatIsStoredToo) {
  const auto with_head = [&](float last) {
    make("llama_tied", nlohmann::json::object(), [&](Tensors& tensors) {
      Numbers head = tensors.at("model.embed_tokens.weight");
      if (last != 0) std::memcpy(head.bytes.data() + head.bytes.size() - 4, &last, 4);
      tensors["lm_head.weight"] = head;
    });
  };
  with_head(0);
  EXPECT_EQ(warning_of_loading(), "");
  EXPECT_EQ(bit_difference(scores(folder_), scores(golden("llama_tied"))), "");

  // As the reference: one that differs is what computes the scores.
  with_head(3);
  EXPECT_THAT(warning_of_loading(),
              AllOf(HasSubstr("'lm_head.weight'"), HasSubstr("'model.embed_tokens.weight'")));
  const std::vector<float> tied = scores(golden("llama_tied")), other = scores(folder_);
  ASSERT_EQ(tied.size(), other.size());
  const size_t vocabulary = static_cast<size_t>(Model::load(folder_)->config().vocab_size);
  for (size_t i = 0; i < tied.size(); ++i) {
    const bool last = i % vocabulary == vocabulary - 1;
    EXPECT_EQ(tied[i] == other[i], !last) << i;
  }
  // It stays that way when it is saved.
  const std::filesystem::path again = folder_ / "again";
  Model::load(folder_)->save(again);
  EXPECT_EQ(bit_difference(scores(again), other), "");
}

// The layout of the library that Mamba was published with, made of transformers' goldens.
class MambaSsm : public PublishedFiles {
 protected:
  void make_ssm(const std::string& name, nlohmann::json config) {
    Tensors tensors = tensors_of(golden(name));
    auto table = tensors.extract("backbone.embeddings.weight");
    table.key() = "backbone.embedding.weight";
    tensors.insert(std::move(table));
    tensors["lm_head.weight"] = tensors.at("backbone.embedding.weight");
    write_fast(folder_ / "pytorch_model.bin", torch_bytes(tensors));
    write_fast(folder_ / "config.json", config.dump());
  }
  static nlohmann::json mamba_config() {
    const nlohmann::json published = read_config_json(golden("mamba") / "config.json");
    return {{"d_model", published.at("hidden_size")},
            {"n_layer", published.at("num_hidden_layers")},
            {"vocab_size", published.at("vocab_size").get<int64_t>() - 3},
            {"ssm_cfg",
             {{"d_state", published.at("state_size")},
              {"expand", published.at("expand")},
              {"d_conv", published.at("conv_kernel")},
              {"dt_rank", published.at("time_step_rank")}}},
            {"rms_norm", true},
            {"residual_in_fp32", true},
            {"fused_add_norm", true},
            {"pad_vocab_size_multiple", 8}};
  }
};

TEST_F(MambaSsm, GivesTheScoresOfTheOtherLayout) {
  make_ssm("mamba", mamba_config());
  EXPECT_EQ(warning_of_loading(), "");
  EXPECT_EQ(bit_difference(scores(folder_), scores(golden("mamba"))), "");
  // What is saved of it is in the other layout.
  const std::filesystem::path again = folder_ / "again";
  Model::load(folder_)->save(again);
  EXPECT_EQ(read_config_json(again / "config.json").at("model_type"), "mamba");
  EXPECT_EQ(bit_difference(scores(again), scores(golden("mamba"))), "");
}

TEST_F(MambaSsm, OfTheSecondKind) {
  const nlohmann::json published = read_config_json(golden("mamba2_groups") / "config.json");
  const nlohmann::json config = {{"d_model", published.at("hidden_size")},
                                 {"d_intermediate", 0},
                                 {"n_layer", published.at("num_hidden_layers")},
                                 {"vocab_size", published.at("vocab_size")},
                                 {"ssm_cfg",
                                  {{"layer", "Mamba2"},
                                   {"d_state", published.at("state_size")},
                                   {"expand", published.at("expand")},
                                   {"d_conv", published.at("conv_kernel")},
                                   {"headdim", published.at("head_dim")},
                                   {"ngroups", published.at("n_groups")},
                                   {"bias", published.at("use_bias")},
                                   {"chunk_size", 64}}},
                                 {"attn_layer_idx", nlohmann::json::array()},
                                 {"attn_cfg", nlohmann::json::object()},
                                 {"rms_norm", true},
                                 {"residual_in_fp32", true},
                                 {"fused_add_norm", true},
                                 {"pad_vocab_size_multiple", 16},
                                 {"tie_embeddings", published.at("tie_word_embeddings")}};
  make_ssm("mamba2_groups", config);
  EXPECT_EQ(warning_of_loading(), "");
  EXPECT_EQ(bit_difference(scores(folder_), scores(golden("mamba2_groups"))), "");
}

TEST_F(MambaSsm, RefusesWhatItCannotCompute) {
  const auto error = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json config = mamba_config();
    config[nlohmann::json::json_pointer(pointer)] = value;
    make_ssm("mamba", config);
    return warning_of_loading();
  };
  EXPECT_THAT(error("/d_intermediate", 64), HasSubstr("d_intermediate"));
  EXPECT_THAT(error("/attn_layer_idx", {3}), HasSubstr("attn_layer_idx"));
  EXPECT_THAT(error("/rms_norm", false), HasSubstr("rms_norm"));
  EXPECT_THAT(error("/ssm_cfg/layer", "Mamba3"), HasSubstr("ssm_cfg.layer"));
  EXPECT_THAT(error("/ssm_cfg/d_state", "x"), HasSubstr("ssm_cfg.d_state"));
  EXPECT_THAT(error("/ssm_cfg", 3), HasSubstr("ssm_cfg"));
  EXPECT_THAT(error("/vocab_size", 1000), HasSubstr("shape"));
  EXPECT_THAT(error("/ssm_cfg/some_new_key", 5), HasSubstr("'some_new_key'"));
  EXPECT_EQ(error("/ssm_cfg/dt_init", "random"), "");
}

}  // namespace
}  // namespace pronghorn
