// Texts that follow grammars, beside texts that do not: none depends on the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "grammar/grammar_store.h"
#include "serve/clients.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

class EngineGrammarTest : public testing::Test {
 protected:
  std::shared_ptr<TokenGrammar> grammar(const std::string& text) {
    return store_.get(text, [&] { return parse_grammar(text); });
  }
  // Some follow a grammar, some do not.
  std::vector<ClientPointer> clients() {
    std::vector<ClientPointer> all;
    for (int64_t i = 0; i < 12; ++i) {
      ClientPointer one = client(random_tokens(5 + 7 * i, 61, static_cast<uint64_t>(i)), 60,
                                 static_cast<uint64_t>(i));
      if (i % 3 != 2) {
        one->request.options.grammar =
            grammar(i % 3 == 0 ? "root ::= ([a-e] [f-k]){2,20} \"z\""
                               : "root ::= pair+ \"y\"\npair ::= [a-c]+ | \"m\" pair \"n\"");
      }
      if (i % 2 == 0) one->request.options.sampling.temperature = 0;
      all.push_back(one);
    }
    return all;
  }

  const std::shared_ptr<const Model> model_ = tiny_model("hybrid");
  const std::shared_ptr<const Tokenizer> tokenizer_ = syllables(0);
  GrammarStore store_{tokenizer_, 61};
};

TEST_F(EngineGrammarTest, BusyIsIdleWithGuessesAndWithout) {
  std::vector<std::string> alone;
  for (const ClientPointer& one : clients()) {
    Engine engine(model_, tokenizer_, {});
    alone.push_back(run(engine, one)->heard());
  }
  for (const char* draft : {"", "ngram", "early-exit:1"}) {
    EngineOptions options;
    options.sequences = 5;
    options.draft = draft;
    Engine engine(model_, tokenizer_, options);
    const std::vector<ClientPointer> all = clients();
    for (const ClientPointer& one : all) submit(engine, one);
    finish(engine);
    for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i]->heard(), alone[i]) << draft << i;
  }
}

TEST_F(EngineGrammarTest, OneThatCannotGoOnHarmsNobody) {
  Engine engine(model_, tokenizer_, {.draft = "early-exit:1"});
  const ClientPointer good = client(random_tokens(9, 61, 1), 30);
  const std::string alone = run(engine, good)->heard();
  const ClientPointer stuck = client(random_tokens(9, 61, 2), 30), beside = again(good);
  stuck->request.options.grammar = grammar("root ::= \"a\"{2} \"#\"");  // no token has a #
  submit(engine, stuck);
  submit(engine, beside);
  finish(engine);
  EXPECT_EQ(stuck->summary.end, TextSummary::End::failed);
  EXPECT_THAT(stuck->summary.error, HasSubstr("no token may be written"));
  EXPECT_EQ(beside->heard(), alone);
}

}  // namespace
}  // namespace pronghorn
