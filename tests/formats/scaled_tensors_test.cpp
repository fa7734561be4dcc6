// Tensors in few bits with scales beside them, as CheckpointReader shows them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/float16.h"
#include "formats/checkpoint_reader.h"
#include "support/errors.h"
#include "support/folder.h"
#include "tensor/encoding.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::write_fast;

struct Tensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

std::vector<uint8_t> bytes_of(const std::vector<float>& numbers) {
  const auto* data = reinterpret_cast<const uint8_t*>(numbers.data());
  return {data, data + numbers.size() * sizeof(float)};
}

CheckpointReader reader_of(const Folder& folder, const std::vector<Tensor>& tensors) {
  std::vector<TensorToWrite> to_write;
  for (const Tensor& tensor : tensors) {
    to_write.push_back(
        {tensor.name, tensor.dtype, tensor.shape, tensor.bytes.data(), tensor.bytes.size()});
  }
  write_safetensors(folder / "model.safetensors", to_write);
  return CheckpointReader(folder.path());
}

std::vector<float> numbers(const SafetensorsEntry& entry) {
  std::vector<float> all(static_cast<size_t>(entry.elements()));
  to_f32(entry, all.data());
  return all;
}

TEST(ScaledTensors, EveryNumberOfEightBits) {
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<uint8_t>(i));
  const Folder folder;
  const CheckpointReader reader = reader_of(folder, {{"w", "F8_E4M3", {256}, bytes}});
  EXPECT_EQ(reader.at("w").dtype, "BF16");
  const std::vector<float> found = numbers(reader.at("w"));
  for (int i = 0; i < 256; ++i) {
    const int exponent = i / 8 % 16, mantissa = i % 8;
    double expected = exponent == 0 ? mantissa * std::pow(2.0, -9)
                                    : (1 + mantissa / 8.0) * std::pow(2.0, exponent - 7);
    if (i >= 128) expected = -expected;
    if (i % 128 == 127) {
      EXPECT_TRUE(std::isnan(found[static_cast<size_t>(i)])) << i;
    } else {
      EXPECT_EQ(found[static_cast<size_t>(i)], expected) << i;
    }
  }
  EXPECT_EQ(found[0x7E], 448);  // the largest, as the format's paper says (arXiv 2209.05433)
}

// Numbers of a matrix [rows, columns] of ones under scales 1, 2, 3, .. quantization: what
// config.json says; empty: there is none.
std::vector<float> scaled_ones(const std::string& name, std::vector<int64_t> shape,
                               std::vector<int64_t> scale_shape,
                               const std::string& quantization = "") {
  int64_t count = 1, scales = 1;
  for (const int64_t size : shape) count *= size;
  for (const int64_t size : scale_shape) scales *= size;
  std::vector<float> scale;
  for (int64_t i = 0; i < scales; ++i) scale.push_back(static_cast<float>(i + 1));
  const Folder folder;
  if (!quantization.empty()) {
    write_fast(folder / "config.json", "{\"quantization_config\": " + quantization + "}");
  }
  const CheckpointReader reader = reader_of(
      folder,
      {{"x.weight", "F8_E4M3", shape, std::vector<uint8_t>(static_cast<size_t>(count), 0x38)},
       {name, "F32", scale_shape, bytes_of(scale)},
       {"x.input_scale", "F32", {1}, bytes_of({3})},
       {"x.activation_scale", "F32", {1}, bytes_of({3})}});
  EXPECT_THAT(reader.names(), ElementsAre("x.weight"));
  return numbers(reader.at("x.weight"));
}

TEST(ScaledTensors, ScalesOfBlocksRowsAndWholeTensors) {
  // Blocks of 128 x 128, the last of which are shorter.
  const std::vector<float> blocks = scaled_ones("x.weight_scale_inv", {131, 301}, {2, 3});
  for (int64_t row = 0; row < 131; ++row) {
    for (int64_t column = 0; column < 301; ++column) {
      const auto expected = static_cast<float>(row / 128 * 3 + column / 128 + 1);
      ASSERT_EQ(blocks[static_cast<size_t>(row * 301 + column)], expected) << row << ' ' << column;
    }
  }
  EXPECT_THAT(scaled_ones("x.weight_scale", {2, 3}, {}), ElementsAre(1, 1, 1, 1, 1, 1));
  EXPECT_THAT(scaled_ones("x.weight_scale", {2, 3}, {1, 1}), ElementsAre(1, 1, 1, 1, 1, 1));
  EXPECT_THAT(scaled_ones("x.weight_scale", {2, 3}, {2, 1}), ElementsAre(1, 1, 1, 2, 2, 2));
  EXPECT_THAT(scaled_ones("x.weight_scale_inv", {2, 1, 2}, {2, 1, 2}), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(error_of([] {
                scaled_ones("x.weight_scale", {5, 3}, {4, 1});
              }),
              HasSubstr("scales [4, 1] do not fit a tensor [5, 3]"));
  EXPECT_THAT(error_of([] {
                scaled_ones("x.weight_scale", {5, 3}, {5});
              }),
              HasSubstr("do not fit"));
}

TEST(ScaledTensors, BlocksAreOfTheSizeThatTheConfigurationSays) {
  const std::string name = "x.weight_scale_inv";
  const auto sized = [](const std::string& size) {
    return R"({"quant_method": "fp8", "weight_block_size": )" + size + "}";
  };
  const auto check = [&](const std::string& says, int64_t block_rows, int64_t block_columns,
                         std::vector<int64_t> scales) {
    const std::vector<float> found = scaled_ones(name, {96, 40}, scales, says);
    for (int64_t i = 0; i < 96 * 40; ++i) {
      const int64_t block = i / 40 / block_rows * scales.back() + i % 40 / block_columns;
      ASSERT_EQ(found[static_cast<size_t>(i)], static_cast<float>(block + 1)) << says << i;
    }
  };
  // The last block is cut short: 64 and 32 rows, where equal shares would be 48 and 48.
  check(sized("[64, 16]"), 64, 16, {2, 3});
  check(sized("[128, 128]"), 96, 40, {1, 1});
  check(sized("[9223372036854775807, 1]"), 96, 1, {1, 40});
  check(R"({"quant_method": "compressed-tensors", "config_groups":
            {"group_0": {"weights": {"strategy": "block", "block_structure": [64, 16]}}}})",
        64, 16, {2, 3});
  // Experts: blocks are of the last two axes.
  EXPECT_THAT(scaled_ones(name, {2, 1, 3}, {2, 1, 2}, sized("[2, 2]")),
              ElementsAre(1, 1, 2, 3, 3, 4));
  // One number, and what no size is said of.
  EXPECT_THAT(scaled_ones(name, {1, 2}, {}, sized("[1, 1]")), ElementsAre(1, 1));
  EXPECT_THAT(scaled_ones("x.weight_scale", {2, 2}, {2, 1}, sized("null")),
              ElementsAre(1, 1, 2, 2));

  const auto error = [&](std::vector<int64_t> shape, std::vector<int64_t> scales,
                         const std::string& says) {
    return error_of([&] { scaled_ones(name, shape, scales, says); });
  };
  EXPECT_THAT(error({32, 32}, {2, 1}, sized("[128, 128]")),
              AllOf(HasSubstr("'x.weight'"), HasSubstr("[2, 1]"), HasSubstr("[32, 32]"),
                    HasSubstr("config.json"), HasSubstr("quantization_config.weight_block_size"),
                    HasSubstr("[1, 1] would")));
  EXPECT_THAT(error({96, 40}, {1, 1}, sized("[64, 64]")), HasSubstr("[2, 1] would"));
  EXPECT_THAT(error({2, 2, 2}, {1, 1, 1}, sized("[2, 2]")), HasSubstr("[2, 1, 1] would"));
  for (const char* size : {"[128]", "[128, 0]", "[128, -128]", "[128, 128.0]", "[1, 1, 1]", "128",
                           "[128, 9223372036854775808]", "[\"128\", 128]", "{}", "\"\""}) {
    EXPECT_THAT(error({32, 32}, {1, 1}, sized(size)),
                AllOf(HasSubstr("config.json: quantization_config.weight_block_size"),
                      HasSubstr("two whole numbers above 0")))
        << size;
  }
  EXPECT_THAT(error({4, 4}, {1, 1}, R"({"weight_block_size": [2, 2], "config_groups":
                    {"g": {"weights": {"block_structure": [4, 4]}}}})"),
              HasSubstr("quantization_config.config_groups.g.weights.block_structure is [4,4]"));
}

TEST(ScaledTensors, BlocksThatNothingSaysTheSizeOfMustBeCertain) {
  const auto error = [](std::vector<int64_t> shape, std::vector<int64_t> scales) {
    return error_of([&] { scaled_ones("x.weight_scale_inv", shape, scales); });
  };
  // 128, and no equal shares of another size; and five rows in three blocks are two in each.
  EXPECT_EQ(error({256, 576}, {2, 5}), "no error");
  EXPECT_THAT(scaled_ones("x.weight_scale_inv", {5, 1}, {3, 1}), ElementsAre(1, 1, 2, 2, 3));
  for (const auto& [shape, scales] :
       std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>>{
           {{32, 32}, {2, 1}}, {{96, 64}, {2, 1}}, {{1, 254}, {1, 2}}}) {
    EXPECT_THAT(error(shape, scales),
                AllOf(HasSubstr("'x.weight'"), HasSubstr("blocks of several sizes"),
                      HasSubstr("quantization_config.weight_block_size of config.json")));
  }
  EXPECT_THAT(error({4, 4}, {5, 1}), HasSubstr("scales [5, 1] do not fit a tensor [4, 4]"));
}

TEST(ScaledTensors, GroupsOfFourBitsKeepTheirNumbers) {
  // Two rows of two groups: number i of group g is code (i + g) % 16.
  std::vector<uint8_t> blocks, scales = {127, 128, 120, 130};
  for (int group = 0; group < 4; ++group) {
    for (int i = 0; i < 32; i += 2) {
      blocks.push_back(static_cast<uint8_t>((i + group) % 16 | (i + 1 + group) % 16 << 4));
    }
  }
  const Folder folder;
  const CheckpointReader reader = reader_of(
      folder, {{"up_blocks", "U8", {2, 2, 16}, blocks}, {"up_scales", "U8", {2, 2}, scales}});
  EXPECT_THAT(reader.names(), ElementsAre("up_blocks"));
  const SafetensorsEntry& entry = reader.at("up_blocks");
  EXPECT_EQ(entry.dtype, "MXFP4");
  EXPECT_THAT(entry.shape, ElementsAre(2, 64));
  std::vector<float> found(128);
  find_encoding("MXFP4")->decode(entry.bytes.data(), 128, found.data());
  constexpr float kNumbers[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (int i = 0; i < 128; ++i) {
    const int group = i / 32, code = (i % 32 + group) % 16;
    const float expected = kNumbers[code % 8] * (code < 8 ? 1.0f : -1.0f) *
                           std::ldexp(1.0f, scales[static_cast<size_t>(group)] - 127);
    EXPECT_EQ(found[static_cast<size_t>(i)], expected) << i;
  }
}

TEST(ScaledTensors, BlocksThatDoNotFitAreNamed) {
  const auto error = [](std::vector<int64_t> shape, const std::string& dtype) {
    const Folder folder;
    return error_of([&] {
      reader_of(folder, {{"up_blocks", "U8", {2, 16}, std::vector<uint8_t>(32)},
                         {"up_scales", dtype, std::move(shape), std::vector<uint8_t>(3)}});
    });
  };
  EXPECT_THAT(error({3}, "U8"), HasSubstr("'up_blocks'"));
  EXPECT_THAT(error({3, 1}, "U8"), HasSubstr("are not those of MXFP4"));
  EXPECT_THAT(error({3}, "I8"), HasSubstr("I8 scales [3]"));
  // Without scales it is some other tensor.
  const Folder folder;
  EXPECT_EQ(reader_of(folder, {{"up_blocks", "U8", {4}, {1, 2, 3, 4}}}).at("up_blocks").dtype,
            "U8");
}

}  // namespace
}  // namespace pronghorn
