// POST /v1/chat/completions
#include <ctime>

#include "serve/http/api_error.h"
#include "serve/http/chat_run.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

struct ChatReply {
  std::string id = new_id("chatcmpl-");
  std::time_t created = std::time(nullptr);
  std::shared_ptr<ChatRun> run;
  std::vector<std::string> ignored;
  bool include_usage = false, logprobs = false;
};

json token_json(const ServedModel& model, const TokenScore& score) {
  const std::string bytes = token_text(model, score.token);
  json list = json::array();
  for (const char byte : bytes) list.push_back(static_cast<unsigned char>(byte));
  return {{"token", bytes}, {"logprob", score.log_probability}, {"bytes", list}};
}

json logprobs_json(const ServedModel& model, const std::vector<WrittenToken>& tokens) {
  json list = json::array();
  for (const WrittenToken& token : tokens) {
    json item = token_json(model, {token.token, token.log_probability});
    item["top_logprobs"] = json::array();
    for (const TokenScore& score : token.likeliest) {
      item["top_logprobs"].push_back(token_json(model, score));
    }
    list.push_back(item);
  }
  return {{"content", list}, {"refusal", nullptr}};
}

json call_json(const AnswerPiece& piece) {
  return {{"id", new_id("call_")},
          {"type", "function"},
          {"function", {{"name", piece.name}, {"arguments", piece.arguments}}}};
}

json head_json(const ChatReply& reply, const char* object) {
  return {{"id", reply.id},
          {"object", object},
          {"created", reply.created},
          {"model", reply.run->model().name},
          {"system_fingerprint", fingerprint(reply.run->model())}};
}

json extension_of(const ChatReply& reply) {
  json extension = extension_json(reply.run->model(), reply.run->total(), reply.ignored);
  if (const int64_t count = reply.run->malformed_calls()) extension["malformed_tool_calls"] = count;
  return extension;
}

json chunk_json(const ChatReply& reply, size_t choice, const json& delta) {
  json chunk = head_json(reply, "chat.completion.chunk");
  chunk["choices"] = {
      {{"index", choice}, {"delta", delta}, {"logprobs", nullptr}, {"finish_reason", nullptr}}};
  if (reply.include_usage) chunk["usage"] = nullptr;
  return chunk;
}

// What a piece adds to a message. calls: of this choice so far.
json delta_json(const AnswerPiece& piece, size_t& calls) {
  switch (piece.kind) {
    case AnswerPiece::Kind::content:
      return {{"content", piece.text}};
    case AnswerPiece::Kind::reasoning:
      return {{"reasoning_content", piece.text}};
    case AnswerPiece::Kind::tool_call:
      break;
  }
  json call =
      piece.begins ? call_json(piece) : json{{"function", {{"arguments", piece.arguments}}}};
  if (piece.begins) ++calls;
  call["index"] = calls - 1;
  return {{"tool_calls", json::array({call})}};
}

void write_event(const ChatReply& reply, const ChatRun::Event& event, size_t& calls,
                 EventStream& out) {
  std::vector<json> chunks;
  for (const AnswerPiece& piece : event.pieces) {
    if (!says_something(piece)) continue;
    chunks.push_back(chunk_json(reply, event.choice, delta_json(piece, calls)));
  }
  if (reply.logprobs && !event.tokens.empty()) {
    // The text of these tokens may still be held back.
    if (chunks.empty()) chunks.push_back(chunk_json(reply, event.choice, {{"content", ""}}));
    chunks.front()["choices"][0]["logprobs"] = logprobs_json(reply.run->model(), event.tokens);
  }
  for (const json& chunk : chunks) out.data(chunk);
}

void stream(const ChatReply& reply, EventStream& out) {
  ChatRun& run = *reply.run;
  for (size_t i = 0; i < run.choices(); ++i) {
    out.data(chunk_json(reply, i, {{"role", "assistant"}, {"content", ""}}));
  }
  std::vector<size_t> calls(run.choices());
  size_t left = run.choices();
  while (const auto event = run.next([&] { out.comment(); })) {
    write_event(reply, *event, calls[event->choice], out);
    if (!event->ended) continue;
    json chunk = chunk_json(reply, event->choice, json::object());
    const TextSummary& summary = run.summary(event->choice);
    chunk["choices"][0]["finish_reason"] = finish_reason(summary, run.called_tools(event->choice));
    chunk["choices"][0]["stop_reason"] = summary.stop.empty() ? json() : json(summary.stop);
    if (--left == 0) chunk.update(extension_of(reply));
    out.data(chunk);
  }
  if (reply.include_usage) {
    json chunk = head_json(reply, "chat.completion.chunk");
    chunk["choices"] = json::array();
    chunk["usage"] = usage_json(run.total());
    chunk.update(extension_of(reply));
    out.data(chunk);
  }
  out.text("[DONE]");
}

struct Message {
  std::string content, reasoning;
  json calls = json::array();
  std::vector<WrittenToken> tokens;

  void add(const ChatRun::Event& event) {
    tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
    for (const AnswerPiece& piece : event.pieces) {
      if (piece.kind == AnswerPiece::Kind::content) content += piece.text;
      if (piece.kind == AnswerPiece::Kind::reasoning) reasoning += piece.text;
      if (piece.kind == AnswerPiece::Kind::tool_call) calls.push_back(call_json(piece));
    }
  }

  json to_json() const {
    json message = {{"role", "assistant"}, {"content", content}, {"refusal", nullptr}};
    if (!reasoning.empty()) message["reasoning_content"] = reasoning;
    if (!calls.empty()) {
      message["tool_calls"] = calls;
      if (content.empty()) message["content"] = nullptr;
    }
    return message;
  }
};

json whole(const ChatReply& reply) {
  ChatRun& run = *reply.run;
  std::vector<Message> messages(run.choices());
  while (const auto event = run.next()) messages[event->choice].add(*event);
  json document = head_json(reply, "chat.completion");
  document["choices"] = json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const TextSummary& summary = run.summary(i);
    json choice = {{"index", i},
                   {"message", messages[i].to_json()},
                   {"logprobs", nullptr},
                   {"finish_reason", finish_reason(summary, run.called_tools(i))},
                   {"stop_reason", summary.stop.empty() ? json() : json(summary.stop)}};
    if (reply.logprobs) choice["logprobs"] = logprobs_json(run.model(), messages[i].tokens);
    document["choices"].push_back(choice);
  }
  document["usage"] = usage_json(run.total());
  document.update(extension_of(reply));
  return document;
}

}  // namespace

Reply chat_completions(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  Chat chat = read_chat(fields);
  read_reasoning(fields, *model, chat);
  TextFields text = read_text_fields(fields, *model, service.options);
  text.options.stop = read_stops(fields, "stop", service.options);
  const int64_t most = read_most_tokens(fields, -1);

  ChatReply reply;
  reply.include_usage = text.include_usage;
  reply.logprobs = fields.boolean("logprobs", false);
  const int64_t top = fields.integer("top_logprobs", 0, 0, service.options.likeliest);
  if (top > 0 && !reply.logprobs) refuse_field("top_logprobs", "needs logprobs to be true");
  reply.ignored = fields.unread();
  reply.run = std::make_shared<ChatRun>(service, model, call, chat, text, most,
                                        reply.logprobs ? static_cast<int>(top) : -1);
  if (!text.stream) return whole(reply);
  return StreamFunction([reply](EventStream& out) { stream(reply, out); });
}

}  // namespace pronghorn::serve
