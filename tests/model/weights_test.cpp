// Weights of whole models: what files store is what is kept, computed with and saved again.
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "model/model.h"
#include "model/weight_bytes.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"
#include "tensor/block_layouts.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::decode;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::random_tokens;

// Those whose numbers safetensors files can hold.
std::vector<const Encoding*> plain_encodings() {
  std::vector<const Encoding*> plain;
  for (const Encoding* encoding : all_encodings()) {
    if (layout_of(*encoding) == nullptr) plain.push_back(encoding);
  }
  return plain;
}

constexpr Precision kPrecisions[] = {Precision::f32, Precision::bf16};

ModelConfig config_named(const std::string& name) {
  for (const auto& [known, body] : model_configs()) {
    if (known == name) return model_config(body);
  }
  throw Error("test", "no configuration " + name);
}

// A checkpoint of random weights, all its tensors in `encoding`.
void save_in(const Encoding& encoding, const ModelConfig& config, const Folder& folder) {
  Model(config, 5).save(folder.path());
  std::vector<TensorToWrite> list;
  std::map<std::string, std::vector<std::byte>> bytes;
  {
    const SafetensorsFile file(folder.path() / "model.safetensors");
    for (const std::string& name : file.names()) {
      const SafetensorsEntry& entry = *file.find(name);
      std::vector<float> numbers(static_cast<size_t>(entry.elements()));
      to_f32(entry, numbers.data());
      bytes[name].resize(static_cast<size_t>(encoding.bytes(entry.elements())));
      encoding.encode(numbers.data(), entry.elements(), bytes[name].data());
      list.push_back({name, std::string(encoding.file_dtype), entry.shape, bytes[name].data(),
                      bytes[name].size()});
    }
  }
  write_safetensors(folder.path() / "model.safetensors", std::move(list));
}

// A prompt, some steps and a tree's worth of single tokens.
std::vector<float> logits_of(const Model& model, Precision precision) {
  SequenceState state = model.new_state();
  const std::vector<int64_t> steps = {40, 3, 1, 1};
  return decode(model, state, random_tokens(45, model.config().vocab_size, 3), steps, precision);
}

TEST(Weights, ReadOnlyModelsComputeWhatTrainableOnesDo) {
  for (const auto& [name, body] : model_configs()) {
    for (const Encoding* encoding : plain_encodings()) {
      const Folder folder;
      save_in(*encoding, model_config(body), folder);
      const auto trainable = Model::load(folder.path(), Purpose::training);
      const auto mapped = Model::load(folder.path());
      for (const Precision precision : kPrecisions) {
        const std::vector<float> expected = logits_of(*trainable, precision);
        EXPECT_EQ(bit_difference(logits_of(*mapped, precision), expected), "")
            << name << " in " << encoding->name;
      }
      const std::vector<float> before = logits_of(*trainable, Precision::f32);
      trainable->freeze();
      EXPECT_EQ(bit_difference(logits_of(*trainable, Precision::f32), before), "") << name;
    }
  }
}

TEST(Weights, SavingKeepsTheBytesThatWereLoaded) {
  for (const char* name : {"transformer", "mamba", "hybrid"}) {
    for (const Encoding* encoding : plain_encodings()) {
      const Folder folder;
      save_in(*encoding, config_named(name), folder);
      const auto model = Model::load(folder.path());
      const std::string before = read_file(folder.path() / "model.safetensors");
      // What is packed takes the place of what is stored: it must hold all of it.
      logits_of(*model, Precision::f32);
      model->save(folder.path() / "again");
      EXPECT_TRUE(read_file(folder.path() / "again/model.safetensors") == before)
          << name << " in " << encoding->name;
      // To be trained, numbers are f32, and saved so.
      Model::load(folder.path(), Purpose::training)->save(folder.path() / "trained");
      const SafetensorsFile trained(folder.path() / "trained/model.safetensors");
      for (const std::string& tensor : trained.names()) {
        EXPECT_EQ(trained.find(tensor)->dtype, "F32") << name << " " << tensor;
      }
    }
  }
}

// Of owned numbers only packed copies are left; they are saved from these.
TEST(Weights, PackedCopiesAreSavedAsTheNumbersThatTheyHold) {
  const Folder folder;
  Model model(config_named("transformer"), 5);
  model.save(folder.path());
  model.freeze();
  logits_of(model, Precision::f32);
  for (const Parameter& parameter : model.parameters()) {
    if (parameter.matrix.defined() && parameter.name != "embeddings.weight") {
      EXPECT_TRUE(parameter.matrix.stored().bytes.empty()) << parameter.name;
    }
  }
  model.save(folder.path() / "again");
  EXPECT_TRUE(read_file(folder.path() / "again/model.safetensors") ==
              read_file(folder.path() / "model.safetensors"));
}

// 64 wide and a vocabulary of 512: multiples of a panel, so that nothing is padding.
TEST(Weights, AModelHoldsItsWeightsOnce) {
  const nlohmann::json json = parse_json(
      R"({"pattern": "2a", "hidden_size": 64, "vocab_size": 512, "blocks": {"a": {
          "mixer": {"type": "attention", "heads": 4, "rope": {}},
          "ffn": {"type": "swiglu", "size": 160}}}})",
      "test");
  const ModelConfig config = read_pronghorn_config(ConfigReader(json, "test"));
  for (const Encoding* encoding : plain_encodings()) {
    for (const Precision precision : kPrecisions) {
      const Folder folder;
      save_in(*encoding, config, folder);
      {  // what kernels and operators allocate once
        const auto warm = Model::load(folder.path());
        logits_of(*warm, precision);
      }
      const int64_t before = memory_use().bytes;
      const auto model = Model::load(folder.path());
      logits_of(*model, precision);
      const int64_t held = memory_use().bytes - before;
      EXPECT_EQ(held, resident_weight_bytes(*model, precision)) << encoding->name;
      const bool half = precision == Precision::bf16 || encoding == &encodings::bf16;
      const auto numbers = static_cast<double>(model->parameter_count());
      if (half && cpu_features().bf16) {
        EXPECT_LE(static_cast<double>(held), 2.03 * numbers) << encoding->name;
      }
      EXPECT_LE(static_cast<double>(held), 4.01 * numbers) << encoding->name;
      EXPECT_EQ(weight_bytes_per_token(*model, precision), held) << "a tied head is read whole";
      int64_t listed = 0, mapped = 0;
      for (const WeightBytes& part : weight_bytes(*model)) {
        (part.mapped ? mapped : listed) += part.bytes;
      }
      EXPECT_EQ(listed, held);
      EXPECT_LE(mapped, encoding->bytes(model->parameter_count()));
      EXPECT_GT(mapped, encoding->bytes(model->parameter_count() - 512));
    }
  }
}

TEST(Weights, AnOutlineHasSizesAndNoNumbers) {
  const auto outline = Model::outline(config_named("hybrid"));
  const Model model(config_named("hybrid"), 1);
  EXPECT_EQ(outline->parameter_count(), model.parameter_count());
  EXPECT_EQ(outline->fingerprint(), model.fingerprint());
  EXPECT_GE(resident_weight_bytes(*outline, Precision::f32), 4 * model.parameter_count());
}

// An untied table is read by one row, and of the head all.
TEST(Weights, BytesPerTokenCountWhatATokenReads) {
  const auto model = Model::outline(config_named("transformer"));
  int64_t most = 0;
  for (const Parameter& parameter : model->parameters()) {
    if (parameter.name != "embeddings.weight") most += 4 * parameter.size();
  }
  // Panels are 16 columns: 24 rows take 32, and 61 take 64.
  const int64_t read = weight_bytes_per_token(*model, Precision::f32);
  EXPECT_GE(read, most + 4 * 24);
  EXPECT_LT(read, most + most / 2);
}

}  // namespace
}  // namespace pronghorn
