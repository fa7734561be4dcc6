// GrammarStore: the grammars that texts of one model follow, made once.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "formats/tokenizer.h"
#include "grammar/token_grammar.h"

namespace pronghorn {

// From any thread.
class GrammarStore {
 public:
  // vocab_size: of the model.
  GrammarStore(std::shared_ptr<const Tokenizer> tokenizer, int64_t vocab_size)
      : tokenizer_(std::move(tokenizer)), vocab_size_(vocab_size) {}

  // The grammar of that name, or what `make` makes of it on the calling thread. Some of those that
  // were used last are kept. Throws what `make` and Grammar do.
  std::shared_ptr<TokenGrammar> get(const std::string& name,
                                    const std::function<GrammarRules()>& make);

 private:
  static constexpr size_t kKept = 16;
  std::shared_ptr<const TokenVocabulary> vocabulary();

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const int64_t vocab_size_;
  std::mutex mutex_;
  std::once_flag read_;
  std::shared_ptr<const TokenVocabulary> vocabulary_;
  std::list<std::pair<std::string, std::shared_ptr<TokenGrammar>>> kept_;  // the last used first
};

// What a grammar (parse_grammar) or a JSON schema asks for; null where both are empty. Throws
// UsageError for what is wrong with them, and for both at once.
std::shared_ptr<TokenGrammar> written_grammar(const std::string& grammar,
                                              const std::string& json_schema, GrammarStore& store);

}  // namespace pronghorn
