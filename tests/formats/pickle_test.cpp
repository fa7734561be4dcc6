// Files of torch.save: what tensors need is read, all else is refused by name.
#include "formats/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>

#include "base/random.h"
#include "formats/checkpoint_reader.h"
#include "formats/json.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/torch_file.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::kEmptyOrderedDict;
using testing_support::pickled;
using testing_support::raw;
using testing_support::torch_pickle;
using testing_support::TorchTensor;
using testing_support::write_fast;
using testing_support::ZipPart;
using testing_support::zipped;

std::string floats(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes += raw(value);
  return bytes;
}

class PickleTest : public testing::Test {
 protected:
  std::string error(std::string_view bytes) {
    write_fast(path_, bytes);
    return error_of([&] { TorchFile file(path_); });
  }
  // What opening an archive with this pickle and six floats under the key "0" says.
  std::string error_of_pickle(const std::string& pickle) {
    return error(zipped({{"m/data.pkl", pickle}, {"m/data/0", floats({1, 2, 3, 4, 5, 6})}}));
  }
  std::vector<float> numbers(const TorchFile& file, const std::string& name) {
    const SafetensorsEntry& entry = file.entries().at(name);
    std::vector<float> out(static_cast<size_t>(entry.elements()));
    to_f32(entry, out.data());
    return out;
  }

  Folder folder_;
  const std::filesystem::path path_ = folder_ / "pytorch_model.bin";
  const TorchTensor good_{"w", "FloatStorage", "0", 6, 0, {2, 3}, {3, 1}};
};

TEST_F(PickleTest, ReadsTensorsOfAnArchive) {
  TorchTensor transposed = good_, part = good_, scalar = good_, empty = good_, half = good_;
  transposed.name = "t";
  transposed.shape = {3, 1, 2};
  transposed.strides = {1, INT64_MAX, 3};
  part.name = "part";
  part.offset = 3;
  part.shape = {1, 3};
  part.strides = {77, 1};  // of an axis of one
  scalar.name = "scalar";
  scalar.offset = 5;
  scalar.shape = scalar.strides = {};
  empty.name = "empty";
  empty.shape = {0, 4};
  empty.strides = {4, 1};
  half = {"half", "BFloat16Storage", "1", 2, 0, {2}, {1}};
  for (const bool deflated : {false, true}) {
    write_fast(path_,
               zipped({{"archive/data.pkl",
                        torch_pickle({good_, transposed, part, scalar, empty, half}), deflated},
                       {"archive/byteorder", "little", false},
                       {"archive/data/0", floats({1, 2, 3, 4, 5, 6}), deflated},
                       {"archive/data/1", raw(uint16_t{0x3f80}) + raw(uint16_t{0xc020}), deflated},
                       {"archive/version", "3\n", false}}));
    const TorchFile file(path_);
    EXPECT_EQ(file.entries().size(), 6u);
    EXPECT_EQ(file.entries().at("w").dtype, "F32");
    EXPECT_THAT(file.entries().at("w").shape, ElementsAre(2, 3));
    EXPECT_EQ(file.entries().at("w").file != nullptr, !deflated);  // not copied
    EXPECT_THAT(numbers(file, "w"), ElementsAre(1, 2, 3, 4, 5, 6));
    EXPECT_THAT(numbers(file, "t"), ElementsAre(1, 4, 2, 5, 3, 6));
    EXPECT_THAT(numbers(file, "part"), ElementsAre(4, 5, 6));
    EXPECT_THAT(numbers(file, "scalar"), ElementsAre(6));
    EXPECT_TRUE(numbers(file, "empty").empty());
    EXPECT_EQ(file.entries().at("half").dtype, "BF16");
    EXPECT_THAT(numbers(file, "half"), ElementsAre(1, -2.5));
  }
}

// An element of any dtype that the goldens have.
double element(const SafetensorsEntry& entry, int64_t index) {
  const auto width = static_cast<size_t>(safetensors_dtype_bytes(entry.dtype));
  SafetensorsEntry one = entry;
  one.shape = {1};
  one.bytes = entry.bytes.subspan(static_cast<size_t>(index) * width, width);
  int64_t whole = 0;
  if (entry.dtype == "I64" || entry.dtype == "U8" || entry.dtype == "BOOL") {
    std::memcpy(&whole, one.bytes.data(), width);
    return static_cast<double>(whole);
  }
  float value = 0;
  to_f32(one, &value);
  return double{value};
}

// scripts/make_torch_goldens.py has torch itself write them.
TEST(TorchGoldens, AreReadAsTorchDoes) {
  const std::filesystem::path folder =
      std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden/torch";
  const nlohmann::json expected = parse_json(read_file(folder / "expected.json"), "expected.json");
  ASSERT_EQ(expected.size(), 5u);
  for (const auto& [name, tensors] : expected.items()) {
    const TorchFile file(folder / name);
    EXPECT_EQ(file.entries().size(), tensors.size()) << name;
    for (const auto& [key, tensor] : tensors.items()) {
      const auto found = file.entries().find(key);
      ASSERT_NE(found, file.entries().end()) << name << " " << key;
      const SafetensorsEntry& entry = found->second;
      EXPECT_EQ(entry.dtype, tensor.at("dtype")) << name << " " << key;
      EXPECT_EQ(nlohmann::json(entry.shape), tensor.at("shape")) << name << " " << key;
      const auto values = tensor.at("values").get<std::vector<double>>();
      ASSERT_EQ(entry.elements(), std::ssize(values)) << name << " " << key;
      for (int64_t i = 0; i < entry.elements(); ++i) {
        EXPECT_EQ(static_cast<float>(element(entry, i)),
                  static_cast<float>(values[static_cast<size_t>(i)]))
            << name << " " << key << " " << i;
      }
    }
  }
}

TEST_F(PickleTest, ReadsTheFormBeforeArchives) {
  const std::string magic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
  const auto old = [&](const std::string& endian, const std::string& keys) {
    return magic + "\x80\x02M\xe9\x03." + "\x80\x02}" + pickled("little_endian") + endian + "s." +
           torch_pickle({good_}) + "\x80\x02](" + keys + "e." + raw(int64_t{6}) +
           floats({1, 2, 3, 4, 5, 6});
  };
  write_fast(path_, old("\x88", pickled("0")));
  EXPECT_THAT(numbers(TorchFile(path_), "w"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(error(old("\x89", pickled("0"))), HasSubstr("little endian"));
  EXPECT_THAT(error(old("\x88", pickled("0") + pickled("0"))), HasSubstr("ends before"));
  EXPECT_THAT(error(old("\x88", pickled("7"))), HasSubstr("'7'"));
  EXPECT_THAT(error(old("\x88", "")), HasSubstr("no storage '0'"));
}

TEST_F(PickleTest, FindsTheDictionaryOfTensors) {
  const std::string dict = "}" + pickled("w") + pickled(good_) + "s";
  EXPECT_EQ(error_of_pickle("\x80\x02}" + pickled("epoch") + pickled(3) + "s" +
                            pickled("state_dict") + dict + "s."),
            "no error");
  EXPECT_EQ(error_of_pickle("\x80\x02" + dict + pickled("epoch") + pickled(3) + "s."), "no error");
  EXPECT_EQ(TorchFile(path_).entries().size(), 1u);
  EXPECT_THAT(error_of_pickle("\x80\x02}."), HasSubstr("no dictionary of tensors"));
  EXPECT_THAT(error_of_pickle("\x80\x02K\x01."), HasSubstr("no dictionary of tensors"));
  // As Python 2 wrote ordered dictionaries.
  EXPECT_EQ(error_of_pickle("\x80\x02"
                            "ccollections\nOrderedDict\n](](" +
                            pickled("w") + pickled(good_) + "ee\x85R."),
            "no error");
}

// What makes pickles dangerous, and everything else that is not needed.
TEST_F(PickleTest, RefusesByName) {
  const auto refused = [&](const std::string& pickle, const std::string& what) {
    EXPECT_THAT(error_of_pickle(pickle),
                AllOf(HasSubstr("pytorch_model.bin"), HasSubstr("data.pkl: byte "), HasSubstr(what),
                      HasSubstr("nothing is executed")));
  };
  refused(
      "\x80\x02"
      "cposix\nsystem\n" +
          pickled("id") + "\x85R.",
      "'posix.system'");
  refused(
      "\x80\x02"
      "cbuiltins\neval\n.",
      "'builtins.eval'");
  refused(
      "\x80\x02"
      "ctorch\nload\n.",
      "'torch.load'");
  refused(
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\nx",
      "opcode 0x78 'x'");
  refused(
      "\x80\x04"
      "\x8c\x02os\x8c\x06system\x93.",
      "'os.system'");
  refused(
      "\x80\x02"
      "c\x1b[31m\nx\n.",
      R"('\x1b[31m.x')");
  refused("\x80\x02(iposix\nsystem\n.", "opcode 0x69 'i'");
  refused(
      "\x80\x02"
      ")\x81.",
      "opcode 0x81");
  refused("\x80\x09N.", "protocol 9");
  refused(
      "\x80\x02"
      "ctorch\nFloatStorage\n)R.",
      "a type of storage");
  refused(
      "\x80\x02"
      "K\x01)R.",
      "no function");
  refused("\x80\x02" + pickled("storage") + "Q.", "a reference");
  refused(
      "\x80\x02"
      "N}b.",
      "a dictionary");
  refused("\x80\x02" + std::string("\x8a\x09") + std::string(9, '\1') + ".", "9 bytes");
}

TEST_F(PickleTest, RefusesWhatDoesNotHoldTogether) {
  const auto wrong = [&](const std::string& pickle, const std::string& what) {
    EXPECT_THAT(error_of_pickle(pickle), HasSubstr(what));
  };
  wrong("", "too early");
  wrong("\x80", "too early");
  wrong("\x80\x02", "too early");
  wrong("\x80\x02X\xff\xff\xff\xff", "too early");
  wrong(
      "\x80\x02"
      "cposix",
      "ends in a name");
  wrong("\x80\x02.", "one value");
  wrong("\x80\x02NN.", "one value");
  wrong("\x80\x02(N.", "one value");
  wrong("\x80\x02t.", "no mark");
  wrong("\x80\x02(\x85.", "empty stack");
  wrong("\x80\x02q\x01.", "empty stack");
  wrong("\x80\x02h\x01.", "remembered as 1");
  wrong("\x80\x02}(Nu.", "key without a value");
  wrong("\x80\x02](NNu.", "a dictionary");
  wrong("\x80\x02}Na.", "a list");
}

TEST_F(PickleTest, RefusesTensorsThatLeaveTheirStorage) {
  const auto with = [&](auto change) {
    TorchTensor tensor = good_;
    change(tensor);
    return error_of_pickle(torch_pickle({tensor}));
  };
  EXPECT_EQ(with([](TorchTensor&) {}), "no error");
  EXPECT_THAT(with([](TorchTensor& t) { t.offset = 1; }),
              AllOf(HasSubstr("tensor 'w'"), HasSubstr("6 elements")));
  EXPECT_THAT(with([](TorchTensor& t) { t.shape = {3, 3}; }), HasSubstr("[3, 3]"));
  EXPECT_THAT(with([](TorchTensor& t) { t.strides = {4, 1}; }), HasSubstr("[4, 1]"));
  EXPECT_THAT(with([](TorchTensor& t) {
                t.shape = {2000000000, 2000000000, 2000000000};
                t.strides = {0, 0, 0};
              }),
              HasSubstr("leaves"));
  EXPECT_THAT(with([](TorchTensor& t) {
                t.shape = {7};
                t.strides = {0};
              }),
              HasSubstr("leaves"));
  EXPECT_THAT(with([](TorchTensor& t) { t.offset = -1; }), HasSubstr("arguments"));
  EXPECT_THAT(with([](TorchTensor& t) { t.shape = {-2, 3}; }), HasSubstr("no size"));
  EXPECT_THAT(with([](TorchTensor& t) { t.strides = {1}; }), HasSubstr("fewer strides"));
  EXPECT_THAT(with([](TorchTensor& t) { t.elements = 5; }), HasSubstr("has 24 bytes"));
  EXPECT_THAT(with([](TorchTensor& t) { t.elements = -6; }), HasSubstr("negative"));
  EXPECT_THAT(with([](TorchTensor& t) { t.storage = "DoubleStorage"; }), HasSubstr("24 bytes"));
  EXPECT_THAT(with([](TorchTensor& t) { t.storage = "ComplexFloatStorage"; }),
              HasSubstr("'torch.ComplexFloatStorage'"));
  EXPECT_THAT(with([](TorchTensor& t) { t.key = "../0"; }), HasSubstr("'m/data/../0'"));
  EXPECT_THAT(with([](TorchTensor& t) { t.key = std::string(1000, 'k'); }), HasSubstr("too long"));
}

TEST_F(PickleTest, RefusesBrokenArchives) {
  const std::string pickle = torch_pickle({good_});
  const std::string data = floats({1, 2, 3, 4, 5, 6});
  EXPECT_THAT(error("PK\x03\x04"), HasSubstr("directory is missing"));
  EXPECT_THAT(error(""), HasSubstr("not a file of torch.save"));
  EXPECT_THAT(error("\x80\x02N."), HasSubstr("not a file of torch.save"));
  EXPECT_THAT(error(zipped({{"x", "y"}})), HasSubstr("no data.pkl"));
  EXPECT_THAT(error(zipped({{"a/data.pkl", pickle}, {"b/data.pkl", pickle}})),
              HasSubstr("two pickles"));
  EXPECT_THAT(error(zipped({{"a/data.pkl", pickle}, {"a/byteorder", "big"}})), HasSubstr("'big'"));
  EXPECT_THAT(error(zipped({{"a/data.pkl", pickle}})), HasSubstr("'a/data/0'"));
  EXPECT_THAT(error(zipped({{"a/data.pkl", pickle}, {"a/data/0", data}, {"a/data/0", data}})),
              HasSubstr("twice"));
  // An entry of a few bytes that would grow to a gigabyte.
  std::string bomb = zipped({{"a/data.pkl", std::string(64 << 20, 'N'), true}});
  EXPECT_THAT(error(bomb), HasSubstr("would grow"));
  // The directory says deflated bytes are more than they are, or others.
  std::string damaged = zipped({{"a/data.pkl", pickle, true}, {"a/data/0", data}});
  damaged[damaged.find("a/data.pkl") + 12] ^= 0x55;
  EXPECT_THAT(error(damaged), HasSubstr("is damaged"));
}

// Every truncation and thousands of damaged files end in an error or in tensors that can be read.
TEST_F(PickleTest, DamagedFilesNeverCrash) {
  TorchTensor transposed = good_;
  transposed.name = "t";
  transposed.shape = {3, 2};
  transposed.strides = {1, 3};
  const std::string good = zipped({{"m/data.pkl", torch_pickle({good_, transposed})},
                                   {"m/data/0", floats({1, 2, 3, 4, 5, 6}), true}});
  for (size_t length = 0; length < good.size(); ++length) {
    write_fast(path_, std::string_view(good).substr(0, length));
    EXPECT_THROW(TorchFile{path_}, Error) << length;
  }
  Random random(7, "pickle");
  int refused = 0;
  constexpr int kMutations = 1000;
  for (int i = 0; i < kMutations; ++i) {
    std::string bad = good;
    for (uint64_t n = 1 + random.below(3); n > 0; --n) {
      bad[random.below(bad.size())] = static_cast<char>(random.bits());
    }
    write_fast(path_, bad);
    try {
      const TorchFile file(path_);
      for (const auto& [name, entry] : file.entries()) {
        if (entry.dtype == "F32") numbers(file, name);
      }
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, kMutations / 3);
}

// Lists that contain themselves, deep nesting, and lists that are copied again and again.
TEST_F(PickleTest, HostilePicklesEndSoon) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(error_of_pickle("\x80\x02]q\x01h\x01"
                              "a."),
              HasSubstr("no dictionary"));
  EXPECT_THAT(error_of_pickle("\x80\x02}q\x01" + pickled("state_dict") + "h\x01s."),
              HasSubstr("no dictionary"));
  std::string deep = "\x80\x02N";
  deep.append(1000000, '\x85');
  EXPECT_THAT(error_of_pickle(deep + "."), HasSubstr("no dictionary"));
  EXPECT_THAT(error_of_pickle("\x80\x02" + std::string(3000000, '(')), HasSubstr("too early"));
  EXPECT_THAT(error_of_pickle("\x80\x02" + std::string(3000000, ')')), HasSubstr("values"));
  // A list of 10^5 pairs, of which a dictionary is made again and again.
  std::string copies =
      "\x80\x02"
      "ccollections\nOrderedDict\nq\x01](";
  for (int i = 0; i < 100000; ++i) copies += "NN\x86";
  copies += "e\x85q\x02";
  for (int i = 0; i < 100000; ++i) copies += "h\x01h\x02R";
  EXPECT_THAT(error_of_pickle(copies + "."), HasSubstr("items"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(PickleTest, ShardsAreFoundThroughTheirIndex) {
  const auto shard = [&](const std::string& name, const std::string& tensor, float value) {
    TorchTensor one{tensor, "FloatStorage", "0", 1, 0, {1}, {1}};
    write_fast(folder_ / name,
               zipped({{"m/data.pkl", torch_pickle({one})}, {"m/data/0", raw(value)}}));
  };
  shard("pytorch_model-00001-of-00002.bin", "a", 1);
  shard("pytorch_model-00002-of-00002.bin", "b", 2);
  write_fast(folder_ / "pytorch_model.bin.index.json",
             R"({"metadata": null, "weight_map": {"a": "pytorch_model-00001-of-00002.bin",
                 "b": "pytorch_model-00002-of-00002.bin"}})");
  const CheckpointReader reader(folder_.path());
  EXPECT_THAT(reader.names(), ElementsAre("a", "b"));
  float value = 0;
  to_f32(reader.at("b"), &value);
  EXPECT_EQ(value, 2);
}

}  // namespace
}  // namespace pronghorn
