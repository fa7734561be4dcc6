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
  // vocab_size: of the model. most_bytes: of what is kept.
  GrammarStore(std::shared_ptr<const Tokenizer> tokenizer, int64_t vocab_size,
               size_t most_bytes = kMostBytes)
      : tokenizer_(std::move(tokenizer)), vocab_size_(vocab_size), most_bytes_(most_bytes) {}

  // The grammar of that name, or what `make` makes of it on the calling thread. Those that were
  // used last are kept, as many as there is room for and one at least. Throws what `make` and
  // Grammar do.
  std::shared_ptr<TokenGrammar> get(const std::string& name,
                                    const std::function<GrammarRules()>& make);

 private:
  static constexpr size_t kMostBytes = size_t{128} << 20;
  std::shared_ptr<const TokenVocabulary> vocabulary();
  // Needs the lock.
  void drop_oldest();

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const int64_t vocab_size_;
  const size_t most_bytes_;
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
