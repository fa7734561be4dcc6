// Encodings of blocks against the numbers that the package of the format's makers takes them for,
// and what encoding costs.
#include "tensor/encoding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/random.h"
#include "formats/gguf.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

std::vector<const Encoding*> block_encodings() {
  std::vector<const Encoding*> found;
  for (const Encoding* encoding : all_encodings()) {
    if (layout_of(*encoding) != nullptr) found.push_back(encoding);
  }
  return found;
}

const GgufFile& goldens() {
  static const GgufFile file(std::filesystem::path(PRONGHORN_SOURCE_DIR) /
                             "tests/tensor/golden/encodings.gguf");
  return file;
}

TEST(Encoding, FilesKnowThemByTheSameNamesAndSizes) {
  for (const Encoding* encoding : all_encodings()) {
    EXPECT_EQ(find_encoding(encoding->file_dtype), encoding);
    const GgufTensorType* type = find_gguf_type(encoding->file_dtype);
    ASSERT_NE(type, nullptr) << encoding->name;
    EXPECT_EQ(type->block, encoding->block) << encoding->name;
    EXPECT_EQ(type->block_bytes, encoding->block_bytes) << encoding->name;
    if (layout_of(*encoding) != nullptr) {
      EXPECT_EQ(layout_of(*encoding)->block, encoding->block);
    };
  }
}

TEST(Encoding, BlocksAreTheNumbersOfTheReferenceToTheBit) {
  ASSERT_EQ(block_encodings().size(), 13u);
  for (const Encoding* encoding : block_encodings()) {
    const std::string name(encoding->file_dtype);
    const GgufTensor *blocks = goldens().find(name), *numbers = goldens().find(name + ".f32");
    ASSERT_TRUE(blocks != nullptr && numbers != nullptr) << name;
    std::vector<float> decoded(static_cast<size_t>(blocks->elements()));
    encoding->decode(blocks->bytes.data(), blocks->elements(), decoded.data());
    ASSERT_EQ(numbers->bytes.size(), decoded.size() * sizeof(float));
    for (size_t i = 0; i < decoded.size(); ++i) {
      float expected;
      std::memcpy(&expected, numbers->bytes.data() + i * sizeof(float), sizeof(float));
      ASSERT_EQ(decoded[i], expected) << name << " " << i;  // which takes 0 and -0 for equal
    }
  }
}

TEST(Encoding, BlocksTakenApartAndPutTogetherAreTheSameBytes) {
  for (const Encoding* encoding : block_encodings()) {
    const auto size = static_cast<size_t>(encoding->block_bytes);
    Random random(5, encoding->name);
    for (int i = 0; i < 200; ++i) {
      std::vector<std::byte> block(size), again(size);
      for (std::byte& byte : block) byte = static_cast<std::byte>(random.below(256));
      BlockParts parts;
      layout_of(*encoding)->take_apart(block.data(), parts);
      layout_of(*encoding)->put_together(parts, again.data());
      ASSERT_EQ(block, again) << encoding->name;
    }
  }
}

// Root of the mean squared error over that of the numbers, for normal numbers.
double relative_error(const Encoding& encoding) {
  constexpr int64_t kCount = 64 * 256;
  Random random(9, "numbers");
  std::vector<float> numbers(kCount), decoded(kCount);
  for (float& number : numbers) number = static_cast<float>(0.03 * random.normal());
  std::vector<std::byte> blocks(static_cast<size_t>(encoding.bytes(kCount)));
  encoding.encode(numbers.data(), kCount, blocks.data());
  encoding.decode(blocks.data(), kCount, decoded.data());
  double error = 0, size = 0;
  for (size_t i = 0; i < kCount; ++i) {
    error += std::pow(static_cast<double>(decoded[i] - numbers[i]), 2);
    size += std::pow(static_cast<double>(numbers[i]), 2);
  }
  return std::sqrt(error / size);
}

TEST(Encoding, EncodingErrs) {
  // A uniform grid of n steps over the +- 2.2 deviations that 32 normal numbers span errs by about
  // 4.4 / n / sqrt(12), a fifth less where scales are searched; tables and powers of two lie near.
  const std::pair<const Encoding*, double> kMost[] = {
      {&encodings::q8_0, 0.0065},  {&encodings::q6_k, 0.020}, {&encodings::q5_0, 0.045},
      {&encodings::q5_1, 0.042},   {&encodings::q5_k, 0.040}, {&encodings::q4_0, 0.090},
      {&encodings::q4_1, 0.085},   {&encodings::q4_k, 0.080}, {&encodings::iq4_nl, 0.085},
      {&encodings::iq4_xs, 0.085}, {&encodings::mxfp4, 0.14}, {&encodings::q3_k, 0.16},
      {&encodings::q2_k, 0.33}};
  for (const auto& [encoding, most] : kMost) {
    const double error = relative_error(*encoding);
    EXPECT_LE(error, most) << encoding->name;
    EXPECT_GE(error, most / 3) << encoding->name << ": the bound says little";
  }
}

TEST(Encoding, EncodesWhatIsNotUsual) {
  for (const Encoding* encoding : block_encodings()) {
    std::vector<float> numbers(256), decoded(256);
    std::vector<std::byte> blocks(static_cast<size_t>(encoding->bytes(256)));
    const auto through = [&] {
      encoding->encode(numbers.data(), 256, blocks.data());
      encoding->decode(blocks.data(), 256, decoded.data());
    };
    through();
    EXPECT_EQ(decoded, std::vector<float>(256)) << encoding->name;
    numbers.assign(256, 0.25f);  // one value
    through();
    for (const float number : decoded) EXPECT_NEAR(number, 0.25f, 0.02f) << encoding->name;
    numbers.assign(256, 1e-12f);  // below what a scale in f16 can be
    through();
    for (const float number : decoded) EXPECT_LE(std::abs(number), 1e-6f) << encoding->name;
    numbers.assign(256, NAN);
    numbers[7] = INFINITY;
    through();
    for (const float number : decoded) EXPECT_TRUE(std::isfinite(number)) << encoding->name;
  }
}

}  // namespace
}  // namespace pronghorn
