// Safetensors and npy: round trips, goldens by hand, and hostile files.
#include "formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/files.h"
#include "base/random.h"
#include "formats/checkpoint_reader.h"
#include "formats/npy.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::write_fast;

class SafetensorsTest : public testing::Test {
 protected:
  // Writes a file from a header as text and `data` bytes, and returns what opening it says.
  std::string open_error(std::string_view header, size_t data) {
    const uint64_t length = header.size();
    std::string bytes(reinterpret_cast<const char*>(&length), 8);
    bytes.append(header).append(data, '\1');
    write_file(path_, bytes);
    return error_of([&] { SafetensorsFile file(path_); });
  }

  void write_example(const fs::path& path) {
    write_safetensors(path,
                      {{"w", "F32", {2, 3}, floats_.data(), 24},
                       {"ids", "I64", {2}, ids_.data(), 16},
                       {"flags", "U8", {3}, "abc", 3},
                       {"empty", "F32", {0, 5}, nullptr, 0},
                       {"scalar", "BF16", {}, &bf16_, 2}},
                      {{"format", "pt"}});
  }

  Folder folder_;
  const fs::path path_ = folder_ / "model.safetensors";
  std::vector<float> floats_ = {1, -2, 0.5f, 3e38f, 1e-40f, -0.0f};
  std::vector<int64_t> ids_ = {7, -1};
  uint16_t bf16_ = 0xC020;  // -2.5
};

TEST_F(SafetensorsTest, RoundTrip) {
  write_example(path_);
  const SafetensorsFile file(path_);
  EXPECT_THAT(file.names(), ElementsAre("empty", "flags", "ids", "scalar", "w"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const auto* w = file.find("w");
  ASSERT_NE(w, nullptr);
  EXPECT_EQ(w->dtype, "F32");
  EXPECT_THAT(w->shape, ElementsAre(2, 3));
  std::vector<float> out(6);
  to_f32(*w, out.data());
  EXPECT_EQ(std::memcmp(out.data(), floats_.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file.find("ids")->bytes.data(), ids_.data(), 16), 0);
  EXPECT_EQ(file.find("empty")->elements(), 0);
  EXPECT_EQ(file.find("scalar")->elements(), 1);
  to_f32(*file.find("scalar"), out.data());
  EXPECT_EQ(out[0], -2.5f);
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_THAT(error_of([&] { to_f32(*file.find("ids"), out.data(), "x"); }), HasSubstr("I64"));
  // Tensors are aligned to their dtype.
  for (const std::string& name : file.names()) {
    const auto* entry = file.find(name);
    const auto address = reinterpret_cast<uintptr_t>(entry->bytes.data());
    EXPECT_EQ(address % static_cast<uintptr_t>(safetensors_dtype_bytes(entry->dtype)), 0u);
  }
  write_example(folder_ / "again");
  EXPECT_EQ(read_file(path_), read_file(folder_ / "again"));
}

TEST_F(SafetensorsTest, ConvertsEveryHalf) {
  std::vector<uint16_t> halves(65536);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  write_safetensors(path_, {{"h", "F16", {65536}, halves.data(), 131072}});
  const SafetensorsFile file(path_);
  std::vector<float> out(65536);
  to_f32(*file.find("h"), out.data());
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    // IEEE 754: (-1)^s * 2^(e-15) * (1 + m/1024), subnormal at e = 0, infinite or NaN at e = 31.
    const int exponent = static_cast<int>(bits >> 10 & 31),
              mantissa = static_cast<int>(bits & 1023);
    double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) value = mantissa == 0 ? HUGE_VAL : NAN;
    if (bits >> 15 != 0) value = -value;
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(out[bits]));
    } else {
      EXPECT_EQ(static_cast<double>(out[bits]), value) << bits;
      EXPECT_EQ(std::signbit(out[bits]), bits >> 15 != 0);
    }
  }
}

TEST_F(SafetensorsTest, HostileHeaders) {
  EXPECT_THAT(open_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
              HasSubstr("no error"));
  const auto tensor = [&](std::string_view fields, size_t data = 8) {
    return open_error(fmt::format(R"({{"a":{{{}}}}})", fields), data);
  };
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
              AllOf(HasSubstr("tensor 'a'"), HasSubstr("takes 12 bytes")));
  EXPECT_THAT(tensor(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])"), HasSubstr("'F33'"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), HasSubstr("-2"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), HasSubstr("2.0"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), HasSubstr("[8, 0]"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,16])"), HasSubstr("leave"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,0])"),
              HasSubstr("leave"));
  // 2^32 * 2^31 * 4 wraps to 0 in 64 bits.
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4294967296,2147483648],"data_offsets":[0,0])", 0),
              HasSubstr("impossible shape"));
  // As the reference: fields that it does not know are passed over.
  EXPECT_EQ(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1)"), "no error");
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[2])"), HasSubstr("data_offsets"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 9), HasSubstr("9 bytes"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), HasSubstr("gap"));
  EXPECT_THAT(open_error(R"({"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},
                             "b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                         8),
              HasSubstr("inside the one before"));
  EXPECT_THAT(open_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                             "a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                         8),
              HasSubstr("twice"));
  EXPECT_THAT(open_error("[]", 0), HasSubstr("'{'"));
  EXPECT_THAT(open_error(R"({"__metadata__":[]})", 0), HasSubstr("__metadata__"));
  EXPECT_EQ(open_error(R"({"__metadata__":null})", 0), "no error");
  EXPECT_EQ(open_error(R"({"__metadata__":{"a":1,"b":{"c":[null]},"d":null}})", 0), "no error");
  EXPECT_THAT(open_error("{" + std::string(100000, '['), 0), HasSubstr("nested"));
  write_file(path_, "");
  EXPECT_THAT(error_of([&] { SafetensorsFile file(path_); }), HasSubstr("0 bytes"));
  write_file(path_, std::string(8, '\xFF') + "{}");
  EXPECT_THAT(error_of([&] { SafetensorsFile file(path_); }), HasSubstr("header length"));
}

TEST_F(SafetensorsTest, EveryCutThrowsAndMutationsNeverCrash) {
  write_example(path_);
  const std::string good = read_file(path_);
  for (size_t length = 0; length < good.size(); ++length) {
    write_fast(path_, std::string_view(good).substr(0, length));
    EXPECT_THROW(SafetensorsFile{path_}, Error) << length;
  }
  Random random(5);
  int refused = 0;
  constexpr int kMutations = 1500;
  for (int i = 0; i < kMutations; ++i) {
    std::string bad = good;
    const uint64_t count = 1 + random.below(3);
    for (uint64_t k = 0; k < count; ++k) {
      constexpr std::string_view kLikely = "{}[]\",:0123456789-";
      bad[random.below(bad.size())] = random.below(2) == 0 ? kLikely[random.below(kLikely.size())]
                                                           : static_cast<char>(random.bits());
    }
    write_fast(path_, bad);
    try {
      const SafetensorsFile file(path_);
      // What opens is readable to the last byte.
      for (const std::string& name : file.names()) {
        const auto* entry = file.find(name);
        std::vector<float> out(static_cast<size_t>(entry->elements()));
        if (entry->dtype == "F32" || entry->dtype == "BF16") to_f32(*entry, out.data());
      }
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, kMutations / 2);
}

TEST_F(SafetensorsTest, ShardedCheckpoint) {
  write_safetensors(folder_ / "a.safetensors", {{"x", "F32", {2}, floats_.data(), 8}});
  write_safetensors(folder_ / "b.safetensors", {{"y", "F32", {1}, floats_.data(), 4}});
  const auto index = folder_ / "model.safetensors.index.json";
  write_file(index, R"({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})");
  const CheckpointReader reader(folder_);
  EXPECT_THAT(reader.names(), ElementsAre("x", "y"));
  EXPECT_EQ(reader.at("y").elements(), 1);
  EXPECT_THAT(error_of([&] { reader.at("z"); }), HasSubstr("no tensor 'z'"));
  const auto error = [&](std::string_view text) {
    write_file(index, text);
    return error_of([&] { CheckpointReader bad(folder_); });
  };
  EXPECT_THAT(error(R"({"weight_map": {"x": "../a.safetensors"}})"), HasSubstr("plain name"));
  EXPECT_THAT(error(R"({"weight_map": {"x": "/etc/passwd"}})"), HasSubstr("plain name"));
  EXPECT_THAT(error(R"({"weight_map": {"x": ".."}})"), HasSubstr("plain name"));
  // What the index lists and its file lacks is missed when somebody asks for it.
  EXPECT_EQ(error(R"({"weight_map": {"x": "b.safetensors"}})"), "no error");
  EXPECT_THAT(error_of([&] { CheckpointReader(folder_).at("x"); }),
              AllOf(HasSubstr("no tensor 'x'"), HasSubstr("'b.safetensors'")));
  // What it does not list is there with its file.
  EXPECT_EQ(error(R"({"metadata": null, "extra": 1, "weight_map": {"x": "a.safetensors",
                      "inv_freq": "b.safetensors"}})"),
            "no error");
  EXPECT_THAT(CheckpointReader(folder_).names(), ElementsAre("x", "y"));
  EXPECT_THAT(error(R"({"weight_map": {"x": "c.safetensors"}})"),
              HasSubstr("c.safetensors: is missing: the model has 1 part"));
  EXPECT_THAT(error(R"({"weight_map": {"x": "a.safetensors", "y": "d.safetensors",
                                       "z": "c.safetensors"}})"),
              HasSubstr("c.safetensors: is missing and 1 more: the model has 3 parts"));
  EXPECT_THAT(error(R"({"weight_map": {}})"), HasSubstr("empty"));
  EXPECT_THAT(error(R"([])"), HasSubstr("weight_map"));
  fs::remove(index);
  EXPECT_THAT(error_of([&] { CheckpointReader bad(folder_); }), HasSubstr("no model.safetensors"));
  write_example(folder_ / "MODEL.SAFETENSORS");
  EXPECT_EQ(CheckpointReader(folder_).names().size(), 5u);
  write_example(path_);
  EXPECT_EQ(CheckpointReader(folder_).names().size(), 5u);
  write_file(path_, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  EXPECT_THAT(error_of([&] { CheckpointReader bad(folder_); }), HasSubstr("Git LFS"));
}

TEST_F(SafetensorsTest, WriterRefusesContradictions) {
  const float one = 1;
  EXPECT_THROW(write_safetensors(path_, {{"a", "F32", {2}, &one, 4}}), Error);
  EXPECT_THROW(write_safetensors(path_, {{"a", "X", {1}, &one, 4}}), Error);
  EXPECT_THROW(write_safetensors(path_, {{"a", "F32", {1}, &one, 4}, {"a", "F32", {1}, &one, 4}}),
               Error);
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(SafetensorsTest, Npy) {
  const auto path = folder_ / "x.npy";
  write_npy(path, floats_, {2, 3});
  const std::string bytes = read_file(path);
  // NumPy format 1.0: magic, version, length, then a header that ends at a multiple of 64.
  EXPECT_EQ(bytes.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_THAT(bytes, HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (2,3), }"));
  EXPECT_EQ(bytes.size(), 128u + 24);
  EXPECT_EQ(std::memcmp(bytes.data() + 128, floats_.data(), 24), 0);
  write_npy(path, floats_, {6});
  EXPECT_THAT(read_file(path), HasSubstr("'shape': (6,), }"));
  write_npy(path, std::span(floats_).first(1), {});
  EXPECT_THAT(read_file(path), HasSubstr("'shape': (), }"));
  EXPECT_THROW(write_npy(path, floats_, {2, 2}), Error);
  EXPECT_THROW(write_npy(path, floats_, {-2, -3}), Error);
}

}  // namespace
}  // namespace pronghorn
