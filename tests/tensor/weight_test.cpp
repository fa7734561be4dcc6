// Encodings and weights: what is stored is what was given, and sizes that do not fit are refused.
#include "tensor/weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;

TEST(Encoding, EveryNumberOf16BitsComesBack) {
  for (const Encoding* encoding : {&encodings::bf16, &encodings::f16}) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const auto stored = static_cast<uint16_t>(bits);
      std::byte bytes[3], again[3];
      std::memcpy(bytes + 1, &stored, sizeof(stored));  // not aligned
      float number;
      encoding->decode(bytes + 1, 1, &number);
      encoding->encode(&number, 1, again + 1);
      if (std::isnan(number)) {
        float after;
        encoding->decode(again + 1, 1, &after);
        EXPECT_TRUE(std::isnan(after)) << encoding->name << " " << bits;
      } else {
        EXPECT_EQ(std::memcmp(bytes + 1, again + 1, 2), 0) << encoding->name << " " << bits;
      }
    }
  }
}

TEST(Encoding, RoundsToTheNearestAndThenToEven) {
  const auto f16 = [](float number) { return from_f16(to_f16(number)); };
  EXPECT_EQ(f16(1 + 0x1p-11f), 1);  // half way: even
  EXPECT_EQ(f16(1 + 0x1p-11f + 0x1p-20f), 1 + 0x1p-10f);
  EXPECT_EQ(f16(1 + 0x1.8p-10f), 1 + 0x1p-9f);  // half way, the other way
  EXPECT_EQ(f16(2047.5f), 2048);                // carries into the exponent
  EXPECT_EQ(f16(65519), 65504);                 // the largest
  EXPECT_EQ(f16(65520), std::numeric_limits<float>::infinity());
  EXPECT_EQ(f16(-0x1p-24f), -0x1p-24f);  // the smallest
  EXPECT_EQ(f16(0x1.8p-25f), 0x1p-24f);
  EXPECT_EQ(f16(0x1p-25f), 0);
  EXPECT_EQ(to_bf16(1 + 0x1p-8f), 0x3f80);
  EXPECT_EQ(to_bf16(1 + 0x1.8p-7f), 0x3f82);
}

TEST(Encoding, IsFoundByTheNameThatFilesUse) {
  EXPECT_EQ(find_encoding("BF16"), &encodings::bf16);
  EXPECT_EQ(find_encoding("F64"), nullptr);
  EXPECT_EQ(find_encoding(""), nullptr);
  for (const Encoding* encoding : all_encodings()) {
    EXPECT_EQ(encoding->bytes(encoding->block), encoding->block_bytes);
    EXPECT_EQ(find_encoding(encoding->file_dtype), encoding);
  }
}

void decode_nothing(const std::byte*, int64_t, float*) {}
const Encoding kBlocks = {"blocks", "", "", 32, 18, decode_nothing, nullptr};

std::string error_of_assign(const Weight& weight, const Encoding& encoding, size_t bytes) {
  const auto memory = std::make_shared<std::vector<std::byte>>(bytes);
  try {
    weight.assign({&encoding, *memory, memory, nullptr});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Weight, RefusesBytesThatAreNotItsRows) {
  EXPECT_EQ(error_of_assign(Weight(3, 5), encodings::bf16, 30), "");
  EXPECT_THAT(error_of_assign(Weight(3, 5), encodings::bf16, 28), HasSubstr("28 bytes"));
  EXPECT_THAT(error_of_assign(Weight(3, 5), encodings::f32, 30), HasSubstr("30 bytes"));
  EXPECT_EQ(error_of_assign(Weight(3, 64), kBlocks, 108), "");
  EXPECT_THAT(error_of_assign(Weight(3, 65), kBlocks, 108), HasSubstr("blocks of 32"));
  EXPECT_THAT(error_of_assign(Weight(int64_t{1} << 31, int64_t{1} << 31), encodings::f32, 0),
              HasSubstr("0 bytes"));
  EXPECT_THAT(error_of_assign(Weight(Tensor::zeros({3, 5})), encodings::f32, 60),
              HasSubstr("trainable"));
  EXPECT_THROW(Weight(-1, 5), Error);
  EXPECT_THROW(Weight(int64_t{1} << 40, int64_t{1} << 40), Error);
  EXPECT_THROW(Weight(Tensor::zeros({4})), Error);
  EXPECT_THROW(Weight(Tensor::zeros({4, 6}).column_slice(0, 3)), Error);
}

TEST(Weight, IsTrainedOrReadOnly) {
  const Tensor value = Tensor::full({2, 3}, 4);
  const Weight weight(value), same = weight;
  EXPECT_TRUE(weight.trainable().defined());
  EXPECT_EQ(weight.stored().bytes.size(), 24u);
  weight.freeze();
  EXPECT_FALSE(same.trainable().defined());
  EXPECT_EQ(same.out(), 2);
  EXPECT_EQ(same.in(), 3);
  EXPECT_EQ(reinterpret_cast<const float*>(same.stored().bytes.data())[5], 4);
  ASSERT_EQ(same.bytes().size(), 1u);
  EXPECT_EQ(same.bytes()[0].bytes, 24);
  same.release_stored(false);  // no packed copy has the numbers
  EXPECT_EQ(weight.stored().bytes.size(), 24u);
  same.release_stored(true);
  EXPECT_TRUE(weight.stored().bytes.empty());
}

}  // namespace
}  // namespace pronghorn
