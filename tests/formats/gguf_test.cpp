// GGUF: round trips, files split in parts, and hostile files.
#include "formats/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/files.h"
#include "base/random.h"
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

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
std::string raw_text(std::string_view text) {
  return raw(static_cast<uint64_t>(text.size())).append(text);
}

// A file field by field, which may be wrong in any of them.
struct Forged {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::string keys, infos, data;
  uint64_t key_count = 0, tensor_count = 0;

  Forged& key(std::string_view name, GgufKind kind, std::string_view value) {
    keys += raw_text(name) + raw(kind);
    keys += value;
    ++key_count;
    return *this;
  }
  Forged& tensor(std::string_view name, std::vector<uint64_t> sizes, uint32_t type,
                 uint64_t offset) {
    infos += raw_text(name) + raw(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) infos += raw(size);
    infos += raw(type) + raw(offset);
    ++tensor_count;
    return *this;
  }
  std::string bytes() const {
    std::string all = magic + raw(version) + raw(tensor_count) + raw(key_count) + keys + infos;
    all.append((32 - all.size() % 32) % 32, '\0');
    return all + data;
  }
};

class GgufTest : public testing::Test {
 protected:
  std::string open_error(std::string_view bytes) {
    fs::remove(path_);  // a new file: some file systems sync one that is overwritten
    write_fast(path_, bytes);
    return error_of([&] { GgufFile file(path_); });
  }
  std::string open_error(const Forged& forged) { return open_error(forged.bytes()); }

  GgufTensorToWrite tensor(std::string name, const char* type, std::vector<int64_t> shape) {
    const GgufTensorType* found = find_gguf_type(type);
    const int64_t elements =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    auto bytes = std::make_shared<std::string>();
    for (int64_t i = 0; i < elements / found->block * found->block_bytes; ++i) {
      *bytes += static_cast<char>(name.size() + static_cast<size_t>(i));
    }
    return {std::move(name), found, std::move(shape), [bytes] {
              return GgufTensorToWrite::Bytes{std::as_bytes(std::span(*bytes)), bytes};
            }};
  }

  GgufMetadata example_metadata() {
    GgufMetadata metadata("test");
    metadata.set("general.architecture", GgufValue::text("llama"));
    metadata.set("a.u32", GgufValue::u32(4000000000u));
    metadata.set("a.u16", GgufValue::u16(7));
    metadata.set("a.i32", GgufValue::i32(-3));
    metadata.set("a.f32", GgufValue::f32(0.5f));
    metadata.set("a.yes", GgufValue::boolean(true));
    metadata.set("a.texts", GgufValue::texts(std::vector<std::string>{"one", "", "drei"}));
    metadata.set("a.ints", GgufValue::i32s(std::vector<int32_t>{1, -2}));
    metadata.set("a.floats", GgufValue::f32s(std::vector<float>{1, -2.5f}));
    metadata.set("a.truths", GgufValue::booleans({true, false}));
    metadata.set("a.none", GgufValue::i32s({}));
    return metadata;
  }

  void write_example(const fs::path& path) {
    write_gguf(path, example_metadata(),
               {tensor("token_embd.weight", "Q4_0", {3, 64}), tensor("norm.weight", "F32", {64}),
                tensor("experts.weight", "Q6_K", {2, 3, 256}), tensor("scalar", "F16", {}),
                tensor("deep", "I8", {1, 2, 3, 4})});
  }

  Folder folder_;
  const fs::path path_ = folder_ / "model.gguf";
};

TEST_F(GgufTest, RoundTrip) {
  write_example(path_);
  const GgufFile file(path_);
  const GgufMetadata& metadata = file.metadata();
  EXPECT_EQ(metadata.text("general.architecture"), "llama");
  EXPECT_EQ(metadata.integer("a.u32"), 4000000000);
  EXPECT_EQ(metadata.integer("a.u16"), 7);
  EXPECT_EQ(metadata.integer("a.i32"), -3);
  EXPECT_EQ(metadata.number("a.f32"), 0.5);
  EXPECT_EQ(metadata.number("a.i32"), -3);
  EXPECT_TRUE(metadata.boolean("a.yes"));
  EXPECT_THAT(metadata.texts("a.texts"), ElementsAre("one", "", "drei"));
  EXPECT_THAT(metadata.integers("a.ints"), ElementsAre(1, -2));
  EXPECT_THAT(metadata.integers("a.truths"), ElementsAre(1, 0));
  EXPECT_THAT(metadata.numbers("a.floats"), ElementsAre(1, -2.5f));
  EXPECT_THAT(metadata.numbers("a.ints"), ElementsAre(1, -2));
  EXPECT_TRUE(metadata.integers("a.none").empty());
  EXPECT_TRUE(metadata.texts("absent").empty());
  EXPECT_EQ(metadata.integer("absent", 5), 5);
  EXPECT_EQ(metadata.text("absent", "x"), "x");

  ASSERT_EQ(file.tensors().size(), 5u);
  const GgufTensor* experts = file.find("experts.weight");
  ASSERT_NE(experts, nullptr);
  EXPECT_EQ(experts->type->name, "Q6_K");
  EXPECT_THAT(experts->shape(), ElementsAre(2, 3, 256));
  EXPECT_EQ(experts->elements(), 1536);
  EXPECT_EQ(experts->bytes.size(), 6u * 210);
  EXPECT_EQ(experts->bytes[1], std::byte{15});
  EXPECT_TRUE(file.find("scalar")->shape().empty());
  EXPECT_THAT(file.find("deep")->shape(), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(file.find("nothing"), nullptr);
  for (const GgufTensor& each : file.tensors()) {
    EXPECT_TRUE(file.file_of(each)->holds(each.bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(each.bytes.data()) % 32, 0u);
  }
  write_example(folder_ / "again.gguf");
  EXPECT_EQ(read_file(path_), read_file(folder_ / "again.gguf"));
}

TEST_F(GgufTest, GettersNameFileKeyAndValue) {
  write_example(path_);
  const GgufFile file(path_);
  const GgufMetadata& metadata = file.metadata();
  const auto says = [](std::string_view key, std::string_view value) {
    return AllOf(HasSubstr("model.gguf: key '" + std::string(key) + "'"),
                 HasSubstr(std::string(value)));
  };
  EXPECT_THAT(error_of([&] { metadata.integer("a.f32"); }), says("a.f32", "f32 0.5"));
  EXPECT_THAT(error_of([&] { metadata.integer("a.u16", {}, 8, 9); }), says("a.u16", "7"));
  EXPECT_THAT(error_of([&] { metadata.text("a.u16"); }), says("a.u16", "u16 7"));
  EXPECT_THAT(error_of([&] { metadata.texts("a.ints"); }), says("a.ints", "array of 2 i32"));
  EXPECT_THAT(error_of([&] { metadata.integers("a.texts"); }), says("a.texts", "array of 3"));
  EXPECT_THAT(error_of([&] { metadata.boolean("a.i32"); }), says("a.i32", "-3"));
  EXPECT_THAT(error_of([&] { metadata.number("general.architecture"); }),
              says("general.architecture", "'llama'"));
  EXPECT_THAT(error_of([&] { metadata.integer("absent"); }), says("absent", "missing"));
}

TEST_F(GgufTest, WritesOnlyWhatCanBeRead) {
  const GgufMetadata metadata("test");
  const auto error = [&](std::vector<GgufTensorToWrite> tensors) {
    return error_of([&] { write_gguf(path_, metadata, tensors); });
  };
  EXPECT_EQ(error({}), "no error");
  EXPECT_THAT(error({tensor("a", "F32", {1}), tensor("a", "F32", {1})}), HasSubstr("twice"));
  EXPECT_THAT(error({tensor("a", "Q4_K", {4, 128})}), HasSubstr("whole blocks"));
  EXPECT_THAT(error({tensor("a", "F32", {1, 1, 1, 1, 1})}), HasSubstr("5 dimensions"));
  EXPECT_THAT(error({tensor("a", "F32", {0})}), HasSubstr("impossible shape"));
  GgufTensorToWrite wrong = tensor("a", "F32", {2});
  wrong.shape = {3};
  EXPECT_THAT(error({wrong}), HasSubstr("8 bytes where its shape says 12"));
  // It would be read as a part of a model.
  const GgufMetadata whole("test");
  EXPECT_THAT(error_of([&] { write_gguf(folder_ / "m-00001-of-00003.gguf", whole, {}); }),
              HasSubstr("a name for a part"));
}

TEST_F(GgufTest, SplitFilesAreOneModel) {
  const auto write_part = [&](uint16_t number, uint16_t count, const char* name, const char* of) {
    GgufMetadata metadata("test");
    metadata.set("split.no", GgufValue::u16(number));
    metadata.set("split.count", GgufValue::u16(count));
    if (number == 0) metadata.set("general.name", GgufValue::text("whole"));
    write_gguf(folder_ / of, metadata, {tensor(name, "F32", {static_cast<int64_t>(number) + 1})});
  };
  const fs::path first = folder_ / "m-00001-of-00002.gguf",
                 second = folder_ / "m-00002-of-00002.gguf";
  write_part(0, 2, "a", "m-00001-of-00002.gguf");
  EXPECT_THAT(error_of([&] { GgufFile file(first); }), HasSubstr("00002-of-00002"));
  write_part(1, 2, "b", "m-00002-of-00002.gguf");
  for (const fs::path& path : {first, second}) {
    const GgufFile file(path);
    EXPECT_EQ(file.path(), first);
    EXPECT_EQ(file.metadata().text("general.name"), "whole");
    ASSERT_EQ(file.tensors().size(), 2u);
    EXPECT_TRUE(file.file_of(*file.find("b"))->holds(file.find("b")->bytes));
  }
  EXPECT_EQ(find_gguf(folder_.path()), first);
  write_part(1, 2, "a", "m-00002-of-00002.gguf");
  EXPECT_THAT(error_of([&] { GgufFile file(first); }), HasSubstr("two tensors are named 'a'"));
  write_part(0, 2, "b", "m-00002-of-00002.gguf");
  EXPECT_THAT(error_of([&] { GgufFile file(first); }),
              HasSubstr("says that it is part 1 of 2, its name part 2 of 2"));
  write_part(0, 2, "b", "alone.gguf");
  EXPECT_THAT(error_of([&] { GgufFile file(folder_ / "alone.gguf"); }), HasSubstr("part 1 of 2"));
  EXPECT_THAT(error_of([&] { find_gguf(folder_.path()); }), HasSubstr("alone.gguf"));
}

TEST_F(GgufTest, WritesWhatWouldBeLargerInParts) {
  const std::vector<GgufTensorToWrite> tensors = {
      tensor("a", "F32", {100}), tensor("b", "Q8_0", {64, 32}), tensor("c", "F32", {3}),
      tensor("d", "F16", {50}), tensor("e", "F32", {250})};
  EXPECT_THAT(write_split_gguf(path_, example_metadata(), tensors, 1 << 20), ElementsAre(path_));
  const GgufFile whole(path_);
  constexpr uint64_t kPart = 1200;
  const std::vector<fs::path> parts =
      write_split_gguf(folder_ / "split.gguf", example_metadata(), tensors, kPart);
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_EQ(parts.front(), folder_ / "split-00001-of-00004.gguf");
  EXPECT_FALSE(fs::exists(folder_ / "split.gguf"));
  for (size_t i = 0; i < parts.size(); ++i) {
    // The second holds a tensor that is larger by itself.
    EXPECT_EQ(fs::file_size(parts[i]) > kPart, i == 1) << i;
  }
  {
    const GgufFile split(parts[2]);
    for (const auto& [key, value] : whole.metadata().all()) {
      ASSERT_NE(split.metadata().find(key), nullptr) << key;
      EXPECT_EQ(split.metadata().find(key)->description(), value.description());
    }
    EXPECT_EQ(split.metadata().find("split.no")->description(), "u16 0");
    EXPECT_EQ(split.metadata().find("split.count")->description(), "u16 4");
    EXPECT_EQ(split.metadata().find("split.tensors.count")->description(), "i32 5");
    ASSERT_EQ(split.tensors().size(), whole.tensors().size());
    for (size_t i = 0; i < whole.tensors().size(); ++i) {
      const GgufTensor &one = whole.tensors()[i], &other = split.tensors()[i];
      EXPECT_EQ(one.name, other.name);
      EXPECT_EQ(one.shape(), other.shape());
      EXPECT_TRUE(std::ranges::equal(one.bytes, other.bytes)) << one.name;
    }
  }
  // Nothing is written over what is there, and what fails leaves nothing.
  const auto files = [&] {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator());
  };
  const auto before = files();
  EXPECT_THAT(error_of([&] {
                write_split_gguf(folder_ / "split.gguf", example_metadata(), tensors, kPart);
              }),
              HasSubstr("split-00001-of-00004.gguf: is there already"));
  std::vector<GgufTensorToWrite> failing = tensors;
  failing.back().bytes = []() -> GgufTensorToWrite::Bytes { throw Error("e", "no bytes"); };
  EXPECT_THAT(error_of([&] {
                write_split_gguf(folder_ / "other.gguf", example_metadata(), failing, kPart);
              }),
              HasSubstr("no bytes"));
  EXPECT_EQ(files(), before);
  for (size_t missing = 0; missing < parts.size(); ++missing) {
    fs::rename(parts[missing], folder_ / "away");
    EXPECT_THAT(
        error_of([&] { GgufFile file(parts[missing == 0 ? 1 : 0]); }),
        HasSubstr(parts[missing].filename().string() + ": is missing: the model has 4 parts (put"));
    // A directory without its first part, too.
    if (missing == 0) {
      EXPECT_THAT(error_of([&] { GgufFile file(parts[0]); }), HasSubstr("has 4 parts"));
    }
    fs::rename(folder_ / "away", parts[missing]);
  }
}

TEST_F(GgufTest, FindsTheFileThatAPathMeans) {
  EXPECT_EQ(find_gguf(folder_.path()), std::nullopt);
  write_example(path_);
  EXPECT_EQ(find_gguf(folder_.path()), path_);
  EXPECT_EQ(find_gguf(path_), path_);
  fs::copy_file(path_, folder_ / "blob");
  EXPECT_EQ(find_gguf(folder_ / "blob"), folder_ / "blob");
  write_fast(folder_ / "config.json", "{}");
  EXPECT_EQ(find_gguf(folder_.path()), std::nullopt);
  EXPECT_EQ(find_gguf(folder_ / "config.json"), std::nullopt);
}

TEST_F(GgufTest, HostileFields) {
  const auto header = [&](uint32_t version, uint64_t tensors, uint64_t keys) {
    Forged file;
    file.version = version;
    file.tensor_count = tensors;
    file.key_count = keys;
    return open_error(file);
  };
  EXPECT_EQ(header(2, 0, 0), "no error");
  EXPECT_EQ(header(3, 0, 0), "no error");
  EXPECT_THAT(open_error(""), AllOf(HasSubstr("model.gguf"), HasSubstr("magic")));
  EXPECT_THAT(open_error("ELF?12345678"), HasSubstr("is not a GGUF file (it begins with bytes 45"));
  EXPECT_THAT(header(1, 0, 0), HasSubstr("version 1"));
  EXPECT_THAT(header(0x03000000, 0, 0), HasSubstr("big-endian"));
  EXPECT_THAT(header(3, 0, 60000), HasSubstr("the number of keys is 60000"));
  EXPECT_THAT(header(3, 0, ~uint64_t{0}), HasSubstr("more than"));
  EXPECT_THAT(header(3, 1000, 0), HasSubstr("the number of tensors is 1000"));
  EXPECT_THAT(header(3, ~uint64_t{0}, 0), HasSubstr("more than"));

  const auto with_key = [&](GgufKind kind, const std::string& value) {
    return open_error(Forged().key("k", kind, value));
  };
  EXPECT_EQ(with_key(GgufKind::u8, "x"), "no error");
  EXPECT_THAT(with_key(static_cast<GgufKind>(13), "x"), HasSubstr("key 'k': no value type 13"));
  EXPECT_THAT(with_key(GgufKind::string, raw(uint64_t{1} << 63)), HasSubstr("key 'k'"));
  EXPECT_THAT(with_key(GgufKind::string, raw(~uint64_t{0})), HasSubstr("key 'k'"));
  const auto array = [&](GgufKind element, uint64_t count, const std::string& value) {
    return with_key(GgufKind::array, raw(element) + raw(count) + value);
  };
  EXPECT_EQ(array(GgufKind::u8, 3, "abc"), "no error");
  EXPECT_THAT(array(GgufKind::u64, uint64_t{1} << 61, "abc"), HasSubstr("number of elements"));
  EXPECT_THAT(array(GgufKind::string, uint64_t{1} << 61, "abc"), HasSubstr("number of elements"));
  EXPECT_THAT(array(GgufKind::string, 1, raw(uint64_t{1} << 40)), HasSubstr("key 'k'"));
  std::string nested = raw(GgufKind::array) + raw(uint64_t{1});
  EXPECT_EQ(with_key(GgufKind::array, nested + raw(GgufKind::u8) + raw(uint64_t{0})), "no error");
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += nested;
  EXPECT_THAT(with_key(GgufKind::array, deep), HasSubstr("nested more than"));
  EXPECT_THAT(open_error(Forged().key("k", GgufKind::u8, "x").key("k", GgufKind::u8, "x")),
              HasSubstr("key 'k' occurs twice"));
  EXPECT_THAT(
      open_error(Forged().key("\x1b[2J" + std::string(1000, 'n'), static_cast<GgufKind>(99), "")),
      AllOf(HasSubstr("nnn..."), testing::Not(HasSubstr("\x1b"))));
  const auto alignment = [&](uint32_t value) {
    return open_error(Forged().key("general.alignment", GgufKind::u32, raw(value)));
  };
  EXPECT_EQ(alignment(64), "no error");
  EXPECT_THAT(alignment(0), HasSubstr("general.alignment"));
  EXPECT_THAT(alignment(24), HasSubstr("power of two"));
  EXPECT_THAT(alignment(1u << 31), HasSubstr("general.alignment"));

  const auto with_tensor = [&](std::vector<uint64_t> sizes, uint32_t type, uint64_t offset) {
    Forged file;
    file.tensor("t", std::move(sizes), type, offset).data = std::string(256, 'x');
    return open_error(file);
  };
  EXPECT_EQ(with_tensor({64}, 0, 0), "no error");
  EXPECT_EQ(with_tensor({}, 0, 0), "no error");
  EXPECT_THAT(with_tensor({65}, 0, 0),
              HasSubstr("tensor 't': 260 bytes at offset 0 leave the 256"));
  EXPECT_THAT(with_tensor({64}, 0, 32), HasSubstr("offset 32"));
  EXPECT_THAT(with_tensor({1}, 0, 8), HasSubstr("not a multiple of the alignment 32"));
  EXPECT_THAT(with_tensor({1}, 0, ~uint64_t{31}), HasSubstr("leave"));
  EXPECT_THAT(with_tensor({1}, 4, 0), HasSubstr("unknown type 4"));
  EXPECT_THAT(with_tensor({1}, 4000000000u, 0), HasSubstr("unknown type"));
  EXPECT_THAT(with_tensor({0}, 0, 0), HasSubstr("impossible size 0"));
  EXPECT_THAT(with_tensor({~uint64_t{0}}, 0, 0), HasSubstr("impossible size"));
  EXPECT_THAT(with_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0), HasSubstr("impossible"));
  EXPECT_THAT(with_tensor({uint64_t{1} << 62}, 0, 0), HasSubstr("impossible"));
  EXPECT_THAT(with_tensor({1, 1, 1, 1, 1}, 0, 0), HasSubstr("5 dimensions"));
  EXPECT_THAT(with_tensor({33}, 2, 0), HasSubstr("whole blocks of 32 (Q4_0)"));
  Forged two;
  two.tensor("a", {16}, 0, 0).tensor("b", {8}, 0, 32).data = std::string(64, 'x');
  EXPECT_THAT(open_error(two), HasSubstr("tensors 'a' and 'b' of part 1 overlap"));
  Forged twice;
  twice.tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).data = std::string(64, 'x');
  EXPECT_THAT(open_error(twice), HasSubstr("two tensors are named 'a'"));
}

// Each is an Error, never a crash, and names the file.
TEST_F(GgufTest, TruncationAtEveryByte) {
  write_example(path_);
  const std::string bytes = read_file(path_);
  uint64_t end = 0;
  {
    const GgufFile file(path_);
    const std::byte* start = file.file_of(file.tensors()[0])->bytes().data();
    for (const GgufTensor& each : file.tensors()) {
      end = std::max(end, static_cast<uint64_t>(each.bytes.data() + each.bytes.size() - start));
    }
  }
  for (size_t length = 0; length < end; ++length) {
    ASSERT_THAT(open_error(std::string_view(bytes).substr(0, length)), HasSubstr("model.gguf"))
        << length;
  }
  EXPECT_EQ(open_error(std::string_view(bytes).substr(0, end)), "no error");
}

TEST_F(GgufTest, AnyChangedByteIsAnErrorOrAFile) {
  write_example(path_);
  const std::string bytes = read_file(path_);
  Random random(3, "changes");
  for (int i = 0; i < 2000; ++i) {
    std::string changed = bytes;
    for (int k = 0; k <= i % 3; ++k) {
      const auto at = static_cast<size_t>(random.below(bytes.size()));
      changed[at] = static_cast<char>(random.below(256));
    }
    open_error(changed);
  }
}

}  // namespace
}  // namespace pronghorn
