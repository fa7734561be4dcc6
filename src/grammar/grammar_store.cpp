#include "grammar/grammar_store.h"

#include <algorithm>

#include "base/error.h"
#include "grammar/json_schema.h"

namespace pronghorn {

std::shared_ptr<const TokenVocabulary> GrammarStore::vocabulary() {
  std::call_once(read_, [&] {
    vocabulary_ = std::make_shared<const TokenVocabulary>(*tokenizer_, vocab_size_);
  });
  return vocabulary_;
}

std::shared_ptr<TokenGrammar> GrammarStore::get(const std::string& name,
                                                const std::function<GrammarRules()>& make) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = std::ranges::find(kept_, name, [](const auto& kept) { return kept.first; });
    if (known != kept_.end()) {
      kept_.splice(kept_.begin(), kept_, known);
      drop_oldest();  // what is kept grows while it is used
      return known->second;
    }
  }
  const std::shared_ptr<const TokenVocabulary> tokens = vocabulary();
  auto made = std::make_shared<TokenGrammar>(Grammar(make(), tokens->special), tokens);
  const std::lock_guard lock(mutex_);
  kept_.emplace_front(name, made);
  drop_oldest();
  return made;
}

void GrammarStore::drop_oldest() {
  size_t bytes = 0;
  for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
    bytes += kept->first.size() + kept->second->bytes();
    if (bytes > most_bytes_ && kept != kept_.begin()) {
      kept_.erase(kept, kept_.end());
      return;
    }
  }
}

std::shared_ptr<TokenGrammar> written_grammar(const std::string& grammar,
                                              const std::string& json_schema, GrammarStore& store) {
  if (!grammar.empty() && !json_schema.empty()) {
    throw UsageError("grammar", "there is a JSON schema, too", "give one of them");
  }
  if (!grammar.empty()) {
    return store.get("grammar\n" + grammar, [&] { return parse_grammar(grammar); });
  }
  if (json_schema.empty()) return nullptr;
  return store.get("schema\n" + json_schema,
                   [&] { return schema_rules(parse_schema(json_schema, "schema")); });
}

}  // namespace pronghorn
