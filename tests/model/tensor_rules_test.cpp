// Tensor rules: each transform on small numbers, in both directions; names; and a family of which
// nothing is published as we hold it.
#include "model/tensor_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "model/checkpoint_tensors.h"
#include "model/families/mapping.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using testing_support::Folder;

// A tensor whose elements of `element` bytes are numbered from `first` in their first byte.
struct Numbered {
  Numbered(std::string dtype, StoredShape shape, int first = 0) {
    const int64_t element = safetensors_dtype_bytes(dtype);
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    bytes.resize(static_cast<size_t>(count * element));
    for (int64_t i = 0; i < count; ++i) {
      bytes[static_cast<size_t>(i * element)] = static_cast<std::byte>(first + i);
    }
    tensor = {std::move(dtype), std::move(shape), bytes, nullptr};
  }
  std::vector<std::byte> bytes;
  StoredTensor tensor;
};

std::vector<int> numbers(const StoredTensor& tensor) {
  const auto element = static_cast<size_t>(safetensors_dtype_bytes(tensor.dtype));
  std::vector<int> values;
  for (size_t i = 0; i < tensor.bytes.size(); i += element) {
    values.push_back(std::to_integer<int>(tensor.bytes[i]));
  }
  return values;
}

Shapes shapes_of(const StoredTensors& tensors) {
  Shapes shapes;
  for (const StoredTensor& tensor : tensors) shapes.push_back(tensor.shape);
  return shapes;
}

// Published tensors through the transform to ours of these shapes; back they must be the same.
StoredTensors through(const Transform& transform, const StoredTensors& published,
                      const Shapes& ours) {
  EXPECT_EQ(transform.published_shapes(ours, published.size()), shapes_of(published));
  StoredTensors result = transform.forward(published, ours);
  EXPECT_EQ(shapes_of(result), ours);
  const StoredTensors back = transform.inverse(result, published.size());
  EXPECT_EQ(shapes_of(back), shapes_of(published));
  for (size_t i = 0; i < std::min(back.size(), published.size()); ++i) {
    EXPECT_EQ(back[i].dtype, published[i].dtype);
    EXPECT_TRUE(std::ranges::equal(back[i].bytes, published[i].bytes)) << "tensor " << i;
  }
  return result;
}

class TransformTest : public testing::TestWithParam<const char*> {
 protected:
  Numbered make(StoredShape shape, int first = 0) { return {GetParam(), std::move(shape), first}; }
};

TEST_P(TransformTest, RenamesAndSqueezesWithoutMovingBytes) {
  const Numbered a = make({2, 1, 3});
  const StoredTensors same = through({}, {a.tensor}, {{2, 1, 3}});
  EXPECT_EQ(same[0].bytes.data(), a.bytes.data());
  const StoredTensors result = through(transforms::squeeze(1), {a.tensor}, {{2, 3}});
  EXPECT_EQ(result[0].bytes.data(), a.bytes.data());
}

TEST_P(TransformTest, FoldsAndRepeatsWithoutMovingBytes) {
  const Numbered flat = make({6, 2}), heads = make({3, 2, 2});
  EXPECT_EQ(through(transforms::unfold(3), {flat.tensor}, {{3, 2, 2}})[0].bytes.data(),
            flat.tensor.bytes.data());
  EXPECT_EQ(through(transforms::fold(3), {heads.tensor}, {{6, 2}})[0].bytes.data(),
            heads.tensor.bytes.data());
  EXPECT_THROW(transforms::unfold(3).published_shapes({{2, 3}}, 1), Error);
  EXPECT_THROW(transforms::unfold(3).published_shapes({{3}}, 1), Error);
  const StoredTensors once = through(transforms::repeated(), {flat.tensor, flat.tensor}, {{6, 2}});
  ASSERT_EQ(once.size(), 1u);
  EXPECT_EQ(once[0].bytes.data(), flat.tensor.bytes.data());
  EXPECT_THROW(transforms::repeated().published_shapes({{1}, {1}}, 2), Error);
}

TEST_P(TransformTest, Transposes) {
  const Numbered a = make({2, 3}), b = make({2, 2, 3});
  EXPECT_THAT(numbers(through(transforms::transpose(), {a.tensor}, {{3, 2}})[0]),
              ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_THAT(numbers(through(transforms::transpose(), {b.tensor}, {{2, 3, 2}})[0]),
              ElementsAre(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11));
}

TEST_P(TransformTest, SplitsRowsWithoutMovingBytes) {
  const Numbered a = make({4, 2}), bias = make({4});
  const StoredTensors parts = through(transforms::split(), {a.tensor}, {{1, 2}, {3, 2}});
  EXPECT_THAT(numbers(parts[1]), ElementsAre(2, 3, 4, 5, 6, 7));
  EXPECT_EQ(parts[0].bytes.data(), a.bytes.data());
  EXPECT_THAT(numbers(through(transforms::split(), {bias.tensor}, {{1}, {3}})[1]),
              ElementsAre(1, 2, 3));
}

TEST_P(TransformTest, SplitsAndJoinsGroups) {
  // Two heads with one row of the first tensor and two of the second each.
  const Numbered heads = make({6, 1}), stacked = make({2, 3, 1});
  const StoredTensors parts = through(transforms::split(0, 2), {heads.tensor}, {{2, 1}, {4, 1}});
  EXPECT_THAT(numbers(parts[0]), ElementsAre(0, 3));
  EXPECT_THAT(numbers(parts[1]), ElementsAre(1, 2, 4, 5));
  const StoredTensors inner =
      through(transforms::split(1), {stacked.tensor}, {{2, 1, 1}, {2, 2, 1}});
  EXPECT_THAT(numbers(inner[1]), ElementsAre(1, 2, 4, 5));

  const Numbered a = make({2, 2}), b = make({2, 2}, 4);
  EXPECT_THAT(numbers(through(transforms::join(), {a.tensor, b.tensor}, {{4, 2}})[0]),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(numbers(through(transforms::join(0, 2), {a.tensor, b.tensor}, {{4, 2}})[0]),
              ElementsAre(0, 1, 4, 5, 2, 3, 6, 7));
}

TEST_P(TransformTest, StacksAndUnstacks) {
  const Numbered a = make({2, 2}), b = make({2, 2}, 4), both = make({2, 2, 2});
  EXPECT_THAT(numbers(through(transforms::stack(), {a.tensor, b.tensor}, {{2, 2, 2}})[0]),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(numbers(through(transforms::unstack(), {both.tensor}, {{2, 2}, {2, 2}})[1]),
              ElementsAre(4, 5, 6, 7));
  const Numbered norms = make({2, 3});
  EXPECT_THAT(numbers(through(transforms::unstack(), {norms.tensor}, {{3}, {3}})[1]),
              ElementsAre(3, 4, 5));
}

TEST_P(TransformTest, SwapsHalvesOfRows) {
  const Numbered a = make({2, 4}), vector = make({2});
  EXPECT_THAT(numbers(through(transforms::swap_halves(), {a.tensor}, {{2, 4}})[0]),
              ElementsAre(2, 3, 0, 1, 6, 7, 4, 5));
  if (std::string_view(GetParam()) != "U8") {
    EXPECT_THAT(numbers(through(transforms::swap_halves(), {vector.tensor}, {{2}})[0]),
                ElementsAre(1, 0));
  }
  EXPECT_THROW(transforms::swap_halves().published_shapes({{2, 3}}, 1), Error);
}

TEST_P(TransformTest, MovesRotaryPairs) {
  const Numbered rows = make({8, 1}), bias = make({8}), partly = make({10});
  EXPECT_THAT(numbers(through(transforms::rope_pairs(2), {rows.tensor}, {{8, 1}})[0]),
              ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(numbers(through(transforms::rope_pairs(1), {bias.tensor}, {{8}})[0]),
              ElementsAre(0, 2, 4, 6, 1, 3, 5, 7));
  EXPECT_THAT(numbers(through(transforms::rope_pairs(2, 4), {partly.tensor}, {{10}})[0]),
              ElementsAre(0, 2, 1, 3, 4, 5, 7, 6, 8, 9));
  // The other way round, of some of the rows.
  EXPECT_THAT(numbers(through(transforms::rope_halves(2, 4), {rows.tensor}, {{8, 1}})[0]),
              ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(numbers(through(transforms::rope_halves(1, 6, 3), {partly.tensor}, {{10}})[0]),
              ElementsAre(0, 1, 2, 3, 6, 4, 7, 5, 8, 9));
  EXPECT_THROW(transforms::rope_halves(1, 6, 5).published_shapes({{10}}, 1), Error);
  EXPECT_THROW(transforms::rope_halves(2, 5).published_shapes({{10}}, 1), Error);
}

TEST_P(TransformTest, DealsGroupsOut) {
  const Numbered rows = make({6, 1}), other = make({3}), columns = make({2, 6});
  EXPECT_THAT(numbers(through(transforms::deal(2, 3), {rows.tensor}, {{6, 1}})[0]),
              ElementsAre(0, 3, 1, 4, 2, 5));
  const StoredTensors second =
      through(transforms::deal(3, 2, 1), {other.tensor, rows.tensor}, {{3}, {6, 1}});
  EXPECT_THAT(numbers(second[0]), ElementsAre(0, 1, 2));
  EXPECT_THAT(numbers(second[1]), ElementsAre(0, 2, 4, 1, 3, 5));
  EXPECT_THAT(numbers(through(transforms::deal_columns(3, 2), {columns.tensor}, {{2, 6}})[0]),
              ElementsAre(0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11));
  EXPECT_THROW(transforms::deal(2, 2).published_shapes({{6, 1}}, 1), Error);
  EXPECT_THROW(transforms::deal_columns(2, 2).published_shapes({{4, 6}}, 1), Error);
}

TEST_P(TransformTest, FollowOneAnother) {
  // One matrix [in, 2 out] with the rows of two heads side by side, as GPT-2 and GPT-NeoX at once.
  const Numbered a = make({2, 4});
  const StoredTensors parts =
      through(transforms::transpose().then(transforms::split(0, 2)), {a.tensor}, {{2, 2}, {2, 2}});
  EXPECT_THAT(numbers(parts[0]), ElementsAre(0, 4, 2, 6));
  EXPECT_THAT(numbers(parts[1]), ElementsAre(1, 5, 3, 7));
  const Numbered b = make({2, 1, 3}), c = make({2, 1, 3}, 6);
  EXPECT_THAT(numbers(through(transforms::squeeze(1).then(transforms::stack()),
                              {b.tensor, c.tensor}, {{2, 2, 3}})[0]),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
}

// An element of one byte stands for rows of any encoding.
INSTANTIATE_TEST_SUITE_P(Dtypes, TransformTest, testing::Values("F32", "BF16", "U8"),
                         [](const auto& test) { return test.param; });

TEST(Transforms, AddInF32) {
  const std::vector<float> values = {-0.5f, 0.0f, 0.25f};
  const StoredTensor f32{"F32", {3}, std::as_bytes(std::span(values)), nullptr};
  const StoredTensors result = through(transforms::plus(1), {f32}, {{3}});
  std::vector<float> sums(3);
  std::memcpy(sums.data(), result[0].bytes.data(), result[0].bytes.size());
  EXPECT_THAT(sums, ElementsAre(0.5f, 1.0f, 1.25f));
  const std::vector<uint16_t> halves = {0x3F80, 0xBF00};  // 1 and -0.5 in bf16
  const StoredTensor bf16{"BF16", {2}, std::as_bytes(std::span(halves)), nullptr};
  std::memcpy(sums.data(), transforms::plus(1).forward({bf16}, {{2}})[0].bytes.data(), 8);
  EXPECT_THAT(sums, ElementsAre(2.0f, 0.5f, 1.25f));
}

std::vector<float> f32s(const StoredTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

StoredTensor f32_tensor(const std::vector<float>& values) {
  return {"F32", {std::ssize(values)}, std::as_bytes(std::span(values)), nullptr};
}

TEST(Transforms, TakeLogarithmsOfDecays) {
  const Transform log = transforms::log_of_negated();
  // Exact there and back where logarithms are as close together as the numbers.
  const std::vector<float> near_one = {-1.0f, -0.7f, -1.3f, -1.6f, -0.0f};
  const std::vector<float> logs = f32s(through(log, {f32_tensor(near_one)}, {{5}})[0]);
  EXPECT_EQ(logs[0], 0.0f);
  EXPECT_FLOAT_EQ(logs[1], std::log(0.7f));
  EXPECT_EQ(logs[4], -std::numeric_limits<float>::infinity());
  std::vector<float> any, made;  // made: of logarithms, which are further apart than the numbers
  for (int i = 0; i < 1000; ++i) {
    any.push_back(-0.01f - 0.0161f * static_cast<float>(i));
    const float logarithm = 1.01f + 0.0025f * static_cast<float>(i);
    made.push_back(i % 2 == 0 ? logarithm : -logarithm);
  }
  const auto back = [&](const std::vector<float>& values) {
    return f32s(log.inverse(log.forward({f32_tensor(values)}, {{1000}}), 1)[0]);
  };
  const std::vector<float> again = back(any);
  for (size_t i = 0; i < any.size(); ++i) {
    // Half a unit in the last place of the logarithm, and of the number itself.
    const double most = 6e-8 * (1 + std::abs(std::log(-any[i])));
    EXPECT_NEAR(again[i] / static_cast<double>(any[i]), 1, most);
  }
  made = f32s(log.inverse({f32_tensor(made)}, 1)[0]);
  EXPECT_EQ(back(made), made);
  for (const float wrong :
       {1.0f, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const std::vector<float> one = {wrong};
    EXPECT_THAT([&] { log.forward({f32_tensor(one)}, {{1}}); },
                ThrowsMessage<Error>(HasSubstr("is not the negative of an exponential")));
  }
}

TEST(Transforms, TakeFactorsOut) {
  const std::vector<float> values = {2, 4, -6, 8};
  StoredTensor rows = f32_tensor(values);
  EXPECT_THAT(f32s(through(transforms::unscale({2}), {rows}, {{4}})[0]), ElementsAre(1, 2, -3, 4));
  rows.shape = {2, 2};
  EXPECT_THAT(f32s(through(transforms::unscale({2, 4}), {rows}, {{2, 2}})[0]),
              ElementsAre(1, 2, -1.5f, 2));
  EXPECT_THROW(transforms::unscale({1, 2, 3}).forward({rows}, {{2, 2}}), Error);
}

TEST(Transforms, MeetInF32IfTheirDtypesDiffer) {
  const std::vector<float> one = {3};
  const std::vector<uint16_t> half = {0x3F80};
  const StoredTensor a{"F32", {1}, std::as_bytes(std::span(one)), nullptr};
  const StoredTensor b{"BF16", {1}, std::as_bytes(std::span(half)), nullptr};
  const StoredTensors result = transforms::join().forward({a, b}, {{2}});
  EXPECT_EQ(result[0].dtype, "F32");
  std::vector<float> values(2);
  std::memcpy(values.data(), result[0].bytes.data(), 8);
  EXPECT_THAT(values, ElementsAre(3.0f, 1.0f));
}

TEST(Transforms, RefuseShapesThatDoNotFit) {
  using namespace transforms;
  EXPECT_THROW(transpose().published_shapes({{3}}, 1), Error);
  EXPECT_THROW(squeeze(3).published_shapes({{3, 2}}, 1), Error);
  EXPECT_THROW(split().published_shapes({{3, 2}, {3, 4}}, 1), Error);
  EXPECT_THROW(split(1).published_shapes({{3, 2}, {3, 4}}, 1), Error);  // rows are not whole
  EXPECT_THROW(split(0, 2).published_shapes({{3, 2}, {4, 2}}, 1), Error);
  EXPECT_THROW(join().published_shapes({{3, 2}}, 2), Error);
  EXPECT_THROW(join().published_shapes({{3, 2}, {3, 2}}, 2), Error);
  EXPECT_THROW(stack().published_shapes({{3, 2}}, 2), Error);
  EXPECT_THROW(unstack().published_shapes({{3, 2}, {2, 2}}, 1), Error);
  EXPECT_THROW(rope_pairs(2).published_shapes({{6, 2}}, 1), Error);  // heads of 3
  EXPECT_THROW(rope_pairs(4).published_shapes({{6, 2}}, 1), Error);
  EXPECT_THROW(rope_pairs(1, 8).published_shapes({{6, 2}}, 1), Error);
  // A renaming is of one tensor, and a split of one published tensor.
  EXPECT_THROW(Transform().published_shapes({{3}}, 2), Error);
  EXPECT_THROW(split().published_shapes({{3}, {3}}, 2), Error);
  // Whatever a block of numbers is, it is not transposed and a vector of it not cut.
  const std::vector<std::byte> blocks(36);
  const StoredTensor matrix{"Q4", {2, 32}, blocks, nullptr}, vector{"Q4", {64}, blocks, nullptr};
  EXPECT_THROW(transpose().forward({matrix}, {{32, 2}}), Error);
  EXPECT_THROW(split().forward({vector}, {{32}, {32}}), Error);
  EXPECT_EQ(split().forward({matrix}, {{1, 32}, {1, 32}})[1].bytes.data(), blocks.data() + 18);
}

using Names = std::vector<std::string>;

TEST(TensorRuleNames, StandForWhatTheStarsMatch) {
  const TensorRules rules = {{{{"layers.*.q.*", "layers.*.k.*"}, {"h.*.qk.*"}, transforms::split()},
                              {{"layers.0.norm"}, {"first_norm"}, {}},
                              {{"layers.*"}, {"h.*"}, {}}},
                             {"h.*.inv_freq"}};
  const auto bound =
      bind_rules(rules, {"layers.1.k.bias", "layers.0.norm", "layers.1.q.bias", "layers.12.norm"});
  ASSERT_EQ(bound.size(), 3u);
  EXPECT_THAT(bound[0].ours, ElementsAre(2u, 0u));
  EXPECT_THAT(bound[0].published, ElementsAre("h.1.qk.bias"));
  EXPECT_THAT(bound[1].published, ElementsAre("first_norm"));
  EXPECT_THAT(bound[2].published, ElementsAre("h.12.norm"));
  EXPECT_TRUE(is_passed_over(rules, "h.3.inv_freq"));
  EXPECT_FALSE(is_passed_over(rules, "h.3.inv_freq.weight"));
  EXPECT_THAT(numbered("experts.#.up", 2), ElementsAre("experts.0.up", "experts.1.up"));
}

TEST(TensorRuleNames, RefuseRulesThatDoNotFit) {
  const auto bind = [](std::vector<TensorRule> rules, const Names& names) {
    return [=] { bind_rules({rules, {}}, names); };
  };
  EXPECT_THAT(bind({{{"a"}, {"b"}, {}}}, {"a", "c"}),
              ThrowsMessage<Error>(HasSubstr("none fits the tensor 'c'")));
  EXPECT_THAT(bind({{{"q", "k"}, {"qk"}, transforms::split()}}, {"q"}),
              ThrowsMessage<Error>(HasSubstr("also needs 'k'")));
  EXPECT_THAT(
      bind({{{"a"}, {"a"}, {}}, {{"q.*", "a"}, {"qa.*"}, transforms::split()}}, {"a", "q.weight"}),
      ThrowsMessage<Error>(HasSubstr("also needs 'a'")));
  EXPECT_THAT(bind({{{"*"}, {"one"}, {}}}, {"a", "b"}),
              ThrowsMessage<Error>(HasSubstr("two rules give 'one'")));
  EXPECT_THAT(bind({{{"a.*"}, {"*.*"}, {}}}, {"a.b"}),
              ThrowsMessage<Error>(HasSubstr("more stars")));
}

TEST(TensorRuleNames, ErrorsNameTheFile) {
  Parameter parameter;
  parameter.name = "extra.weight";
  EXPECT_THAT(
      [&] {
        bound({{{{"a"}, {"b"}, {}}}, {}}, {parameter}, "model.gguf");
      },
      ThrowsMessage<Error>(
          HasSubstr("model.gguf: tensor rules: none fits the tensor 'extra.weight'")));
}

// A family that publishes nothing as we hold it: queries, keys and values of a head together and
// transposed, rotary pairs as neighbours, gate and up interleaved, norms less 1 and of all layers
// in one tensor, an extra axis, the table in two halves.
constexpr int64_t kHeads = 4;

ModelConfig read_scrambled(ConfigReader reader) {
  const auto layers = static_cast<size_t>(reader.integer("layers", {}, 1, 8));
  const nlohmann::json mixer = {{"type", "attention"},
                                {"heads", kHeads},
                                {"bias", true},
                                {"qk_norm", true},
                                {"rope", {{"theta", 100}}}};
  nlohmann::json layer = {{"mixer", mixer}, {"ffn", {{"type", "swiglu"}, {"size", 24}}}};
  std::vector<nlohmann::json> all(layers, layer);
  // Not uniform: every second layer has a window, and the first one no rotary positions.
  for (size_t i = 1; i < layers; i += 2) all[i]["mixer"]["window"] = 5;
  all[0]["mixer"].erase("rope");
  return layered_config(reader, {{"vocab_size", 20}, {"hidden_size", 16}}, all);
}

std::optional<nlohmann::json> write_scrambled(const ModelConfig& config) {
  return nlohmann::json{{"model_type", "scrambled"}, {"layers", config.block_count()}};
}

TensorRules scrambled_tensors(const ModelConfig& config) {
  using namespace transforms;
  const auto layers = static_cast<size_t>(config.block_count());
  const Names ours = numbered("layers.#.mixer_norm.weight", layers);
  TensorRules tensors;
  tensors.passed_over = {"layers.*.mask"};
  tensors.rules = {
      {{"embeddings.weight"}, {"table.0", "table.1"}, join()},
      {ours, {"norms"}, plus(1).then(unstack())},
      {{"layers.*.mixer.q_proj.weight", "layers.*.mixer.k_proj.weight",
        "layers.*.mixer.v_proj.weight"},
       {"layers.*.qkv.weight"},
       transpose().then(split(0, kHeads))},
      {{"layers.*.mixer.q_proj.bias", "layers.*.mixer.k_proj.bias", "layers.*.mixer.v_proj.bias"},
       {"layers.*.qkv.bias"},
       split(0, kHeads)},
      {{"layers.*.mixer.o_proj.weight"}, {"layers.*.out"}, rope_pairs(kHeads)},
      {{"layers.*.ffn.gate_proj.weight", "layers.*.ffn.up_proj.weight"},
       {"layers.*.gate_up"},
       split(0, 24)},
      {{"layers.*.ffn.down_proj.weight"}, {"layers.*.down"}, squeeze(0)},
      {{"*"}, {"*"}, {}},
  };
  return tensors;
}

const Family kScrambled = {"scrambled", read_scrambled, write_scrambled, scrambled_tensors};

TEST(ScrambledFamily, GoesToDiskAndBack) {
  const ModelConfig config = read_scrambled(ConfigReader({{"layers", 5}}, "test"));
  EXPECT_EQ(config.pattern, "a 2[b c]");
  Model model(config, 1);
  for (const Parameter& parameter : model.parameters()) {  // norms are all 1 otherwise
    if (!parameter.name.ends_with("mixer_norm.weight")) continue;
    Random random(3, parameter.name);
    for (float& value : parameter.value.values())
      value = static_cast<float>(random.uniform(0.5, 2));
  }
  const Folder folder;
  save_checkpoint(model, folder.path(), kScrambled);

  const SafetensorsFile file(folder.path() / "model.safetensors");
  const auto shape = [&](const char* name) { return file.find(name)->shape; };
  EXPECT_EQ(shape("table.1"), (StoredShape{10, 16}));
  EXPECT_EQ(shape("norms"), (StoredShape{5, 16}));
  EXPECT_EQ(shape("layers.4.qkv.weight"), (StoredShape{16, 48}));
  EXPECT_EQ(shape("layers.0.qkv.bias"), (StoredShape{48}));
  EXPECT_EQ(shape("layers.0.down"), (StoredShape{1, 16, 24}));
  EXPECT_EQ(shape("layers.0.gate_up"), (StoredShape{48, 16}));

  const std::filesystem::path json = folder.path() / "config.json";
  Model again(read_scrambled(
                  ConfigReader({{"layers", read_config_json(json).at("layers")}}, json.string())),
              2);
  load_weights(again, folder.path(), kScrambled);
  ASSERT_EQ(again.parameters().size(), model.parameters().size());
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    EXPECT_EQ(testing_support::bit_difference(again.parameters()[i].value.values(),
                                              model.parameters()[i].value.values()),
              "")
        << model.parameters()[i].name;
  }
  const std::vector<int32_t> tokens = testing_support::random_tokens(30, 20, 4);
  const Batch batch = fresh_segments(tokens, 30);
  EXPECT_EQ(testing_support::bit_difference(testing_support::run(again, batch, Precision::f32),
                                            testing_support::run(model, batch, Precision::f32)),
            "");
}

TEST(ScrambledFamily, SaysWhichTensorDoesNotFit) {
  Model model(read_scrambled(ConfigReader({{"layers", 2}}, "test")), 1);
  const Folder folder;
  save_checkpoint(model, folder.path(), kScrambled);
  const auto load = [&](Model& into) {
    return [&] { load_weights(into, folder.path(), kScrambled); };
  };
  Model deeper(read_scrambled(ConfigReader({{"layers", 3}}, "test")), 1);
  EXPECT_THAT(load(deeper), ThrowsMessage<Error>(HasSubstr(
                                "norms: has shape [2, 16] where the configuration says [3, 16]")));
  // Tensors that nobody asked for are refused, but for those that are passed over.
  const SafetensorsFile file(folder.path() / "model.safetensors");
  const auto with = [&](const std::string& extra) {
    std::vector<TensorToWrite> tensors;
    for (const std::string& name : file.names()) {
      const SafetensorsEntry& entry = *file.find(name);
      tensors.push_back({name, entry.dtype, entry.shape, entry.bytes.data(), entry.bytes.size()});
    }
    const float zero = 0;
    tensors.push_back({extra, "F32", {1}, &zero, sizeof(zero)});
    const std::filesystem::path other = folder.path() / "other";
    make_directories(other);
    write_safetensors(other / "model.safetensors", tensors);
    load_weights(model, other, kScrambled);
  };
  EXPECT_NO_THROW(with("layers.0.mask"));
  EXPECT_THAT(
      [&] { with("layers.0.bias"); },
      ThrowsMessage<Error>(HasSubstr("'layers.0.bias' that the configuration has no place")));
}

}  // namespace
}  // namespace pronghorn
