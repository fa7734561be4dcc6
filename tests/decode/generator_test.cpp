// The generator: where texts end, what they depend on, and sessions on disk.
#include "decode/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "decode/syllable_tokenizer.h"
#include "decode/writer.h"
#include "support/folder.h"
#include "support/machine.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::random_tokens;
using testing_support::SyllableTokenizer;
using testing_support::Threads;

const std::vector<int32_t> kPrompt = {3, 14, 15, 9, 2, 6};

GenerateOptions sampled(int64_t tokens, uint64_t seed = 5) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.sampling.temperature = 0.8;
  options.sampling.seed = seed;
  return options;
}

class GeneratorTest : public testing::TestWithParam<size_t> {
 protected:
  Generated generate_from(Session& session, const GenerateOptions& options,
                          std::span<const int32_t> prompt = kPrompt,
                          const std::function<void(std::string_view)>& emit = {}) const {
    return generate(model_, tokenizer_, session, prompt, options, emit);
  }
  Generated fresh(const GenerateOptions& options) const {
    Session session(model_);
    return generate_from(session, options);
  }

  Model model_{model_config(model_configs()[GetParam()].second), 21};
  SyllableTokenizer tokenizer_;
};

TEST_P(GeneratorTest, TextDependsOnTheSeedAlone) {
  std::string first;
  for (const int threads : {1, 4}) {
    const Threads scope(threads);
    for (int repeat = 0; repeat < 2; ++repeat) {
      const Generated result = fresh(sampled(60));
      EXPECT_EQ(result.tokens, 60);
      EXPECT_EQ(result.prompt_tokens, static_cast<int64_t>(kPrompt.size()));
      EXPECT_EQ(result.end, Generated::End::length);
      if (first.empty()) first = result.text;
      EXPECT_EQ(result.text, first);
    }
  }
  EXPECT_NE(fresh(sampled(60, 6)).text, first);
}

// The same tokens come out of a batch with other sequences, token by token.
TEST_P(GeneratorTest, TextDoesNotDependOnOthersInTheBatch) {
  const GenerateOptions options = sampled(40);
  Session session(model_);
  generate_from(session, options);
  const std::span<const int32_t> alone = session.recent().subspan(kPrompt.size());

  std::vector<SequenceState> states(3, model_.new_state());
  std::vector<std::vector<int32_t>> pending = {random_tokens(16, 61, 1), kPrompt,
                                               random_tokens(11, 61, 2)};
  std::vector<std::vector<int32_t>> texts(3);
  for (size_t step = 0; step < alone.size(); ++step) {
    Batch batch;
    for (size_t i = 0; i < states.size(); ++i) {
      Batch part = continue_sequence(states[i], pending[i]);
      part.segments[0].first_row = batch.rows();
      batch.segments.push_back(part.segments[0]);
      batch.tokens.insert(batch.tokens.end(), part.tokens.begin(), part.tokens.end());
      batch.positions.insert(batch.positions.end(), part.positions.begin(), part.positions.end());
    }
    const Tensor logits = model_.logits({}, model_.forward({}, batch));
    for (size_t i = 0; i < states.size(); ++i) {
      const Segment& segment = batch.segments[i];
      const float* row = logits.row(segment.first_row + segment.length - 1);
      const int32_t token = sample({row, 61}, options.sampling, texts[i], states[i].length());
      texts[i].push_back(token);
      pending[i] = {token};
    }
  }
  EXPECT_TRUE(std::ranges::equal(texts[1], alone));
}

TEST_P(GeneratorTest, GoesOnWhereItStopped) {
  const std::string whole = fresh(sampled(50)).text;
  Session session(model_);
  std::string text = generate_from(session, sampled(20)).text;
  text += generate_from(session, sampled(30), {}).text;
  EXPECT_EQ(text, whole);
}

TEST_P(GeneratorTest, ASavedSessionContinuesToTheBit) {
  const Folder folder;
  for (const int64_t tokens : {1, 10, 27, 70}) {
    Session session(model_);
    generate_from(session, sampled(tokens));
    session.save(folder.path() / "session");
    Session loaded = Session::load(folder.path() / "session", model_);
    EXPECT_EQ(loaded.length(), session.length());
    EXPECT_TRUE(std::ranges::equal(loaded.recent(), session.recent()));
    Session copy = session;
    EXPECT_EQ(bit_difference(loaded.scores(model_, {}).values(), copy.scores(model_, {}).values()),
              "");
    Session again = Session::load(folder.path() / "session", model_);
    EXPECT_EQ(generate_from(again, sampled(40), {}).text,
              generate_from(session, sampled(40), {}).text)
        << tokens;
  }
}

TEST_P(GeneratorTest, RefusesADamagedSession) {
  const Folder folder;
  const auto file = folder.path() / "session";
  Session session(model_);
  generate_from(session, sampled(20));
  session.save(file);
  const std::string whole = read_file(file);
  Random random(1, "damage");
  for (int i = 0; i < 60; ++i) {
    std::string damaged = whole;
    // The first bytes, which hold counts and tokens, and then anywhere.
    const size_t at = i < 40 ? static_cast<size_t>(3 * i) : random.below(whole.size());
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.below(8)));
    write_file(file, damaged);
    EXPECT_THROW(Session::load(file, model_), Error) << "byte " << at;
  }
  for (const size_t size : {size_t{0}, size_t{3}, size_t{20}, size_t{90}, whole.size() - 1}) {
    write_file(file, std::string_view(whole).substr(0, size));
    EXPECT_THROW(Session::load(file, model_), Error) << size << " bytes";
  }
  write_file(file, whole + "x");
  EXPECT_THROW(Session::load(file, model_), Error);
  write_file(file, whole);
  EXPECT_NO_THROW(Session::load(file, model_));
}

TEST_P(GeneratorTest, RefusesASessionOfAnotherModel) {
  const Folder folder;
  Session session(model_);
  generate_from(session, sampled(5));
  session.save(folder.path() / "session");
  const size_t other = (GetParam() + 1) % model_configs().size();
  const Model model(model_config(model_configs()[other].second), 21);
  try {
    Session::load(folder.path() / "session", model);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another model"));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GeneratorTest, testing::Range<size_t>(0, model_configs().size()),
                         [](const auto& test) { return model_configs()[test.param].first; });

// What does not depend on the model is tested on one.
class TextEnds : public testing::Test {
 protected:
  Generated run(GenerateOptions options, const Tokenizer& tokenizer) {
    Session session(model_);
    std::string shown;
    const Generated result = generate(model_, tokenizer, session, kPrompt, options,
                                      [&](std::string_view text) { shown += text; });
    EXPECT_EQ(shown, result.text);
    return result;
  }
  Model model_{model_config(model_configs()[3].second), 22};
  SyllableTokenizer tokenizer_;
};

TEST_F(TextEnds, BeforeAStopStringWhereverTokensEnd) {
  GenerateOptions options = sampled(60);
  const std::string whole = run(options, tokenizer_).text;
  ASSERT_GT(whole.size(), 80u);
  for (size_t begin = 0; begin < 60; begin += 3) {
    for (const size_t length : {1, 2, 5, 13}) {
      const std::string stop = whole.substr(begin, length);
      options.stop = {"not in the text", stop};
      const Generated result = run(options, tokenizer_);
      EXPECT_EQ(result.text, whole.substr(0, whole.find(stop))) << stop;
      EXPECT_EQ(result.end, Generated::End::stop_string);
    }
  }
}

TEST_F(TextEnds, BeforeTheFirstOfSeveralStopStrings) {
  GenerateOptions options = sampled(60);
  const std::string whole = run(options, tokenizer_).text;
  options.stop = {whole.substr(40, 6), whole.substr(20, 9), whole.substr(31, 6)};
  size_t first = whole.size();
  for (const std::string& stop : options.stop) first = std::min(first, whole.find(stop));
  EXPECT_EQ(run(options, tokenizer_).text, whole.substr(0, first));
}

TEST_F(TextEnds, WithTextThatOnlyBeganLikeAStopString) {
  GenerateOptions options = sampled(30);
  const std::string whole = run(options, tokenizer_).text;
  options.stop = {whole.substr(whole.size() - 7) + "!", whole.substr(10, 9) + "!"};
  const Generated result = run(options, tokenizer_);
  EXPECT_EQ(result.text, whole);
  EXPECT_EQ(result.end, Generated::End::length);
  options.stop = {""};
  EXPECT_THROW(run(options, tokenizer_), UsageError);
}

TEST_F(TextEnds, AtTheEndToken) {
  GenerateOptions options = sampled(60);
  Session session(model_);
  generate(model_, tokenizer_, session, kPrompt, options);
  const auto tokens = session.recent().subspan(kPrompt.size());
  const int32_t end = tokens[25];
  const auto first = std::ranges::find(tokens, end) - tokens.begin();
  std::string before;
  for (int64_t i = 0; i < first; ++i) {
    before += tokenizer_.token_bytes(tokens[static_cast<size_t>(i)], false);
  }
  const SyllableTokenizer with_end(end);
  const Generated result = run(options, with_end);
  EXPECT_EQ(result.end, Generated::End::end_token);
  EXPECT_EQ(result.tokens, first + 1);
  EXPECT_EQ(result.text, before);
  options.stop_at_eos = false;
  EXPECT_EQ(run(options, with_end).tokens, 60);
}

TEST_F(TextEnds, NeverOnHalfACharacter) {
  // Bytes of a random model are rarely UTF-8; what comes out always is.
  ModelConfig config = model_config(model_configs()[3].second);
  config.vocab_size = 256;
  const Model model(config, 23);
  const auto tokenizer = make_byte_tokenizer();
  Session session(model);
  const auto prompt = tokenizer->encode("Größe ");
  std::string shown;
  const Generated result =
      generate(model, *tokenizer, session, prompt, sampled(200), [&](std::string_view text) {
        EXPECT_NE(static_cast<uint8_t>(text[0]) & 0xC0, 0x80);
        shown += text;
      });
  EXPECT_EQ(shown, result.text);
  EXPECT_NO_THROW(nlohmann::json(result.text).dump());  // throws for what is not UTF-8
}

TEST_F(TextEnds, NothingToContinueIsAnError) {
  Session session(model_);
  EXPECT_THROW(generate(model_, tokenizer_, session, {}, sampled(3)), Error);
  GenerateOptions options = sampled(3);
  options.sampling.top_p = 2;
  EXPECT_THROW(run(options, tokenizer_), UsageError);
}

TEST_F(TextEnds, AfterNoTokenIfNoneIsWanted) {
  const Generated result = run(sampled(0), tokenizer_);
  EXPECT_EQ(result.tokens, 0);
  EXPECT_EQ(result.text, "");
}

// Bytes, and two special tokens.
class MarkTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kBegin = 256, kEnd = 257;

  MarkTokenizer() : Tokenizer({}) {}

  std::vector<int32_t> encode(std::string_view, const EncodeOptions&) const override { return {}; }
  std::string token_bytes(int32_t id, bool special) const override {
    if (id < 256) return {static_cast<char>(id)};
    if (!special) return {};
    return id == kBegin ? "<think>" : "</think>";
  }
  bool is_special(int32_t id) const override { return id >= 256; }
  int64_t vocab_size() const override { return 258; }
};

// What is written where the model would write `script` if nothing were cut; '[' in it is the token
// that begins a part, ']' the one that ends it.
std::string bounded(const std::string& script, int64_t tokens) {
  ModelConfig config = model_config(model_configs()[3].second);
  config.vocab_size = 258;
  const Model model(config, 22);
  const MarkTokenizer tokenizer;
  Session session(model);
  Generation generation;
  generation.session = &session;
  generation.prompt = kPrompt;
  generation.options.sampling.temperature = 0;
  generation.options.shown_tokens = {MarkTokenizer::kBegin, MarkTokenizer::kEnd};
  generation.options.reasoning =
      BoundedPart{MarkTokenizer::kBegin, MarkTokenizer::kEnd, false, tokens, "<call>", "</call>"};
  Writer writer(tokenizer, generation);
  for (const char c : script) {
    const int32_t token = c == '[' ? MarkTokenizer::kBegin
                                   : (c == ']' ? MarkTokenizer::kEnd : static_cast<uint8_t>(c));
    std::vector<float> scores(258);
    scores[static_cast<size_t>(token)] = 1;
    writer.take(writer.choose(scores), scores);
  }
  return writer.result().text;
}

TEST(BoundedPartTest, FollowsTheText) {
  // Behind space, and opened again: there is one bound for all.
  EXPECT_EQ(bounded("[abcdef", 3), "<think>abc</think>ef");
  EXPECT_EQ(bounded(" \n[abcdef", 3), " \n<think>abc</think>ef");
  EXPECT_EQ(bounded("[abcd\n[ef", 3), "<think>abc</think>\n<think></think>f");
  EXPECT_EQ(bounded("[a] [bcdefg", 4), "<think>a</think> <think>bc</think>efg");
  // Not behind other text.
  EXPECT_EQ(bounded("x[abcdef", 3), "x<think>abcdef");
  EXPECT_EQ(bounded("[]x[abcdef", 3), "<think></think>x<think>abcdef");
  // Behind a call, but not in one.
  EXPECT_EQ(bounded("<call>x</call>\n[abcdef", 3), "<call>x</call>\n<think>abc</think>ef");
  EXPECT_EQ(bounded("[a]<call>x</call>[bcdef", 3),
            "<think>a</think><call>x</call><think>b</think>def");
  EXPECT_EQ(bounded("<call>[abcdef", 3), "<call><think>abcdef");
  EXPECT_EQ(bounded("x<call>y</call>[abcdef", 3), "x<call>y</call><think>abcdef");
  // Marks in letters.
  EXPECT_EQ(bounded("[a</think>bcdefgh", 10), "<think>a</think>bcdefgh");
  EXPECT_EQ(bounded("<think>abcdef", 3), "<think>abc</think>ef");
  EXPECT_EQ(bounded("<thin>abcdef", 3), "<thin>abcdef");
}

TEST(BoundedPartTest, IsNotCutInACharacter) {
  EXPECT_EQ(bounded("[\xC3\xA9xy", 1), "<think>\xC3\xA9</think>y");
  EXPECT_EQ(bounded("[a\xF0\x9F\x98\x80xy", 2), "<think>a\xF0\x9F\x98\x80</think>y");
  // One that never ends is.
  EXPECT_THAT(bounded("[" + std::string(12, '\xF0'), 1), HasSubstr("</think>"));
}

TEST(Sessions, OfARecurrentModelDoNotGrow) {
  const Folder folder;
  for (const char* name : {"mamba", "mamba2", "gated_deltanet"}) {
    const auto found =
        std::ranges::find(model_configs(), name, &std::pair<std::string, std::string>::first);
    ASSERT_NE(found, model_configs().end());
    const Model model(model_config(found->second), 24);
    Session session(model);
    std::vector<uintmax_t> sizes;
    // Past Session::kRecent tokens, each time the same place between two folds.
    for (const int64_t tokens : {1280, 1280, 2560}) {
      session.append(random_tokens(tokens, 61, 3));
      session.scores(model, {});
      session.save(folder.path() / name);
      sizes.push_back(std::filesystem::file_size(folder.path() / name));
      EXPECT_EQ(session.recent().size(), Session::kRecent);
    }
    EXPECT_EQ(sizes[1], sizes[0]) << name;
    EXPECT_EQ(sizes[2], sizes[0]) << name;
  }
}

// A prompt of several pieces gives what one forward gives, within the tolerance of long pieces.
TEST(Sessions, ReadLongPromptsInPieces) {
  const Model model(model_config(model_configs()[5].second), 25);
  const auto text = random_tokens(2500, 61, 4);
  Session session(model);
  session.append(text);
  std::vector<double> progress;
  const Tensor scores = session.scores(model, {}, [&](size_t done, const Tensor&) {
    progress.push_back(static_cast<double>(done));
  });
  EXPECT_THAT(progress, testing::ElementsAre(2048, 2500));
  SequenceState state = model.new_state();
  const Tensor hidden = model.forward({}, continue_sequence(state, text));
  // f32 sums in another order through four blocks, as in the laws of models.
  EXPECT_LE(testing_support::relative_difference(
                scores.values(), model.logits({}, hidden.row_slice(2499, 1)).values()),
            1e-4);
}

}  // namespace
}  // namespace pronghorn
