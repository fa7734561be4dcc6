// Models with weights in blocks: the laws hold bit for bit for each encoding.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/threads.h"
#include "layers/parameters.h"
#include "model/model.h"
#include "model/weight_bytes.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::decode;
using testing_support::random_tokens;
using testing_support::relative_difference;

// Widths of whole blocks of 256.
ModelConfig wide_config() {
  const nlohmann::json json = nlohmann::json::parse(R"({
    "vocab_size": 300, "hidden_size": 256, "pattern": "a m", "norm": {"type": "rms_norm"},
    "blocks": {"a": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2},
                     "ffn": {"type": "swiglu", "size": 512}},
               "m": {"mixer": {"type": "mamba2", "heads": 8, "head_dim": 64, "state": 16}}}})");
  return read_pronghorn_config(ConfigReader(json, "test"));
}

// `trained` with its matrices in the encoding.
std::unique_ptr<Model> quantised(const Model& trained, const Encoding& encoding) {
  std::unique_ptr<Model> model = Model::outline(trained.config());
  for (size_t i = 0; i < trained.parameters().size(); ++i) {
    const Parameter& parameter = trained.parameters()[i];
    const Encoding& in =
        parameter.matrix.defined() && parameter.matrix.in() % 256 == 0 ? encoding : encodings::f32;
    const auto size = static_cast<size_t>(in.bytes(parameter.size()));
    auto memory = std::make_shared<std::vector<std::byte>>(size);
    in.encode(parameter.value.data(), parameter.size(), memory->data());
    model->assign(i, {&in, *memory, memory, nullptr});
  }
  return model;
}

void expect_same_bits_however_cut(const Model& model, Precision precision) {
  const std::vector<int32_t> tokens = random_tokens(48, 300, 3);
  const auto run = [&](std::vector<int64_t> steps) {
    SequenceState state = model.new_state();
    return decode(model, state, tokens, steps, precision);
  };
  const std::vector<float> expected = run(std::vector<int64_t>(48, 1));
  for (const std::vector<int64_t>& steps :
       {std::vector<int64_t>{16, 16, 16}, {5, 11, 1, 15, 16}, {2, 3, 4, 7, 13, 16, 3}}) {
    EXPECT_EQ(bit_difference(run(steps), expected), "");
  }
  // Two sequences at once, and another number of threads.
  Batch both;
  SequenceState first = model.new_state(), second = model.new_state();
  add_segment(both, first, std::span(tokens).first(9));
  add_segment(both, second, std::span(tokens).first(16));
  const std::vector<float> logits = testing_support::run(model, both, precision);
  EXPECT_EQ(bit_difference(std::span(logits).first(9 * 300), std::span(expected).first(9 * 300)),
            "");
  EXPECT_EQ(bit_difference(std::span(logits).subspan(9 * 300), std::span(expected).first(16 * 300)),
            "");
  const int threads = thread_count();
  set_thread_count(threads + 1);
  EXPECT_EQ(bit_difference(run({16, 16, 16}), expected), "");
  set_thread_count(threads);
}

TEST(QuantisedModel, StepsAreTheSameBitsHoweverTheyAreCut) {
  const Model trained(wide_config(), 5);
  for (const Encoding* encoding : all_encodings()) {
    if (layout_of(*encoding) == nullptr) continue;
    const std::unique_ptr<Model> model = quantised(trained, *encoding);
    for (const Precision precision : {Precision::bf16, Precision::f32}) {
      SCOPED_TRACE(fmt::format("{}{}", encoding->name, precision == Precision::f32 ? " f32" : ""));
      expect_same_bits_however_cut(*model, precision);
    }
  }
}

// Whole, a row differs by what attention's order of sums does; rounded activations carry that on as
// a step of 1/127 here and there.
TEST(QuantisedModel, WholeIsTheSameButForRounding) {
  const Model trained(wide_config(), 5);
  const std::vector<int32_t> tokens = random_tokens(48, 300, 3);
  const std::unique_ptr<Model> model = quantised(trained, encodings::q4_k);
  SequenceState whole = model->new_state(), steps = model->new_state();
  const std::vector<int64_t> one = {48}, three = {16, 16, 16};
  EXPECT_LE(relative_difference(decode(*model, whole, tokens, one, Precision::bf16),
                                decode(*model, steps, tokens, three, Precision::bf16)),
            0.02);
}

TEST(QuantisedModel, NumbersStayCloseToThoseThatWereEncoded) {
  const Model trained(wide_config(), 5);
  const std::vector<int32_t> tokens = random_tokens(16, 300, 3);
  const std::vector<int64_t> steps = {16};
  SequenceState state = trained.new_state();
  const std::vector<float> expected = decode(trained, state, tokens, steps);
  // Shares of the largest score: an error of the encoding, grown by a few layers.
  for (const auto& [encoding, most] : {std::pair<const Encoding*, double>{&encodings::q8_0, 0.03},
                                       {&encodings::q6_k, 0.08},
                                       {&encodings::q4_k, 0.3}}) {
    const std::unique_ptr<Model> model = quantised(trained, *encoding);
    SequenceState own = model->new_state();
    EXPECT_LE(relative_difference(decode(*model, own, tokens, steps, Precision::bf16), expected),
              most)
        << encoding->name;
  }
}

// In f32 it is the model of the numbers that its blocks hold.
TEST(QuantisedModel, ComputesWithItsNumbersInF32) {
  const Model trained(wide_config(), 5);
  const std::unique_ptr<Model> model = quantised(trained, encodings::q4_0);
  Model decoded(wide_config(), 5);
  for (size_t i = 0; i < decoded.parameters().size(); ++i) {
    const Parameter& from = model->parameters()[i];
    if (!from.matrix.defined()) continue;
    const Stored stored = from.stored();
    stored.encoding->decode(stored.bytes.data(), from.size(),
                            decoded.parameters()[i].matrix.trainable().data());
  }
  const std::vector<int32_t> tokens = random_tokens(16, 300, 3);
  const std::vector<int64_t> steps = {9, 7};
  SequenceState own = model->new_state(), other = decoded.new_state();
  EXPECT_LE(relative_difference(decode(*model, own, tokens, steps),
                                decode(decoded, other, tokens, steps)),
            1e-6);
}

TEST(QuantisedModel, TakesTheBytesOfItsBlocks) {
  const Model trained(wide_config(), 5);
  const std::vector<int32_t> tokens = random_tokens(4, 300, 3);
  const std::unique_ptr<Model> model = quantised(trained, encodings::q4_k);
  int64_t stored = 0;
  for (const WeightBytes& part : weight_bytes(*model)) stored += part.bytes;
  SequenceState state = model->new_state();
  const std::vector<int64_t> steps = {4};
  decode(*model, state, tokens, steps, Precision::bf16);
  int64_t packed = 0;
  for (const WeightBytes& part : weight_bytes(*model)) packed += part.bytes;
  EXPECT_LE(packed, stored * 21 / 20);
  EXPECT_EQ(packed, resident_weight_bytes(*model, Precision::bf16));
}

}  // namespace
}  // namespace pronghorn
