// From the messages of a chat to the tokens that the model reads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "decode/reading_plan.h"
#include "serve/http/fields.h"
#include "serve/http/served_model.h"

namespace pronghorn::serve {

// A conversation as templates of Hugging Face checkpoints know it.
struct Chat {
  Json messages = Json::array();    // {"role", "content", "tool_calls", ...} of each
  Json tools;                       // null: there are none
  Json variables = Json::object();  // what else the template is given (chat_template_kwargs)
  // A tool that must be called: this one, or, if the name is empty, any.
  std::optional<std::string> must_call;
  // Whether the last message, the assistant's, is to be continued, not answered.
  bool continues = false;
  // An image that is seen before the text: the image_url of a part, and where that stands. null:
  // there is none.
  Json image;
  std::string image_path;
};

// Reads the fields messages, tools, tool_choice and chat_template_kwargs of a chat request. Content
// in parts becomes one text; arguments of tool calls become objects, which templates expect. Throws
// ApiError.
Chat read_chat(Fields& fields);

struct ChatPrompt {
  std::string text;
  std::vector<int32_t> tokens;
  // Lengths of the prompt at which a message ends, and where it repeats answers (TextRequest).
  std::vector<int64_t> message_ends;
  std::vector<TokenRange> answers;
  bool begins_in_reasoning = false;  // the template has opened the reasoning of the answer
};

// The text alone. Throws ApiError if the model has no template, and JinjaError.
std::string chat_text(const ServedModel& model, const Chat& chat);
// Throws what chat_text() does, ApiError for a prompt that leaves no room in the context, and
// ClientGone.
ChatPrompt chat_prompt(const ServedModel& model, const Chat& chat,
                       const std::function<bool()>& client_is_gone);

// Throws ApiError for more messages than one request may have.
void check_message_count(const Json& messages, const std::string& path);

// Reads the field tools in the form of Anthropic's API and of responses, a name, a description and
// a schema (under the key `schema`) side by side. Throws ApiError.
void read_flat_tools(Fields& fields, const std::string& schema, Chat& chat);
// Throws ApiError for a part of a message, at `path`, that is of a type that nobody knows.
[[noreturn]] void refuse_part(const std::string& type, const std::string& path);

// What tool_choice says: "none", "auto", "required" or a tool; takes the tools away, or sets
// must_call. Throws ApiError for anything else.
void read_tool_choice(Fields& fields, Chat& chat);

// One message with its content as one text. path: "messages[2]". Throws ApiError for content of
// another kind than text.
Json plain_message(const Json& message, const std::string& path);
// The text of a content that is a string or a list of parts; null: empty.
std::string content_text(const Json& content, const std::string& path);

}  // namespace pronghorn::serve
