// Speculation changes the speed of a text and nothing else: every drafter, chains and trees, any
// number of threads, alone and in a batch, greedy and sampled, for every kind of model.
#include "decode/speculation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "decode/generator.h"
#include "decode/syllable_tokenizer.h"
#include "decode/test_drafters.h"
#include "support/diffusion_models.h"
#include "support/machine.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::diffusion_config;
using testing_support::Intent;
using testing_support::IntentDrafter;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::random_tokens;
using testing_support::SyllableTokenizer;
using testing_support::Threads;

constexpr int32_t kVocabulary = 61;

// The configuration with heads for multi-token prediction, which change nothing else. What layers
// carry or lend does not reach the heads, nor does a prefix, so a model with these has none.
ModelConfig with_heads(size_t index, int64_t heads) {
  const auto& [name, body] = model_configs()[index];
  ModelConfig config = model_config(body);
  const bool carries = name == "carried" || name.ends_with("sides");
  const bool lends = name == "yoco" || name.ends_with("shared_keys");
  config.mtp.heads = carries || lends || config.prefix_tokens > 0 ? 0 : heads;
  return config;
}

// Prompts of different lengths, some of which repeat themselves so that lookups have work to do.
std::vector<std::vector<int32_t>> prompts_of(size_t count) {
  std::vector<std::vector<int32_t>> prompts;
  for (size_t i = 0; i < count; ++i) {
    std::vector<int32_t> prompt = random_tokens(5 + 9 * static_cast<int64_t>(i), kVocabulary, i);
    if (i % 2 == 0) {
      const std::vector<int32_t> copy = prompt;
      prompt.insert(prompt.end(), copy.begin(), copy.end());
    }
    prompts.push_back(prompt);
  }
  return prompts;
}

struct Written {
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Generated::End> ends;
  std::vector<int64_t> steps;
  std::vector<std::vector<float>> next_scores;  // of the sessions afterwards

  bool operator==(const Written& other) const {
    return texts == other.texts && tokens == other.tokens && ends == other.ends;
  }
};

class SpeculationTest : public testing::TestWithParam<size_t> {
 protected:
  // Writes with all prompts at once, each with its own seed.
  Written write(const GenerateOptions& options, size_t batch, Speculation* speculation) const {
    const auto prompts = prompts_of(batch);
    std::vector<Session> sessions(batch, Session(model_));
    std::vector<Generation> generations;
    for (size_t i = 0; i < batch; ++i) {
      generations.push_back({&sessions[i], prompts[i], options, {}});
      generations.back().options.sampling.seed += i;
    }
    const auto results = generate(model_, tokenizer_, generations, speculation);
    Written written;
    for (size_t i = 0; i < batch; ++i) {
      written.texts.push_back(results[i].text);
      const auto recent = sessions[i].recent();
      written.tokens.emplace_back(recent.begin() + static_cast<int64_t>(prompts[i].size()),
                                  recent.end());
      written.ends.push_back(results[i].end);
      written.steps.push_back(results[i].steps);
      const Tensor scores = sessions[i].scores(model_, {});
      written.next_scores.emplace_back(scores.values().begin(), scores.values().end());
    }
    return written;
  }

  void expect_same(const Written& written, const Written& plain) const {
    EXPECT_EQ(written, plain);
    for (size_t i = 0; i < plain.next_scores.size(); ++i) {
      // The state that is left: nothing of rejected guesses is in it.
      EXPECT_EQ(bit_difference(written.next_scores[i], plain.next_scores[i]), "");
    }
  }

  static std::vector<std::pair<std::string, GenerateOptions>> all_options() {
    GenerateOptions greedy;
    greedy.max_tokens = 40;
    GenerateOptions sampled = greedy;
    sampled.sampling.temperature = 0.7;
    sampled.sampling.top_p = 0.9;
    sampled.sampling.seed = 3;
    GenerateOptions penalised = sampled;
    penalised.sampling.repetition_penalty = 1.3;
    penalised.sampling.repetition_window = 20;
    GenerateOptions stopped = greedy;
    stopped.sampling.repetition_penalty = 1.2;
    stopped.stop = {"q", "zzz", "ab"};
    return {
        {"greedy", greedy}, {"sampled", sampled}, {"penalised", penalised}, {"stopped", stopped}};
  }

  std::unique_ptr<Drafter> drafter(const std::string& name) const {
    if (name == "ngram") return make_ngram_drafter();
    if (name == "suffix") return make_suffix_drafter();
    if (name == "pool") return make_suffix_drafter(make_suffix_pool());
    if (name == "early exit") return make_early_exit_drafter(model_, 1);
    if (name == "mtp") return make_mtp_drafter(model_);
    if (name == "blocks") {
      return make_model_drafter(std::make_shared<Model>(diffusion_config("2a", R"("block": 4)"), 5),
                                tokenizer_, model_, tokenizer_, name);
    }
    // The model itself guesses right always; one of another architecture almost never.
    const size_t other = name == "itself" ? GetParam() : (GetParam() + 3) % model_configs().size();
    auto small = std::make_shared<Model>(model_config(model_configs()[other].second),
                                         name == "itself" ? 21 : 5);
    std::unique_ptr<Drafter> result =
        make_model_drafter(std::move(small), tokenizer_, model_, tokenizer_, name);
    if (name != "stack") return result;
    std::vector<std::unique_ptr<Drafter>> all;
    all.push_back(make_suffix_drafter());
    all.push_back(std::move(result));
    return make_stacked_drafter(std::move(all));
  }

  Model model_{with_heads(GetParam(), 2), 21};
  SyllableTokenizer tokenizer_;
};

TEST_P(SpeculationTest, EveryDrafterWritesWhatPlainDecodingWrites) {
  int64_t seed = 0;
  for (const auto& [kind, options] : all_options()) {
    for (const size_t batch : {size_t{1}, size_t{3}}) {
      Written plain;
      {
        const Threads scope(1);
        plain = write(options, batch, nullptr);
      }
      for (const char* name :
           {"ngram", "suffix", "pool", "itself", "small", "early exit", "mtp", "blocks", "stack"}) {
        const bool no_exit = model_.layout()->span_of(0) >= 0;
        if (no_exit && std::string_view(name) == "early exit") {
          EXPECT_THROW(drafter(name), Error) << "the first layer is inside a subsampled span";
          continue;
        }
        if (model_.mtp_depth() == 0 && std::string_view(name) == "mtp") {
          EXPECT_THROW(drafter(name), Error) << "there are no heads";
          continue;
        }
        for (const int64_t branches : {1, 3}) {
          // Fixed numbers of guesses and chosen ones, one thread and four: in turn.
          const int64_t guesses =
              std::array<int64_t, 4>{15, 3, 0, 7}[static_cast<size_t>(seed % 4)];
          const Threads scope(seed++ % 3 == 0 ? 4 : 1);
          Speculation speculation(drafter(name), {{guesses, branches}, false});
          SCOPED_TRACE(fmt::format("{}, {} texts, {}, {} guesses, {} branches", kind, batch, name,
                                   guesses, branches));
          expect_same(write(options, batch, &speculation), plain);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Guesses that come true without having been checked, since fewer were than were made or none at
// all: the drafter has read the text's last token already.
TEST_P(SpeculationTest, AModelDraftsOnAfterGuessesThatWereNotChecked) {
  std::vector<int32_t> text = prompts_of(1).front();
  const SamplingOptions greedy;
  const auto guesses = [&](Drafter& drafter, int64_t count) {
    std::vector<DraftRequest> requests(1);
    requests[0].shape = DraftShape::chain(count);
    requests[0].sampling = &greedy;
    requests[0].recent = text;
    requests[0].position = static_cast<int64_t>(text.size());
    drafter.draft({}, requests);
    return requests[0].draft.tokens;
  };
  const std::unique_ptr<Drafter> drafter = this->drafter("itself");
  drafter->start(1);
  drafter->append(0, text);
  for (const size_t right : {0, 1, 3, 14, 15, 2}) {
    const std::vector<int32_t> made = guesses(*drafter, kMaxDraft);
    ASSERT_EQ(made.size(), static_cast<size_t>(kMaxDraft));
    const auto fresh = this->drafter("itself");
    fresh->start(1);
    fresh->append(0, text);
    EXPECT_EQ(made, guesses(*fresh, kMaxDraft)) << text.size();
    if (right == 0) continue;  // drafted again
    drafter->append(0, std::span(made).first(right));
    text.insert(text.end(), made.begin(), made.begin() + static_cast<int64_t>(right));
  }
}

// An adversary decides on speed only: guesses that it knows to be right or wrong, in all places.
TEST_P(SpeculationTest, NoDrafterCanChangeTheText) {
  for (const auto& [kind, options] : all_options()) {
    for (const size_t batch : {size_t{1}, size_t{3}}) {
      const Written plain = write(options, batch, nullptr);
      for (const Intent intent : {Intent::empty, Intent::right, Intent::wrong, Intent::noise,
                                  Intent::right_then_wrong, Intent::trees}) {
        SCOPED_TRACE(fmt::format("{}, {} texts, intent {}", kind, batch, static_cast<int>(intent)));
        Speculation speculation(std::make_unique<IntentDrafter>(intent, plain.tokens, kVocabulary),
                                {{kMaxDraft, 1}, false});
        const Written written = write(options, batch, &speculation);
        expect_same(written, plain);
        const SpeculationStats& stats = speculation.stats();
        if (intent == Intent::right && batch == 1) {
          EXPECT_EQ(stats.accepted + stats.rounds, stats.tokens);
          if (plain.tokens[0].size() > 20) {
            EXPECT_LT(written.steps[0], static_cast<int64_t>(plain.tokens[0].size()) / 3);
          }
        }
        if (intent == Intent::empty) {
          EXPECT_EQ(written.steps, plain.steps);
          EXPECT_EQ(stats.drafted, 0);
        }
        if (intent == Intent::wrong) {
          EXPECT_EQ(stats.accepted, 0);
          EXPECT_EQ(written.steps, plain.steps);
        }
        if (HasFailure()) return;
      }
    }
  }
}

// A session goes on where a speculative one stopped, with and without guesses.
TEST_P(SpeculationTest, SessionsGoOn) {
  const auto options = all_options()[1].second;
  const std::vector<int32_t> prompt = prompts_of(1)[0], more = random_tokens(20, kVocabulary, 9);
  Session plain(model_), session(model_);
  Speculation speculation(drafter("itself"), {{5, 1}, false});
  for (int round = 0; round < 3; ++round) {
    const std::span<const int32_t> text = round == 1 ? std::span<const int32_t>() : more;
    const std::span<const int32_t> next = round == 0 ? prompt : text;
    const Generated expected = generate(model_, tokenizer_, plain, next, options);
    const Generated result = generate(model_, tokenizer_, session, next, options, {},
                                      round == 2 ? nullptr : &speculation);
    EXPECT_EQ(result.text, expected.text);
    EXPECT_EQ(session.length(), plain.length());
  }
  EXPECT_EQ(bit_difference(session.scores(model_, {}).values(), plain.scores(model_, {}).values()),
            "");
}

// The model itself as its drafter: every guess is right, whatever temperature and penalty.
TEST_P(SpeculationTest, SharedNoiseMakesTheModelAgreeWithItself) {
  for (const auto& [kind, options] : all_options()) {
    if (kind == "stopped") continue;
    Speculation speculation(drafter("itself"), {{6, 1}, false});
    write(options, 1, &speculation);
    EXPECT_EQ(speculation.stats().acceptance(), 1) << kind;
    EXPECT_GT(speculation.stats().tokens_per_round(), 5) << kind;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SpeculationTest, testing::Range<size_t>(0, model_configs().size()),
                         [](const auto& test) { return model_configs()[test.param].first; });

// What does not depend on the model is tested on one.
class SpeculationRules : public testing::Test {
 protected:
  Model model_{model_config(model_configs()[5].second), 21};
  SyllableTokenizer tokenizer_;
};

// An end token inside an accepted run ends the text there.
TEST_F(SpeculationRules, EndTokensInsideARunEndTheText) {
  GenerateOptions options;
  options.max_tokens = 60;
  options.sampling.temperature = 1;
  const std::vector<int32_t> prompt = {3, 14, 15, 9, 2, 6};
  Session plain(model_);
  generate(model_, tokenizer_, plain, prompt, options);
  const std::vector<int32_t> future(plain.recent().begin() + 6, plain.recent().end());
  for (size_t at = 0; at < 50; at += 7) {
    const SyllableTokenizer ending(future[at]);
    Session expected_session(model_), session(model_);
    const Generated expected = generate(model_, ending, expected_session, prompt, options);
    Speculation speculation(
        std::make_unique<IntentDrafter>(Intent::right, std::vector<std::vector<int32_t>>{future},
                                        kVocabulary),
        {{kMaxDraft, 1}, false});
    const Generated result = generate(model_, ending, session, prompt, options, {}, &speculation);
    EXPECT_EQ(result.text, expected.text);
    EXPECT_EQ(result.tokens, expected.tokens);
    EXPECT_EQ(result.end, Generated::End::end_token);
    EXPECT_EQ(session.length(), expected_session.length());
  }
}

// Block verification draws from the same distribution: the first two tokens of many short texts.
TEST_F(SpeculationRules, BlockVerificationFollowsTheModelsLaw) {
  constexpr size_t kTexts = 64;
  constexpr int kRounds = 80;
  SamplingOptions sampling;
  sampling.temperature = 1;
  sampling.top_k = 6;
  const std::vector<int32_t> prompt = {3, 14, 15};
  const auto law_after = [&](std::vector<int32_t> text) {
    Session session(model_);
    session.append(text);
    return token_distribution(session.scores(model_, {}).values(), sampling, text,
                              session.length());
  };
  auto draft_model = std::make_shared<Model>(model_config(model_configs()[5].second), 22);
  Speculation speculation(make_model_drafter(draft_model, tokenizer_, model_, tokenizer_, "small"),
                          {{3, 1}, true});
  std::map<std::pair<int32_t, int32_t>, double> counts;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<Session> sessions(kTexts, Session(model_));
    std::vector<Generation> generations;
    for (size_t i = 0; i < kTexts; ++i) {
      GenerateOptions options;
      options.max_tokens = 4;
      options.sampling = sampling;
      options.sampling.seed = static_cast<uint64_t>(round) * kTexts + i;
      generations.push_back({&sessions[i], prompt, options, {}});
    }
    generate(model_, tokenizer_, generations, &speculation);
    for (const Session& session : sessions) {
      // The first token is the prompt's; the two after it are guessed.
      const auto recent = session.recent();
      counts[{recent[3], recent[4]}] += 1;
    }
  }
  EXPECT_GT(speculation.stats().accepted, 0);
  const TokenDistribution first = law_after(prompt);
  double sum = 0, bins = 0;
  const double draws = kRounds * static_cast<double>(kTexts);
  double seen = 0;
  for (size_t i = 0; i < first.tokens.size(); ++i) {
    std::vector<int32_t> text = prompt;
    text.push_back(first.tokens[i]);
    const TokenDistribution second = law_after(text);
    for (size_t j = 0; j < second.tokens.size(); ++j) {
      const double expected = draws * first.probabilities[i] * second.probabilities[j];
      const double count = counts[{first.tokens[i], second.tokens[j]}];
      seen += count;
      if (expected < 5) continue;
      sum += (count - expected) * (count - expected) / expected;
      bins += 1;
    }
  }
  EXPECT_EQ(seen, draws);  // nothing outside of the restrictions
  // Wilson and Hilferty's normal approximation; one in a million is at 4.9.
  const double spread = 2 / (9 * bins);
  EXPECT_LT((std::cbrt(sum / bins) - (1 - spread)) / std::sqrt(spread), 4.9);
  EXPECT_GT(bins, 15);
}

// What rejected guesses leave in the state is never looked at: if it is not numbers, nobody knows.
// Masked values of attention are multiplied by a weight of 0 in the same step, which NaN survives;
// there the poison is huge instead.
TEST_F(SpeculationRules, PoisonedGuessesReachNothing) {
  GenerateOptions options;
  options.max_tokens = 40;
  const std::vector<int32_t> prompt = {3, 14, 15, 9, 2, 6};
  // A token whose embedding is not a number and which is never chosen; the head, which would be one
  // with the embedding, is a matrix of its own.
  for (const size_t index : {size_t{0}, size_t{2}, size_t{3}, size_t{4}}) {
    ModelConfig config = model_config(model_configs()[index].second);
    config.tie_embeddings = false;
    Model model(config, 21);
    Session plain(model);
    generate(model, tokenizer_, plain, prompt, options);
    const std::vector<int32_t> future(plain.recent().begin() + 6, plain.recent().end());
    int32_t unused = 0;
    while (std::ranges::find(plain.recent(), unused) != plain.recent().end()) ++unused;
    for (const Parameter& parameter : model.parameters()) {
      if (parameter.name != "embeddings.weight") continue;
      float* row = parameter.value.row(unused);
      const float poison = index == 0 ? 1e15f : std::numeric_limits<float>::quiet_NaN();
      std::fill(row, row + config.hidden_size, poison);
    }
    // Right guesses, and after them, in other branches and in place of them the poison.
    class Poisoner final : public Drafter {
     public:
      Poisoner(std::vector<int32_t> future, int32_t poison)
          : future_(std::move(future)), poison_(poison) {}
      std::string name() const override { return "poison"; }
      int costly_kind() const override { return -1; }
      void start(size_t) override { at_ = -1; }
      void forget(size_t) override { at_ = -1; }
      void append(size_t, std::span<const int32_t> tokens) override {
        at_ = at_ < 0 ? 0 : at_ + static_cast<int64_t>(tokens.size());
      }
      void begin(size_t, std::span<const int32_t>) override {}
      void draft(const Context&, std::span<DraftRequest> requests) override {
        DraftRequest& request = requests[0];
        request.draft = {};
        const int64_t good = at_ % 4;
        int32_t parent = -1;
        const bool tree = at_ % 3 == 0;
        for (int64_t i = 0; i < std::min<int64_t>(good, request.limit - 1); ++i) {
          if (at_ + i >= static_cast<int64_t>(future_.size())) break;
          if (tree) request.draft.add(poison_, parent, 1);
          parent = request.draft.add(future_[static_cast<size_t>(at_ + i)], parent, 0);
        }
        for (int64_t i = good; i < std::min<int64_t>(request.limit, 7); ++i) {
          parent = request.draft.add(poison_, parent, tree ? 2 : 0);
        }
      }

     private:
      std::vector<int32_t> future_;
      int32_t poison_;
      int64_t at_ = -1;
    };
    Session session(model);
    Speculation speculation(std::make_unique<Poisoner>(future, unused), {{kMaxDraft, 1}, false});
    generate(model, tokenizer_, session, prompt, options, {}, &speculation);
    EXPECT_TRUE(std::ranges::equal(session.recent(), plain.recent()))
        << model_configs()[index].first;
    EXPECT_GT(speculation.stats().drafted, speculation.stats().accepted);
    EXPECT_EQ(bit_difference(session.scores(model, {}).values(), plain.scores(model, {}).values()),
              "");
  }
}

TEST_F(SpeculationRules, RefuseWhatDoesNotFit) {
  const auto model = std::make_shared<Model>(model_config(model_configs()[0].second), 1);
  // Tokenizers are told apart by their files.
  const auto bytes = make_byte_tokenizer();
  try {
    make_model_drafter(model, *bytes, model_, tokenizer_, "draft");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another tokenizer"));
  }
  EXPECT_THROW(make_mtp_drafter(model_), Error);
  EXPECT_THROW(make_early_exit_drafter(model_, 0), Error);
  EXPECT_THROW(make_early_exit_drafter(model_, 4), Error);
  EXPECT_THROW(make_drafter("early-exit", model_, tokenizer_), UsageError);
  EXPECT_THROW(make_drafter("early-exit:x", model_, tokenizer_), UsageError);
  EXPECT_THROW(make_drafter("nowhere", model_, tokenizer_), UsageError);
  EXPECT_EQ(make_drafter("ngram,suffix", model_, tokenizer_)->name(), "ngram,suffix");
  EXPECT_THROW(Speculation(make_ngram_drafter(), {{0, 2}, true}), UsageError);
  Session session(model_);
  const std::vector<int32_t> prompt = {1};
  const std::vector<Generation> twice = {{&session, prompt, {}, {}}, {&session, prompt, {}, {}}};
  EXPECT_THROW(generate(model_, tokenizer_, twice), Error);
}

}  // namespace
}  // namespace pronghorn
