// POST /v1/responses, of OpenAI's API, without state: nothing is stored.
#include <ctime>

#include "serve/http/api_error.h"
#include "serve/http/chat_run.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

// One item of the input, as a message of a chat.
void add_item(const Json& item, const std::string& path, Chat& chat) {
  Fields fields(item, path);
  const std::string type = fields.text("type", "message");
  if (type == "message") {
    Json message = plain_message({{"role", fields.text("role")}}, path, chat);
    message["content"] = content_text(fields.required("content"), path + ".content", chat);
    chat.messages.push_back(message);
  } else if (type == "function_call") {
    const Json call =
        tool_call(fields.text("call_id"), fields.text("name"), fields.text("arguments"));
    const Json message = {
        {"role", "assistant"}, {"content", ""}, {"tool_calls", Json::array({call})}};
    chat.messages.push_back(plain_message(message, path, chat));
  } else if (type == "function_call_output") {
    chat.messages.push_back(tool_result(
        fields.text("call_id"), content_text(fields.raw("output"), path + ".output", chat)));
  } else if (type != "reasoning") {
    refuse_part(type, path);
  }
}

void read_tools(Fields& fields, Chat& chat) {
  const Json& tools = fields.raw("tools");
  for (size_t i = 0; tools.is_array() && i < tools.size(); ++i) {
    const std::string path = fmt::format("tools[{}]", i);
    if (Fields(tools[i], path).text("type") != "function") {
      refuse_field(path, "is of a type that is not served here");
    }
  }
  read_flat_tools(fields, "parameters", chat);
}

Chat read_input(Fields& fields) {
  Chat chat;
  add_system(fields.text("instructions", ""), chat);
  const Json& input = fields.required("input");
  if (input.is_string()) {
    chat.messages.push_back({{"role", "user"}, {"content", input}});
  } else if (!input.is_array()) {
    refuse_field("input", "must be a string or a list of items");
  } else {
    for_each_message(input, "input", [&](const Json& item, const std::string& path) {
      add_item(item, path, chat);
    });
  }
  if (fields.has("previous_response_id")) {
    throw ApiError(400, "unsupported_parameter",
                   "previous_response_id is not supported: responses are not stored; send the "
                   "whole conversation as input",
                   "previous_response_id");
  }
  fields.boolean("store", false);  // the answer says that nothing is
  const Json& variables = fields.raw("chat_template_kwargs");
  if (variables.is_object()) chat.variables = variables;
  read_tools(fields, chat);
  read_tool_choice(fields, chat);
  return chat;
}

// What text.format asks for, beside the fields that all endpoints have.
void read_text_format(Fields& fields, AnswerFormat& format) {
  const Json& text = fields.raw("text");
  if (text.is_null()) return;
  const Json& own = Fields(text, "text").raw("format");
  if (!own.is_null()) format = read_format(own, "text.format", false);
}

struct ResponseReply {
  std::string id = new_id("resp_");
  std::time_t created = std::time(nullptr);
  std::shared_ptr<ChatRun> run;
  std::vector<std::string> ignored;
  json echoed;  // fields of the request that an answer repeats

  json document(const char* status, const json& output) const {
    json document = echoed;
    document.update({{"id", id},
                     {"object", "response"},
                     {"created_at", created},
                     {"status", status},
                     {"error", nullptr},
                     {"incomplete_details", nullptr},
                     {"model", run->model().name},
                     {"output", output},
                     {"previous_response_id", nullptr},
                     {"store", false},
                     {"parallel_tool_calls", true},
                     {"usage", nullptr}});
    return document;
  }
};

json echoed_fields(const Json& body, const SamplingOptions& sampling, int64_t most) {
  const auto of = [&](const char* key, const json& fallback) {
    const auto found = body.find(key);
    return found == body.end() || found->is_null() ? fallback : json::parse(found->dump());
  };
  return {{"instructions", of("instructions", nullptr)},
          {"metadata", of("metadata", json::object())},
          {"tools", of("tools", json::array())},
          {"tool_choice", of("tool_choice", "auto")},
          {"temperature", sampling.temperature},
          {"top_p", sampling.top_p},
          {"max_output_tokens", most < 0 ? json() : json(most)}};
}

json usage_of(const TextSummary& summary) {
  return {{"input_tokens", summary.prompt_tokens},
          {"input_tokens_details", {{"cached_tokens", summary.cached_tokens}}},
          {"output_tokens", summary.tokens},
          {"output_tokens_details", {{"reasoning_tokens", 0}}},
          {"total_tokens", summary.prompt_tokens + summary.tokens}};
}

// The items of an answer while it is written, with the events that tell of them.
class OutputItems {
 public:
  // out: null where nobody listens.
  explicit OutputItems(EventStream* out) : out_(out) {}

  void send(const char* type, json body) {
    if (out_ == nullptr) return;
    body["type"] = type;
    body["sequence_number"] = sequence_++;
    out_->data(body, type);
  }

  void add(const AnswerPiece& piece) {
    if (piece.kind == AnswerPiece::Kind::tool_call) return add_to_call(piece);
    if (open_ != piece.kind) {
      close("completed");
      open(piece.kind);
    }
    json& part = item_["content"][0];
    part["text"].get_ref<std::string&>() += piece.text;
    json event = place();
    event["delta"] = piece.text;
    send(reasoning() ? "response.reasoning_text.delta" : "response.output_text.delta", event);
  }

  void close(const char* status) {
    if (!open_) return;
    if (open_ == AnswerPiece::Kind::tool_call) return close_call("incomplete");
    const json part = item_["content"][0];
    json done = place();
    done["text"] = part["text"];
    send(reasoning() ? "response.reasoning_text.done" : "response.output_text.done", done);
    json part_done = place();
    part_done["part"] = part;
    send("response.content_part.done", part_done);
    open_.reset();
    finish_item(status);
  }

  const json& items() const { return items_; }

 private:
  bool reasoning() const { return open_ == AnswerPiece::Kind::reasoning; }
  json place() const {
    json place = {{"item_id", item_["id"]}, {"output_index", items_.size()}, {"content_index", 0}};
    if (open_ == AnswerPiece::Kind::content) place["logprobs"] = json::array();
    return place;
  }

  void begin_item() {
    json shown = item_;
    shown["status"] = "in_progress";
    send("response.output_item.added", {{"output_index", items_.size()}, {"item", shown}});
  }
  void finish_item(const char* status) {
    item_["status"] = status;
    send("response.output_item.done", {{"output_index", items_.size()}, {"item", item_}});
    items_.push_back(item_);
  }

  void open(AnswerPiece::Kind kind) {
    open_ = kind;
    item_ = reasoning()
                ? json{{"id", new_id("rs_")}, {"type", "reasoning"}, {"summary", json::array()}}
                : json{{"id", new_id("msg_")}, {"type", "message"}, {"role", "assistant"}};
    item_["content"] = json::array();
    begin_item();
    const json part = reasoning() ? json{{"type", "reasoning_text"}, {"text", ""}}
                                  : json{{"type", "output_text"},
                                         {"text", ""},
                                         {"annotations", json::array()},
                                         {"logprobs", json::array()}};
    item_["content"].push_back(part);
    send("response.content_part.added", {{"item_id", item_["id"]},
                                         {"output_index", items_.size()},
                                         {"content_index", 0},
                                         {"part", part}});
  }

  void add_to_call(const AnswerPiece& piece) {
    if (piece.begins) {
      close("completed");
      open_ = piece.kind;
      item_ = {{"id", new_id("fc_")},
               {"type", "function_call"},
               {"call_id", new_id("call_")},
               {"name", piece.name},
               {"arguments", ""}};
      begin_item();
    }
    if (says_something(piece)) {
      item_["arguments"].get_ref<std::string&>() += piece.arguments;
      json delta = call_place();
      delta["delta"] = piece.arguments;
      send("response.function_call_arguments.delta", delta);
    }
    if (piece.ends) close_call("completed");
  }

  json call_place() const { return {{"item_id", item_["id"]}, {"output_index", items_.size()}}; }

  void close_call(const char* status) {
    json done = call_place();
    done["arguments"] = item_["arguments"];
    done["name"] = item_["name"];
    send("response.function_call_arguments.done", done);
    open_.reset();
    finish_item(status);
  }

  EventStream* out_;
  int64_t sequence_ = 0;
  std::optional<AnswerPiece::Kind> open_;
  json item_, items_ = json::array();
};

// The whole document at the end of the answer.
json run_to_end(const ResponseReply& reply, Call& call, EventStream* out) {
  ChatRun& run = *reply.run;
  OutputItems items(out);
  items.send("response.created", {{"response", reply.document("in_progress", json::array())}});
  items.send("response.in_progress", {{"response", reply.document("in_progress", json::array())}});
  std::function<void()> on_silence;
  if (out != nullptr) on_silence = [&] { out->comment(); };
  try {
    while (const auto event = run.next(on_silence)) {
      for (const AnswerPiece& piece : event->pieces) items.add(piece);
    }
  } catch (const ApiError& error) {
    if (out == nullptr) throw;
    call.record.status = error.status;
    json failed = reply.document("failed", items.items());
    failed["error"] = {{"code", error.code}, {"message", error.message}};
    items.send("response.failed", {{"response", failed}});
    return failed;
  }
  const TextSummary& summary = run.summary(0);
  const bool cut = summary.end == TextSummary::End::length;
  items.close(cut ? "incomplete" : "completed");
  json document = reply.document(cut ? "incomplete" : "completed", items.items());
  if (cut) document["incomplete_details"] = {{"reason", "max_output_tokens"}};
  document["usage"] = usage_of(summary);
  document.update(extension_json(run.model(), summary, reply.ignored));
  items.send(cut ? "response.incomplete" : "response.completed", {{"response", document}});
  return document;
}

}  // namespace

Reply responses(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  Chat chat = read_input(fields);
  read_reasoning(fields, *model, chat);
  TextFields text = read_text_fields(fields, *model, service.options);
  refuse_choices(text);
  read_text_format(fields, text.format);
  const int64_t most = fields.integer("max_output_tokens", -1, -1, int64_t{1} << 31);
  fields.raw("metadata");  // the answer repeats it
  ResponseReply reply;
  reply.echoed = echoed_fields(call.body, text.options.sampling, most);
  reply.ignored = fields.unread();
  reply.run = std::make_shared<ChatRun>(service, model, call, chat, text, most);
  if (!text.stream) return run_to_end(reply, call, nullptr);
  return StreamFunction([reply, &call](EventStream& out) { run_to_end(reply, call, &out); });
}

}  // namespace pronghorn::serve
