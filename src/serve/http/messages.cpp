// POST /v1/messages and /v1/messages/count_tokens, of Anthropic's API.
#include "serve/http/api_error.h"
#include "serve/http/chat_image.h"
#include "serve/http/chat_run.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

Json tool_use(const Json& block, const std::string& path) {
  Fields fields(block, path);
  const Json& input = fields.raw("input");
  return tool_call(fields.text("id"), fields.text("name"),
                   input.is_null() ? Json::object() : input);
}

// Adds a message of content blocks: results of tools become messages of their own.
void add_blocks(const std::string& role, const Json& blocks, const std::string& path, Chat& chat) {
  std::string text;
  Json calls = Json::array();
  bool shows = false;  // an image
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", path, i);
    if (take_image(blocks[i], at, chat)) {
      shows = true;
      continue;
    }
    Fields fields(blocks[i], at);
    const std::string type = fields.text("type");
    if (type == "text") {
      text += fields.text("text");
    } else if (type == "tool_use") {
      calls.push_back(tool_use(blocks[i], at));
    } else if (type == "tool_result") {
      chat.messages.push_back(
          tool_result(fields.text("tool_use_id", ""),
                      content_text(fields.raw("content"), at + ".content", chat)));
    } else if (type != "thinking" && type != "redacted_thinking") {
      refuse_part(type, at);
    }
  }
  if (text.empty() && calls.empty() && !shows) return;
  Json message = {{"role", role}, {"content", text}};
  if (!calls.empty()) message["tool_calls"] = calls;
  chat.messages.push_back(message);
}

void add_message(const Json& message, const std::string& path, Chat& chat) {
  Fields fields(message, path);
  const std::string role = fields.text("role");
  if (role != "user" && role != "assistant" && role != "system") {
    refuse_field(path + ".role", "must be \"user\" or \"assistant\", is " + shown(Json(role)));
  }
  const Json& content = fields.required("content");
  if (content.is_string()) {
    chat.messages.push_back({{"role", role}, {"content", content}});
  } else if (content.is_array()) {
    add_blocks(role, content, path + ".content", chat);
  } else {
    refuse_field(path + ".content", "must be a string or a list of blocks");
  }
}

void read_tools(Fields& fields, Chat& chat) {
  read_flat_tools(fields, "input_schema", chat);
  const Json& choice = fields.raw("tool_choice");
  if (choice.is_null()) return;
  Fields of(choice, "tool_choice");
  const std::string type = of.text("type");
  if (type == "none") chat.tools = Json();
  if (type == "any") chat.must_call = "";
  if (type == "tool") chat.must_call = of.text("name");
  if (type != "none" && type != "any" && type != "tool" && type != "auto") {
    refuse_field("tool_choice.type",
                 "must be \"auto\", \"any\", \"tool\" or \"none\", is " + shown(Json(type)));
  }
}

Chat read_messages(Fields& fields) {
  Chat chat;
  add_system(content_text(fields.raw("system"), "system", chat), chat);
  for_each_message(
      fields.required("messages"), "messages",
      [&](const Json& message, const std::string& path) { add_message(message, path, chat); });
  if (chat.messages.empty()) refuse_field("messages", "hold no text");
  chat.continues = chat.messages.back()["role"] == "assistant";
  read_tools(fields, chat);
  return chat;
}

const char* stop_reason(const TextSummary& summary, bool calls) {
  if (calls) return "tool_use";
  switch (summary.end) {
    case TextSummary::End::length:
      return "max_tokens";
    case TextSummary::End::stop_string:
      return "stop_sequence";
    default:
      return "end_turn";
  }
}

json stop_sequence(const TextSummary& summary) {
  return summary.stop.empty() ? json() : json(summary.stop);
}

json usage_of(const TextSummary& summary) {
  return {{"input_tokens", summary.prompt_tokens - summary.cached_tokens},
          {"cache_read_input_tokens", summary.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"output_tokens", summary.tokens}};
}

struct MessageReply {
  std::string id = new_id("msg_");
  std::shared_ptr<ChatRun> run;
  std::vector<std::string> ignored;

  json head() const {
    return {{"id", id},
            {"type", "message"},
            {"role", "assistant"},
            {"model", run->model().name},
            {"content", json::array()},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }
};

json empty_block(const AnswerPiece& piece) {
  switch (piece.kind) {
    case AnswerPiece::Kind::reasoning:
      return {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
    case AnswerPiece::Kind::tool_call:
      return {{"type", "tool_use"},
              {"id", new_id("toolu_")},
              {"name", piece.name},
              {"input", json::object()}};
    case AnswerPiece::Kind::content:
      break;
  }
  return {{"type", "text"}, {"text", ""}};
}

json block_delta(const AnswerPiece& piece) {
  switch (piece.kind) {
    case AnswerPiece::Kind::reasoning:
      return {{"type", "thinking_delta"}, {"thinking", piece.text}};
    case AnswerPiece::Kind::tool_call:
      return {{"type", "input_json_delta"}, {"partial_json", piece.arguments}};
    case AnswerPiece::Kind::content:
      break;
  }
  return {{"type", "text_delta"}, {"text", piece.text}};
}

// Whether the piece goes on in the block that is open.
bool continues_block(const std::optional<AnswerPiece::Kind>& open, const AnswerPiece& piece) {
  return open == piece.kind && (piece.kind != AnswerPiece::Kind::tool_call || !piece.begins);
}

class MessageStream {
 public:
  explicit MessageStream(EventStream& out) : out_(out) {}

  void send(const char* type, json body) {
    body["type"] = type;
    out_.data(body, type);
  }
  void add(const AnswerPiece& piece) {
    if (!continues_block(open_, piece)) {
      close();
      open_ = piece.kind;
      send("content_block_start", {{"index", index_}, {"content_block", empty_block(piece)}});
    }
    if (!says_something(piece)) return;
    send("content_block_delta", {{"index", index_}, {"delta", block_delta(piece)}});
  }
  void close() {
    if (open_) send("content_block_stop", {{"index", index_++}});
    open_.reset();
  }

 private:
  EventStream& out_;
  std::optional<AnswerPiece::Kind> open_;
  size_t index_ = 0;
};

void stream(const MessageReply& reply, EventStream& out) {
  ChatRun& run = *reply.run;
  MessageStream events(out);
  json head = reply.head();
  head["usage"] = {{"input_tokens", run.prompt_tokens()}, {"output_tokens", 0}};
  events.send("message_start", {{"message", head}});
  while (const auto event = run.next([&] { events.send("ping", json::object()); })) {
    for (const AnswerPiece& piece : event->pieces) events.add(piece);
  }
  events.close();
  const TextSummary& summary = run.summary(0);
  json delta = {{"delta",
                 {{"stop_reason", stop_reason(summary, run.called_tools(0))},
                  {"stop_sequence", stop_sequence(summary)}}},
                {"usage", usage_of(summary)}};
  delta.update(extension_json(run.model(), summary, reply.ignored));
  events.send("message_delta", delta);
  events.send("message_stop", json::object());
}

void add_to_content(const AnswerPiece& piece, std::optional<AnswerPiece::Kind>& open,
                    json& content) {
  if (!continues_block(open, piece)) content.push_back(empty_block(piece));
  open = piece.kind;
  json& block = content.back();
  if (piece.kind == AnswerPiece::Kind::tool_call) {
    block["input"] = json::parse(piece.arguments);
  } else {
    const char* key = piece.kind == AnswerPiece::Kind::content ? "text" : "thinking";
    block[key].get_ref<std::string&>() += piece.text;
  }
}

json whole(const MessageReply& reply) {
  ChatRun& run = *reply.run;
  json document = reply.head();
  std::optional<AnswerPiece::Kind> open;
  while (const auto event = run.next()) {
    for (const AnswerPiece& piece : event->pieces) add_to_content(piece, open, document["content"]);
  }
  const TextSummary& summary = run.summary(0);
  document["stop_reason"] = stop_reason(summary, run.called_tools(0));
  document["stop_sequence"] = stop_sequence(summary);
  document["usage"] = usage_of(summary);
  document.update(extension_json(run.model(), summary, reply.ignored));
  return document;
}

}  // namespace

Reply messages(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  Chat chat = read_messages(fields);
  read_reasoning(fields, *model, chat);
  TextFields text = read_text_fields(fields, *model, service.options);
  refuse_choices(text);
  text.options.stop = read_stops(fields, "stop_sequences", service.options);
  fields.required("max_tokens");
  const int64_t most = read_most_tokens(fields, 0);
  MessageReply reply;
  reply.ignored = fields.unread();
  reply.run = std::make_shared<ChatRun>(service, model, call, chat, text, most);
  if (!text.stream) return whole(reply);
  return StreamFunction([reply](EventStream& out) { stream(reply, out); });
}

Reply count_message_tokens(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  Chat chat = read_messages(fields);
  read_reasoning(fields, *model, chat);
  const std::vector<int32_t> tokens = model->tokenizer->encode(
      chat_text(*model, chat), {.add_special = false, .parse_special = true});
  int64_t count = std::ssize(tokens);
  if (seen_image(*model, chat) != nullptr) count += model->model->config().vision->rows();
  return with_ignored({{"input_tokens", count}}, fields);
}

}  // namespace pronghorn::serve
