#include "serve/http/openapi.h"

#include <algorithm>
#include <map>
#include <vector>

namespace pronghorn::serve {
namespace {

using nlohmann::json;

json type(const char* name) { return {{"type", name}}; }
json text() { return type("string"); }
json flag() { return type("boolean"); }
json integer(int64_t least, int64_t most) {
  return {{"type", "integer"}, {"minimum", least}, {"maximum", most}};
}
json number(double least, double most) {
  return {{"type", "number"}, {"minimum", least}, {"maximum", most}};
}
json list(const json& items) { return {{"type", "array"}, {"items", items}}; }
json either(std::initializer_list<json> schemas) {
  json all = json::array();
  for (const json& schema : schemas) all.push_back(schema);
  return {{"anyOf", all}};
}
json part(const char* name) { return {{"$ref", std::string("#/components/schemas/") + name}}; }

// Objects take more than what is named; a field that is null counts as absent.
json object(const json& properties, const std::vector<std::string>& required = {}) {
  json schema = {{"type", "object"}, {"properties", json::object()}};
  for (const auto& [name, own] : properties.items()) {
    const bool needed = std::find(required.begin(), required.end(), name) != required.end();
    schema["properties"][name] = needed ? own : json{{"anyOf", {own, type("null")}}};
  }
  if (!required.empty()) schema["required"] = required;
  return schema;
}

json joined(std::initializer_list<json> objects) {
  json all = json::object();
  for (const json& one : objects) all.update(one);
  return all;
}

constexpr int64_t kMost = int64_t{1} << 31;

json sampling() {
  return {{"temperature", number(0, 100)},
          {"top_p", number(0, 1)},
          {"top_k", integer(-1, kMost - 1)},
          {"min_p", number(0, 1)},
          {"presence_penalty", number(-2, 2)},
          {"frequency_penalty", number(-2, 2)},
          {"repetition_penalty", number(1e-3, 1e3)},
          {"logit_bias", {{"type", "object"}, {"additionalProperties", number(-100, 100)}}},
          {"seed", type("integer")}};
}

// What all endpoints that write texts have.
json writing() {
  return joined({sampling(),
                 {{"model", text()},
                  {"n", integer(1, 128)},
                  {"min_tokens", integer(0, kMost)},
                  {"ignore_eos", flag()},
                  {"cache_prompt", flag()},
                  {"cache_salt", text()},
                  {"stream", flag()},
                  {"stream_options", object({{"include_usage", flag()}})},
                  {"response_format", part("ResponseFormat")},
                  {"grammar", text()}}});
}

json stops() { return either({text(), {{"type", "array"}, {"items", text()}, {"maxItems", 16}}}); }
json tokens() { return list(integer(0, kMost - 1)); }

json reasoning_fields() {
  const json effort = {{"enum", {"none", "minimal", "low", "medium", "high", "xhigh"}}};
  const json type_of_thinking = {{"enum", {"enabled", "disabled", "adaptive"}}};
  return {{"thinking", object({{"type", type_of_thinking}, {"budget_tokens", integer(0, kMost)}})},
          {"reasoning_effort", effort},
          {"reasoning", object({{"effort", effort}})}};
}

json chat_fields() {
  return joined({reasoning_fields(),
                 {{"messages", {{"type", "array"}, {"items", part("Message")}, {"minItems", 1}}},
                  {"tools", list(part("Tool"))},
                  {"tool_choice", either({text(), type("object")})},
                  {"chat_template_kwargs", type("object")},
                  {"continue_final_message", flag()}}});
}

json most_tokens() {
  return {{"max_tokens", integer(-1, kMost)}, {"max_completion_tokens", integer(-1, kMost)}};
}

json chat_completions() {
  return object(
      joined({writing(),
              chat_fields(),
              most_tokens(),
              {{"stop", stops()}, {"logprobs", flag()}, {"top_logprobs", integer(0, 20)}}}),
      {"messages"});
}

json completions() {
  return object(joined({writing(),
                        most_tokens(),
                        {{"prompt", either({text(), list(text()), tokens(), list(tokens())})},
                         {"stop", stops()},
                         {"logprobs", integer(-1, 20)},
                         {"echo", flag()}}}),
                {"prompt"});
}

json responses() {
  return object(joined({writing(),
                        reasoning_fields(),
                        {{"input", either({text(), list(type("object"))})},
                         {"instructions", text()},
                         {"max_output_tokens", integer(-1, kMost)},
                         {"tools", list(type("object"))},
                         {"tool_choice", either({text(), type("object")})},
                         {"text", object({{"format", type("object")}})},
                         {"metadata", type("object")},
                         {"store", flag()}}}),
                {"input"});
}

json message_fields() {
  const json content = either({text(), list(type("object"))});
  const json message =
      object({{"role", {{"enum", {"user", "assistant", "system"}}}}, {"content", content}},
             {"role", "content"});
  return joined({reasoning_fields(),
                 {{"model", text()},
                  {"messages", {{"type", "array"}, {"items", message}, {"minItems", 1}}},
                  {"system", content},
                  {"tools", list(type("object"))},
                  {"tool_choice", type("object")}}});
}

json messages() {
  return object(joined({writing(),
                        message_fields(),
                        {{"max_tokens", integer(-1, kMost)}, {"stop_sequences", stops()}}}),
                {"messages", "max_tokens"});
}

json session(bool with_text) {
  json fields = {
      {"model", text()},
      {"name", {{"type", "string"}, {"pattern", "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"}}}};
  if (with_text) {
    fields.update(chat_fields());
    fields.update({{"prompt", text()}, {"cache_salt", text()}});
  }
  return object(fields, {"name"});
}

struct Described {
  const char* summary;
  json (*schema)();
};

const std::map<std::string, Described>& described_posts() {
  static const std::map<std::string, Described> all = {
      {"/v1/chat/completions", {"Answer a chat", chat_completions}},
      {"/v1/completions", {"Continue texts", completions}},
      {"/v1/responses", {"Answer a chat, without state (OpenAI's newer form)", responses}},
      {"/v1/embeddings",
       {"The mean of the last hidden states of texts",
        [] {
          return object({{"model", text()},
                         {"input", either({text(), list(text()), tokens(), list(tokens())})},
                         {"encoding_format", {{"enum", {"float", "base64"}}}}},
                        {"input"});
        }}},
      {"/v1/messages", {"Answer a chat (Anthropic's form)", messages}},
      {"/v1/messages/count_tokens",
       {"Tokens of a chat (Anthropic's form)",
        [] { return object(message_fields(), {"messages"}); }}},
      {"/v1/sessions/save", {"Save the state of a text or a chat", [] { return session(true); }}},
      {"/v1/sessions/restore", {"Restore a saved state", [] { return session(false); }}},
      {"/v1/sessions/list",
       {"The saved states of a model",
        [] {
          return object({{"model", text()}});
        }}},
      {"/v1/sessions/delete", {"Delete a saved state", [] { return session(false); }}},
      {"/tokenize",
       {"Tokens of a text or a chat",
        [] {
          return object(joined({chat_fields(),
                                {{"model", text()},
                                 {"content", text()},
                                 {"prompt", text()},
                                 {"add_special", flag()},
                                 {"parse_special", flag()},
                                 {"with_pieces", flag()}}}));
        }}},
      {"/detokenize",
       {"The text of tokens",
        [] {
          return object({{"model", text()}, {"tokens", tokens()}, {"special", flag()}}, {"tokens"});
        }}},
      {"/apply-template",
       {"What the model reads of a chat",
        [] {
          return object(joined({chat_fields(), {{"model", text()}}}), {"messages"});
        }}},
  };
  return all;
}

const std::map<std::string, const char*>& described_gets() {
  static const std::map<std::string, const char*> all = {
      {"/", "The page to chat in"},
      {"/watch", "The page of training runs"},
      {"/health", "Whether models can step"},
      {"/ready", "Whether all models are loaded"},
      {"/v1/models", "The models and what is known of them"},
      {"/runs", "Training runs"},
      {"/runs/curve", "What is new in the curve of a run"},
      {"/metrics", "Counters and times, for Prometheus"},
      {"/openapi.json", "This document"},
  };
  return all;
}

json shared_schemas() {
  const json content = either({text(), list(either({text(), type("object")})), type("null")});
  return {
      {"Message",
       object({{"role", text()}, {"content", content}, {"tool_calls", list(type("object"))}},
              {"role"})},
      {"Tool",
       object({{"type", {{"const", "function"}}},
               {"function",
                object({{"name", text()}, {"description", text()}, {"parameters", type("object")}},
                       {"name"})}},
              {"function"})},
      {"ResponseFormat",
       object({{"type", {{"enum", {"text", "json_object", "json_schema"}}}},
               {"json_schema", object({{"name", text()},
                                       {"strict", flag()},
                                       {"schema", either({type("object"), flag()})}},
                                      {"schema"})}},
              {"type"})},
      {"Error",
       {{"type", "object"},
        {"properties",
         {{"error",
           {{"type", "object"},
            {"properties", {{"message", text()}, {"type", text()}}},
            {"required", json::array({"message", "type"})}}}}},
        {"required", json::array({"error"})}}}};
}

json answers() {
  const json error = {{"description", "what is wrong, and which field or limit"},
                      {"content", {{"application/json", {{"schema", part("Error")}}}}}};
  json all = {{"200", {{"description", "the answer; with \"stream\": true its events"}}}};
  for (const char* status : {"400", "401", "403", "404", "405", "409", "411", "413", "415", "429",
                             "431", "500", "503"}) {
    all[status] = error;
  }
  return all;
}

}  // namespace

json request_schema(const std::string& path) {
  const auto found = described_posts().find(path);
  return found == described_posts().end() ? json() : found->second.schema();
}

json openapi_json(std::span<const std::string> posts, std::span<const std::string> gets) {
  json paths = json::object();
  for (const std::string& path : posts) {
    const auto found = described_posts().find(path);
    const bool known = found != described_posts().end();
    paths[path]["post"] = {
        {"summary", known ? found->second.summary : ""},
        {"requestBody",
         {{"required", true},
          {"content",
           {{"application/json", {{"schema", known ? found->second.schema() : type("object")}}}}}}},
        {"responses", answers()}};
  }
  for (const std::string& path : gets) {
    const auto found = described_gets().find(path);
    paths[path]["get"] = {{"summary", found == described_gets().end() ? "" : found->second},
                          {"responses", answers()}};
  }
  paths["/runs/curve"]["get"]["parameters"] =
      json::array({{{"name", "run"}, {"in", "query"}, {"required", true}, {"schema", text()}},
                   {{"name", "from"}, {"in", "query"}, {"schema", text()}},
                   {{"name", "version"}, {"in", "query"}, {"schema", text()}}});
  return {{"openapi", "3.1.0"},
          {"info",
           {{"title", "Pronghorn"},
            {"version", "1"},
            {"description",
             "Models behind HTTP. Fields that are not named here are accepted, and "
             "listed as ignored_fields in the answer."}}},
          {"paths", paths},
          {"components",
           {{"schemas", shared_schemas()},
            {"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}}},
          {"security", json::array({json::object(), {{"key", json::array()}}})}};
}

}  // namespace pronghorn::serve
