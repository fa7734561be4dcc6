// What an answer must look like: response_format, grammar, and tools that must be called.
#pragma once

#include <memory>
#include <string>

#include "grammar/token_grammar.h"
#include "serve/http/chat_prompt.h"
#include "serve/http/fields.h"
#include "serve/http/served_model.h"

namespace pronghorn::serve {

struct AnswerFormat {
  enum class Kind : uint8_t { text, json_object, json_schema, grammar } kind = Kind::text;
  Json schema;
  std::string grammar;  // as parse_grammar() reads it
  std::string field;    // that asked for it
};

// The fields response_format ({"type": "text"}, "json_object" or "json_schema" with its
// "json_schema": {"schema", "strict", "name"}) and grammar. Throws ApiError for what else they say,
// and for both at once.
AnswerFormat read_answer_format(Fields& fields);
// One format, whose schema stands beside its type (text.format of responses) or, nested, within.
AnswerFormat read_format(const Json& format, const std::string& path, bool nested);

// The grammar of a text that is no answer in a chat; null: anything. Throws ApiError for schemas
// and grammars that cannot be followed.
std::shared_ptr<TokenGrammar> text_grammar(const ServedModel& model, const AnswerFormat& format);
// The same of an answer, which may reason before. Where the chat has tools, one may be called
// instead; one is, where the chat says so, which throws ApiError if the model's template does not
// show how.
std::shared_ptr<TokenGrammar> answer_grammar(const ServedModel& model, const AnswerFormat& format,
                                             const Chat& chat, bool in_reasoning);

}  // namespace pronghorn::serve
