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
  // An image that is seen before the text, as a part of a message in the body of the request has it
  // (take_image()), and where that stands. The body must outlive it. null: there is none.
  const Json* image = nullptr;
  std::string image_path;
  int64_t reasoning_tokens = -1;  // that an answer's reasoning may have; -1: any number
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

// Calls `add` with each of the messages or items of a request, and with where it stands
// ("messages[2]"). Throws ApiError for what is no list, an empty list, and more than a request may
// have.
void for_each_message(const Json& list, const std::string& path,
                      const std::function<void(const Json&, const std::string&)>& add);

// What chats of other APIs become here: a system message (none of an empty text), a call that the
// model made in an earlier turn, and the message with what it gave.
void add_system(const std::string& text, Chat& chat);
Json tool_call(const std::string& id, const std::string& name, const Json& arguments);
Json tool_result(const std::string& id, const std::string& content);

// Reads the field tools in the form of Anthropic's API and of responses, a name, a description and
// a schema (under the key `schema`) side by side. Throws ApiError.
void read_flat_tools(Fields& fields, const std::string& schema, Chat& chat);
// Throws ApiError for a part of a message, at `path`, that is of a type that nobody knows.
[[noreturn]] void refuse_part(const std::string& type, const std::string& path);

// What tool_choice says: "none", "auto", "required" or a tool; takes the tools away, or sets
// must_call. Throws ApiError for anything else.
void read_tool_choice(Fields& fields, Chat& chat);

// One message with its content as one text. path: "messages[2]". An image in it becomes the chat's.
// Throws ApiError for content of another kind.
Json plain_message(const Json& message, const std::string& path, Chat& chat);
// The text of a content that is a string or a list of parts; null: empty. The same for images.
std::string content_text(const Json& content, const std::string& path, Chat& chat);

}  // namespace pronghorn::serve
