#include "serve/http/answer_format.h"

#include "base/error.h"
#include "base/quote.h"
#include "grammar/json_rules.h"
#include "grammar/json_schema.h"
#include "grammar/text_rules.h"
#include "serve/http/answer_parser.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

constexpr size_t kMostGrammarBytes = size_t{1} << 18;  // and of all tools together
constexpr std::string_view kCallMark = "<tool_call>";

[[noreturn]] void refuse_large(const std::string& field) {
  ApiError error(413, "too_long",
                 fmt::format("{} has more than {} bytes", field, kMostGrammarBytes), field);
  error.details["limit"] = kMostGrammarBytes;
  throw error;
}

int32_t add_format(GrammarRules& rules, const AnswerFormat& format) {
  if (format.kind == AnswerFormat::Kind::json_schema) return add_schema(rules, format.schema);
  return JsonRules(rules).any_object();
}

// What the chat's tools take; those of one name if one is named.
std::vector<CallableTool> tools_of(const Chat& chat) {
  std::vector<CallableTool> tools;
  for (const Json& tool : chat.tools) {
    const Json& function = tool.contains("function") ? tool["function"] : tool;
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) {
      refuse_field("tools", "holds " + shown(tool) + ", which is no function with a name");
    }
    const auto name = function["name"].get<std::string>();
    if (chat.must_call && !chat.must_call->empty() && name != *chat.must_call) continue;
    tools.push_back({name, function.contains("parameters") ? function["parameters"] : Json()});
  }
  if (tools.empty()) {
    refuse_field("tool_choice",
                 "asks for " + quote(chat.must_call.value_or("")) + ", which is none of the tools");
  }
  return tools;
}

// What is made is the request's own doing.
template <typename Make>
std::shared_ptr<TokenGrammar> made(const ServedModel& model, const AnswerFormat& format,
                                   const std::string& name, const Make& make) {
  const std::string field = format.field.empty() ? "tools" : format.field;
  try {
    return model.grammars->get(name, make);
  } catch (const UsageError& error) {
    const bool grammar = format.kind == AnswerFormat::Kind::grammar;
    throw ApiError(400, grammar ? "invalid_grammar" : "invalid_schema", error.what(), field);
  }
}

std::string name_of(const AnswerFormat& format) {
  return fmt::format("{}\n{}\n{}", static_cast<int>(format.kind), format.grammar,
                     format.schema.dump(-1, ' ', false, Json::error_handler_t::replace));
}

// A grammar is the whole of its rules.
std::shared_ptr<TokenGrammar> given_grammar(const ServedModel& model, const AnswerFormat& format) {
  return made(model, format, name_of(format), [&] { return parse_grammar(format.grammar); });
}

}  // namespace

AnswerFormat read_format(const Json& format, const std::string& path, bool nested) {
  AnswerFormat result;
  result.field = path;
  Fields fields(format, path);
  const std::string type = fields.text("type");
  if (type == "text") return result;
  if (type == "json_object") {
    result.kind = AnswerFormat::Kind::json_object;
    return result;
  }
  if (type != "json_schema") {
    throw ApiError(400, "unsupported_response_format",
                   path + " " + shown(Json(type)) +
                       " is not supported (\"text\", \"json_object\" and \"json_schema\" are)",
                   path);
  }
  const std::string inner = nested ? path + ".json_schema" : path;
  const Json& holder = nested ? fields.required("json_schema") : format;
  Fields of(holder, inner);
  result.kind = AnswerFormat::Kind::json_schema;
  result.schema = of.required("schema");
  if (result.schema.dump(-1, ' ', false, Json::error_handler_t::replace).size() >
      kMostGrammarBytes) {
    refuse_large(inner + ".schema");
  }
  of.boolean("strict", true);  // texts follow the schema in either case
  return result;
}

AnswerFormat read_answer_format(Fields& fields) {
  AnswerFormat result;
  const Json& format = fields.raw("response_format");
  if (!format.is_null()) result = read_format(format, "response_format", true);
  const std::string grammar = fields.text("grammar", "");
  if (grammar.empty()) return result;
  if (result.kind != AnswerFormat::Kind::text) {
    refuse_field("grammar", "cannot be followed together with response_format");
  }
  if (grammar.size() > kMostGrammarBytes) refuse_large("grammar");
  result.kind = AnswerFormat::Kind::grammar;
  result.grammar = grammar;
  result.field = "grammar";
  return result;
}

std::shared_ptr<TokenGrammar> text_grammar(const ServedModel& model, const AnswerFormat& format) {
  if (format.kind == AnswerFormat::Kind::text) return nullptr;
  if (format.kind == AnswerFormat::Kind::grammar) return given_grammar(model, format);
  return made(model, format, name_of(format), [&] {
    GrammarRules rules;
    const int32_t answer = add_format(rules, format);
    rules.start = rules.declare("root");
    rules.define(rules.start, answer);
    return rules;
  });
}

std::shared_ptr<TokenGrammar> answer_grammar(const ServedModel& model, const AnswerFormat& format,
                                             const Chat& chat, bool in_reasoning) {
  const bool has_tools = !chat.tools.is_null() && model.format.mentions(kCallMark);
  if (chat.must_call && !has_tools) {
    throw ApiError(400, "unsupported_tool_choice",
                   chat.tools.is_null()
                       ? "tool_choice asks for a call, and there are no tools"
                       : model.name +
                             " has no template that shows how tools are called (leave "
                             "tool_choice out, or give the model a template with " +
                             std::string(kCallMark) + ")",
                   "tool_choice");
  }
  const bool given = format.kind == AnswerFormat::Kind::grammar;
  if (chat.must_call && given) {
    refuse_field("tool_choice", "asks for a call of a tool, and the grammar for another text");
  }
  if (format.kind == AnswerFormat::Kind::text && !chat.must_call) return nullptr;
  const bool may_call = has_tools && !given;
  const std::string tools =
      may_call ? chat.tools.dump(-1, ' ', false, Json::error_handler_t::replace) : "";
  if (tools.size() > kMostGrammarBytes) refuse_large("tools");
  const bool may_reason = model.tokenizer->find_token(answer_marks(false).reasoning).has_value();
  const std::string name =
      fmt::format("{}\n{}{}{}\n{}\n{}", name_of(format), in_reasoning, may_reason,
                  chat.must_call.has_value(), chat.must_call.value_or(""), tools);
  return made(model, format, name, [&] {
    GrammarRules rules;
    std::vector<int32_t> answers;
    if (given) {
      rules = parse_grammar(format.grammar);
      answers.push_back(rules.rule(rules.start));
    } else if (!chat.must_call) {
      answers.push_back(add_format(rules, format));
    }
    if (may_call) answers.push_back(add_tool_call(rules, tools_of(chat)));
    const int32_t answer = rules.choice(std::move(answers));
    rules.start = rules.declare("root");
    rules.define(rules.start, add_reasoning(rules, answer, in_reasoning, may_reason));
    return rules;
  });
}

}  // namespace pronghorn::serve
