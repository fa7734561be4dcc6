#include "serve/http/chat_prompt.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "formats/jinja.h"
#include "serve/http/answer_parser.h"
#include "serve/http/api_error.h"
#include "serve/http/chat_image.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {
namespace {

constexpr size_t kMostMessages = 4096;
// Of prefixes that are written to find out where messages end: the time for it grows with the
// square of their number.
constexpr size_t kPrefixBytes = size_t{1} << 24, kPrefixMessages = size_t{1} << 16;

bool is_role(const Json& message, std::string_view role) { return message.at("role") == role; }

// Arguments come as JSON text; templates write them as objects.
void parse_arguments(Json& message, const std::string& path) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || calls->is_null()) return;
  if (!calls->is_array()) refuse_field(path + ".tool_calls", "must be a list");
  for (Json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) {
      refuse_field(path + ".tool_calls", "holds " + shown(call) + ", not a call of a function");
    }
    Json& function = call["function"];
    const auto arguments = function.find("arguments");
    if (arguments == function.end() || !arguments->is_string()) continue;
    try {
      *arguments = parse_variables(arguments->get_ref<const std::string&>(), "arguments");
    } catch (const Error&) {
      // Stays the text that it is: the model wrote it so.
    }
  }
}

Json template_variables(const Chat& chat, size_t count, bool add_generation_prompt) {
  Json variables = chat.variables;
  variables["messages"] = Json::array();
  for (size_t i = 0; i < count; ++i) variables["messages"].push_back(chat.messages[i]);
  if (!chat.tools.is_null()) variables["tools"] = chat.tools;
  variables["add_generation_prompt"] = add_generation_prompt;
  return variables;
}

// The text of the first `count` messages; nothing if the template does not take them alone.
std::optional<std::string> prefix_text(const ServedModel& model, const Chat& chat, size_t count,
                                       bool add_generation_prompt) {
  try {
    return model.format.render(template_variables(chat, count, add_generation_prompt));
  } catch (const JinjaError&) {
    return {};
  }
}

// Places of a text as places among its tokens.
class TokenPlaces {
 public:
  TokenPlaces(const Tokenizer& tokenizer, const std::string& text,
              const std::vector<int32_t>& tokens)
      : tokenizer_(tokenizer), tokens_(tokens) {
    int64_t end = 0;
    for (const int32_t token : tokens) {
      end += static_cast<int64_t>(tokenizer.token_bytes(token, true).size());
      ends_.push_back(end);
    }
    // Not so where the tokenizer normalises, or adds a space.
    exact_ = end == static_cast<int64_t>(text.size());
  }

  // The number of tokens that `prefix`, with which the text begins, consists of; nothing if a token
  // reaches beyond its end.
  std::optional<int64_t> of(const std::string& prefix) const {
    if (exact_) {
      const auto at = std::ranges::lower_bound(ends_, static_cast<int64_t>(prefix.size()));
      if (at == ends_.end() || *at != static_cast<int64_t>(prefix.size())) return {};
      return at - ends_.begin() + 1;
    }
    const std::vector<int32_t> own =
        tokenizer_.encode(prefix, {.add_special = false, .parse_special = true});
    if (own.size() > tokens_.size() ||
        !std::ranges::equal(own, std::span(tokens_).first(own.size())))
      return {};
    return static_cast<int64_t>(own.size());
  }

 private:
  const Tokenizer& tokenizer_;
  const std::vector<int32_t>& tokens_;
  std::vector<int64_t> ends_;
  bool exact_ = false;
};

// Where messages end in the prompt. What is found depends on the messages before it alone, so that
// every turn of a conversation finds the same places.
void find_messages(const ServedModel& model, const Chat& chat,
                   const std::function<bool()>& client_is_gone, ChatPrompt& prompt) {
  const TokenPlaces places(*model.tokenizer, prompt.text, prompt.tokens);
  size_t written = 0, messages = 0;
  const auto place = [&](size_t count, bool answering) -> std::optional<int64_t> {
    if (client_is_gone()) throw ClientGone();
    const std::optional<std::string> text = prefix_text(model, chat, count, answering);
    messages += count;
    written += text ? text->size() : 0;
    if (!text || text->empty() || !prompt.text.starts_with(*text)) return {};
    return places.of(*text);
  };
  const size_t count = chat.messages.size();
  for (size_t i = 0; i < count && written < kPrefixBytes && messages < kPrefixMessages; ++i) {
    const bool last = i + 1 == count;
    if (last && chat.continues) break;
    std::optional<int64_t> begin;
    if (is_role(chat.messages[i], "assistant") && i > 0) begin = place(i, true);
    const std::optional<int64_t> end = place(i + 1, false);
    if (!end || (!prompt.message_ends.empty() && *end <= prompt.message_ends.back())) continue;
    prompt.message_ends.push_back(*end);
    const int64_t before = prompt.answers.empty() ? 0 : prompt.answers.back().end;
    if (begin && *begin < *end && *begin >= before) prompt.answers.push_back({*begin, *end});
  }
}

bool opens_reasoning(std::string_view text) {
  const size_t end = text.find_last_not_of(" \n\r\t");
  return end != text.npos && text.substr(0, end + 1).ends_with(answer_marks(false).reasoning);
}

}  // namespace

std::string content_text(const Json& content, const std::string& path, Chat& chat) {
  if (content.is_null()) return {};
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) refuse_field(path, "must be a string or a list of parts");
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    if (part.is_string()) {
      text += part.get_ref<const std::string&>();
      continue;
    }
    if (take_image(part, fmt::format("{}[{}]", path, i), chat)) continue;
    const bool has_text = part.is_object() && part.contains("text") && part["text"].is_string();
    if (!has_text) {
      throw ApiError(
          400, "unsupported_content",
          path + " holds " + shown(part) + "; only parts of text and images are understood", path);
    }
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

void for_each_message(const Json& list, const std::string& path,
                      const std::function<void(const Json&, const std::string&)>& add) {
  if (!list.is_array() || list.empty()) {
    refuse_field(path, "must be a list with at least one message");
  }
  if (list.size() > kMostMessages) {
    ApiError error(413, "too_many_items",
                   fmt::format("{} has {} items, more than {}", path, list.size(), kMostMessages),
                   path);
    error.details["limit"] = kMostMessages;
    throw error;
  }
  for (size_t i = 0; i < list.size(); ++i) add(list[i], fmt::format("{}[{}]", path, i));
}

void add_system(const std::string& text, Chat& chat) {
  if (!text.empty()) chat.messages.push_back({{"role", "system"}, {"content", text}});
}

Json tool_call(const std::string& id, const std::string& name, const Json& arguments) {
  return {
      {"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}};
}

Json tool_result(const std::string& id, const std::string& content) {
  return {{"role", "tool"}, {"tool_call_id", id}, {"content", content}};
}

Json plain_message(const Json& message, const std::string& path, Chat& chat) {
  Fields fields(message, path);
  Json plain = Json::object();
  // Content may be large, and is not kept as it is.
  for (const auto& [key, value] : message.items()) {
    plain[key] = key == "content" ? Json() : value;
  }
  const std::string role = fields.text("role");
  plain["role"] = role == "developer" ? "system" : role;
  plain["content"] = content_text(fields.raw("content"), path + ".content", chat);
  parse_arguments(plain, path);
  return plain;
}

void refuse_part(const std::string& type, const std::string& path) {
  throw ApiError(400, "unsupported_content",
                 path + " is of the type " + shown(Json(type)) + ", which is not understood", path);
}

void read_flat_tools(Fields& fields, const std::string& schema, Chat& chat) {
  const Json& tools = fields.raw("tools");
  if (tools.is_null()) return;
  if (!tools.is_array()) refuse_field("tools", "must be a list");
  Json list = Json::array();
  for (size_t i = 0; i < tools.size(); ++i) {
    Fields tool(tools[i], fmt::format("tools[{}]", i));
    list.push_back({{"type", "function"},
                    {"function",
                     {{"name", tool.text("name")},
                      {"description", tool.text("description", "")},
                      {"parameters", tool.raw(schema)}}}});
  }
  if (!list.empty()) chat.tools = list;
}

void read_tool_choice(Fields& fields, Chat& chat) {
  const Json& choice = fields.raw("tool_choice");
  if (choice.is_null() || choice == "auto") return;
  if (choice == "none") {
    chat.tools = Json();
  } else if (choice == "required") {
    chat.must_call = "";
  } else if (choice.is_object()) {
    // {"type": "function", "function": {"name"}}, or the name beside the type (responses).
    Fields of(choice, "tool_choice");
    const Json& function = of.raw("function");
    chat.must_call = function.is_null() ? of.text("name")
                                        : Fields(function, "tool_choice.function").text("name");
  } else {
    refuse_field("tool_choice",
                 "must be \"none\", \"auto\", \"required\" or a function, is " + shown(choice));
  }
}

Chat read_chat(Fields& fields) {
  Chat chat;
  for_each_message(fields.required("messages"), "messages",
                   [&](const Json& message, const std::string& path) {
                     chat.messages.push_back(plain_message(message, path, chat));
                   });
  const Json& variables = fields.raw("chat_template_kwargs");
  if (!variables.is_null()) {
    if (!variables.is_object()) refuse_field("chat_template_kwargs", "must be an object");
    chat.variables = variables;
  }
  const Json& tools = fields.raw("tools");
  if (!tools.is_null() && !tools.is_array()) refuse_field("tools", "must be a list");
  if (!tools.is_null() && !tools.empty()) chat.tools = tools;
  read_tool_choice(fields, chat);
  chat.continues = fields.boolean("continue_final_message", false);
  if (chat.continues && !is_role(chat.messages.back(), "assistant")) {
    refuse_field("continue_final_message", "needs a last message of the assistant");
  }
  return chat;
}

std::string chat_text(const ServedModel& model, const Chat& chat) {
  if (!model.format.has_template()) {
    throw ApiError(400, "no_chat_template",
                   model.name + " has no chat template (it continues texts: /v1/completions)",
                   "messages");
  }
  const size_t count = chat.messages.size();
  if (!chat.continues) return model.format.render(template_variables(chat, count, true));
  // Up to the end of the last message: what the template puts behind it would end it.
  constexpr std::string_view kEnd = "\u2063pronghorn-end\u2063";
  Chat marked = chat;
  Json& content = marked.messages.back()["content"];
  content = content.get<std::string>().append(kEnd);
  const std::string text = model.format.render(template_variables(marked, count, false));
  const size_t at = text.rfind(kEnd);
  if (at == text.npos) refuse_field("messages", "end with a message that the template leaves out");
  return text.substr(0, at);
}

ChatPrompt chat_prompt(const ServedModel& model, const Chat& chat,
                       const std::function<bool()>& client_is_gone) {
  ChatPrompt prompt;
  prompt.text = chat_text(model, chat);
  // The template writes what the model expects at the beginning.
  prompt.tokens =
      model.tokenizer->encode(prompt.text, {.add_special = false, .parse_special = true});
  if (prompt.tokens.empty()) {
    throw ApiError(400, "empty_prompt", "the template makes no text of the messages", "messages");
  }
  check_fits(model, static_cast<int64_t>(prompt.tokens.size()), 1);
  find_messages(model, chat, client_is_gone, prompt);
  prompt.begins_in_reasoning = !chat.continues && opens_reasoning(prompt.text);
  return prompt;
}

}  // namespace pronghorn::serve
