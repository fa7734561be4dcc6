// Answers of a wanted form: schemas, grammars, and tools that must be called.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "serve/http_client.h"

namespace pronghorn {
namespace {

using namespace testing_http;
using testing::HasSubstr;

const json kSchema = {{"type", "object"},
                      {"properties",
                       {{"count", {{"type", "integer"}, {"minimum", 0}, {"maximum", 999}}},
                        {"colour", {{"enum", json::array({"red", "green"})}}}}},
                      {"required", json::array({"count", "colour"})},
                      {"additionalProperties", false}};

constexpr const char* kOpensReasoning = "{% if add_generation_prompt %}<think>\n{% endif %}";

void expect_fits(const std::string& text) {
  const json value = json::parse(text, nullptr, false);
  ASSERT_TRUE(value.is_object()) << text;
  ASSERT_EQ(value.size(), 2u) << text;
  EXPECT_TRUE(value["count"].is_number_integer()) << text;
  EXPECT_GE(value["count"], 0);
  EXPECT_LE(value["count"], 999);
  EXPECT_TRUE(value["colour"] == "red" || value["colour"] == "green") << text;
}

class HttpFormatTest : public HttpTest {
 protected:
  HttpFormatTest() { options_.session_directory = folder_.path() / "sessions"; }

  static json format(const json& schema = kSchema) {
    return {{"type", "json_schema"},
            {"json_schema", {{"name", "n"}, {"strict", true}, {"schema", schema}}}};
  }
  static json asked(const json& fields) {
    json body = chat("How many?");
    body["max_tokens"] = 300;
    body.update(fields);
    return body;
  }
  json refusal(const std::string& path, const json& body) {
    const Answer answer = server().post(path, body);
    EXPECT_EQ(answer.status, 400) << answer.body;
    return answer.document()["error"];
  }
  // A template that shows how tools are called.
  void show_calls() const { extend_template("", "{# <tool_call> #}"); }
  // Puts more before and behind what the template writes.
  void extend_template(const std::string& before, const std::string& behind) const {
    const auto file = folder_.path() / "tokenizer_config.json";
    json config = json::parse(read_file(file));
    config["chat_template"] = before + config["chat_template"].get<std::string>() + behind;
    write_file(file, config.dump());
  }
  // Gives the two special tokens of chats other texts.
  void name_tokens(const std::string& first, const std::string& second) const {
    const auto file = folder_.path() / "tokenizer.json";
    json tokenizer = json::parse(read_file(file));
    tokenizer["added_tokens"][0]["content"] = first;
    tokenizer["added_tokens"][1]["content"] = second;
    write_file(file, tokenizer.dump());
  }
  static json tools() {
    return json::array(
        {{{"type", "function"}, {"function", {{"name", "paint"}, {"parameters", kSchema}}}},
         {{"type", "function"}, {"function", {{"name", "stop"}}}}});
  }
};

TEST_F(HttpFormatTest, AnswersFitTheirSchema) {
  for (int seed = 0; seed < 5; ++seed) {
    const json body = asked({{"response_format", format()}, {"seed", seed}, {"n", 2}});
    const json whole = server().post("/v1/chat/completions", body).document();
    std::vector<std::string> texts(2);
    for (size_t i = 0; i < 2; ++i) {
      texts[i] = whole["choices"][i]["message"]["content"];
      expect_fits(texts[i]);
      EXPECT_EQ(whole["choices"][i]["finish_reason"], "stop");
    }
    EXPECT_FALSE(whole.contains("ignored_fields") && !whole["ignored_fields"].empty()) << whole;
    std::vector<std::string> streamed(2);
    for (const Event& event : server().stream("/v1/chat/completions", body)) {
      if (event.data == "[DONE]") continue;
      const json chunk = event.document();
      for (const json& choice : chunk["choices"]) {
        streamed[choice["index"].get<size_t>()] += choice["delta"].value("content", "");
      }
    }
    EXPECT_EQ(streamed, texts);
  }
}

TEST_F(HttpFormatTest, GuessesChangeNoAnswer) {
  const json body = asked({{"response_format", format()}});
  const json plain = server().post("/v1/chat/completions", body).document();
  server_.reset();
  engine_.draft = "ngram";
  const json guessed = server().post("/v1/chat/completions", body).document();
  EXPECT_EQ(plain["choices"][0]["message"], guessed["choices"][0]["message"]);
}

TEST_F(HttpFormatTest, OtherEndpointsTakeThemToo) {
  const json objects = {{"type", "json_object"}};
  const json any =
      server().post("/v1/chat/completions", asked({{"response_format", objects}})).document();
  EXPECT_TRUE(any["choices"][0]["message"]["content"].get<std::string>().starts_with("{"));

  const json grammar = {{"grammar", "root ::= \"yes\" | \"no, \" [a-c]{3}"},
                        {"prompt", "Well? "},
                        {"model", "tiny"},
                        {"max_tokens", 50}};
  const json text = server().post("/v1/completions", grammar).document();
  const auto said = text["choices"][0]["text"].get<std::string>();
  EXPECT_TRUE(said == "yes" || (said.starts_with("no, ") && said.size() == 7 &&
                                said.find_first_not_of("abc", 4) == said.npos))
      << said;
  // A special token that the grammar names is written, as the text that it is.
  json special = grammar;
  special["grammar"] = "root ::= \"<|start|>yes\"";
  special["logit_bias"] = {{std::to_string(testing_support::kChatStart), 100}};
  const json marked = server().post("/v1/completions", special).document();
  EXPECT_EQ(marked["choices"][0]["text"], "<|start|>yes") << marked;
  EXPECT_EQ(marked["usage"]["completion_tokens"], 4) << marked;

  json response = {{"model", "tiny"}, {"input", "How many?"}, {"max_output_tokens", 150}};
  response["text"] = {{"format", {{"type", "json_schema"}, {"name", "n"}, {"schema", kSchema}}}};
  const json answer = server().post("/v1/responses", response).document();
  expect_fits(answer["output"][0]["content"][0]["text"]);
}

TEST_F(HttpFormatTest, WhatCannotBeFollowedIsRefused) {
  const std::string path = "/v1/chat/completions";
  json error = refusal(path, asked({{"response_format", format({{"not", json::object()}})}}));
  EXPECT_EQ(error["code"], "invalid_schema");
  EXPECT_EQ(error["param"], "response_format");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("the keyword 'not'"));
  error = refusal(path, asked({{"grammar", "root ::= \"a\n"}}));
  EXPECT_EQ(error["code"], "invalid_grammar");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("grammar:1:10"));
  error = refusal(path, asked({{"response_format", {{"type", "xml"}}}}));
  EXPECT_EQ(error["code"], "unsupported_response_format");
  error = refusal(path, asked({{"response_format", format()}, {"grammar", "root ::= \"a\""}}));
  EXPECT_EQ(error["param"], "grammar");
  error = refusal(path, asked({{"response_format", {{"type", "json_schema"}}}}));
  EXPECT_EQ(error["param"], "response_format.json_schema");
  const json large = asked({{"grammar", std::string(300000, ' ')}});
  EXPECT_EQ(server().post(path, large).status, 413);
  error = refusal(path, asked({{"tools", tools()}, {"tool_choice", "required"}}));
  EXPECT_EQ(error["code"], "unsupported_tool_choice");
  refusal(path, asked({{"tools", tools()}, {"tool_choice", "sometimes"}}));
  EXPECT_EQ(server().counters().running, 0);
}

TEST_F(HttpFormatTest, ToolsAreCalledWhereTheyMustBe) {
  show_calls();
  const json paint = {{"type", "function"}, {"function", {{"name", "paint"}}}};
  for (const json& choice : {json("required"), paint}) {
    const json body = asked({{"tools", tools()}, {"tool_choice", choice}, {"max_tokens", 300}});
    const json one = server().post("/v1/chat/completions", body).document()["choices"][0];
    const json& calls = one["message"]["tool_calls"];
    ASSERT_EQ(calls.size(), 1u) << one;
    EXPECT_EQ(one["finish_reason"], "tool_calls");
    const std::string name = calls[0]["function"]["name"];
    if (choice == paint) EXPECT_EQ(name, "paint");
    if (name == "paint") expect_fits(calls[0]["function"]["arguments"]);
  }
  const json many =
      json::array({{{"type", "function"}, {"function", {{"name", std::string(300000, 'x')}}}}});
  const json large = asked({{"tools", many}, {"tool_choice", "required"}});
  EXPECT_EQ(server().post("/v1/chat/completions", large).status, 413);
  const json nobody = {{"type", "function"}, {"function", {{"name", "nobody"}}}};
  refusal("/v1/chat/completions", asked({{"tools", tools()}, {"tool_choice", nobody}}));
  refusal("/v1/chat/completions", asked({{"tool_choice", "required"}}));
  // Anthropic's way to say so.
  const json message = {{"model", "tiny"},
                        {"max_tokens", 300},
                        {"messages", {{{"role", "user"}, {"content", "Paint."}}}},
                        {"tools", json::array({{{"name", "paint"}, {"input_schema", kSchema}}})},
                        {"tool_choice", {{"type", "any"}}}};
  const json answer = server().post("/v1/messages", message).document();
  EXPECT_EQ(answer["content"][0]["type"], "tool_use") << answer;
  EXPECT_EQ(answer["stop_reason"], "tool_use");
  expect_fits(answer["content"][0]["input"].dump());
}

// Each API has the name of a tool first, and its arguments while they are written.
TEST_F(HttpFormatTest, CallsAreStreamedInParts) {
  show_calls();
  const json paint = {{"type", "function"}, {"function", {{"name", "paint"}}}};
  const json body = asked({{"tools", tools()}, {"tool_choice", paint}});
  const json whole = server().post("/v1/chat/completions", body).document()["choices"][0];
  const json wanted =
      json::parse(whole["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>());
  std::string arguments, reason;
  int parts = 0;
  for (const Event& event : server().stream("/v1/chat/completions", body)) {
    if (event.data == "[DONE]") continue;
    const json choice = event.document()["choices"][0];
    if (choice["finish_reason"].is_string()) reason = choice["finish_reason"];
    if (!choice["delta"].contains("tool_calls")) continue;
    const json call = choice["delta"]["tool_calls"][0];
    EXPECT_EQ(call["index"], 0);
    EXPECT_EQ(call.contains("id"), parts == 0);
    EXPECT_EQ(call["function"].value("name", ""), parts == 0 ? "paint" : "");
    arguments += call["function"]["arguments"];
    ++parts;
  }
  EXPECT_EQ(json::parse(arguments, nullptr, false), wanted) << arguments;
  EXPECT_EQ(reason, "tool_calls");
  EXPECT_GT(parts, 5);

  const json tool = {{"name", "paint"}, {"input_schema", kSchema}};
  const json message = {{"model", "tiny"},
                        {"max_tokens", 300},
                        {"messages", {{{"role", "user"}, {"content", "Paint."}}}},
                        {"tools", json::array({tool})},
                        {"tool_choice", {{"type", "any"}}}};
  arguments.clear();
  int starts = 0, stops = 0;
  for (const Event& event : server().stream("/v1/messages", message)) {
    starts += event.name == "content_block_start" ? 1 : 0;
    stops += event.name == "content_block_stop" ? 1 : 0;
    if (event.name == "content_block_delta") {
      arguments += event.document()["delta"]["partial_json"];
    }
  }
  EXPECT_EQ(starts, 1);
  EXPECT_EQ(stops, 1);
  expect_fits(arguments);

  const json function = {{"type", "function"}, {"name", "paint"}, {"parameters", kSchema}};
  const json response = {{"model", "tiny"},
                         {"input", "Paint."},
                         {"max_output_tokens", 300},
                         {"tools", json::array({function})},
                         {"tool_choice", "required"}};
  arguments.clear();
  json done;
  for (const Event& event : server().stream("/v1/responses", response)) {
    if (event.name == "response.function_call_arguments.delta") {
      arguments += event.document()["delta"];
    }
    if (event.name == "response.output_item.done") done = event.document()["item"];
  }
  EXPECT_EQ(done["arguments"], arguments);
  EXPECT_EQ(done["status"], "completed");
  expect_fits(arguments);
}

// Reasoning that the template has opened comes before what the grammar is about.
TEST_F(HttpFormatTest, ReasoningStaysBeforeTheAnswer) {
  extend_template("", kOpensReasoning);
  json body = asked({{"grammar", "root ::= \"yes\" | \"no\""}, {"max_tokens", 400}});
  // A model without training thinks for long; this one is led to the end of it, letter by letter.
  for (const char c : std::string("</think>yesno")) body["logit_bias"][std::to_string(c)] = 100;
  body["temperature"] = 0;
  body["frequency_penalty"] = 2;
  const json one = server().post("/v1/chat/completions", body).document()["choices"][0];
  const auto content = one["message"]["content"].get<std::string>();
  if (one["finish_reason"] == "stop") {
    EXPECT_TRUE(content == "yes" || content == "no") << one;
  } else {
    EXPECT_EQ(content, "") << one;
    EXPECT_FALSE(one["message"]["reasoning_content"].get<std::string>().empty());
  }
}

// A special token stands for no text, unless parts of an answer are told apart by it.
TEST_F(HttpFormatTest, MarksMayBeSpecialTokens) {
  name_tokens("<tool_call>", "<think>");
  json body = chat("Call.");
  body["max_tokens"] = 3;
  body["logit_bias"] = {{std::to_string(testing_support::kChatStart), 100}};
  const json plain = server().post("/v1/chat/completions", body).document();
  EXPECT_EQ(plain["choices"][0]["message"]["content"], "") << plain;
  EXPECT_FALSE(plain.contains("malformed_tool_calls")) << plain;
  body["tools"] = tools();
  const json called = server().post("/v1/chat/completions", body).document();
  EXPECT_EQ(called["malformed_tool_calls"], 1) << called;
  body["logit_bias"] = {{std::to_string(testing_support::kChatEnd), 100}};
  const json thought = server().post("/v1/chat/completions", body).document();
  EXPECT_EQ(thought["choices"][0]["message"]["reasoning_content"], "<think><think>") << thought;
}

TEST_F(HttpFormatTest, ReasoningIsBounded) {
  const auto message = [&](const json& fields, const std::string& path = "/v1/chat/completions") {
    json body = chat("Why?");
    body["logit_bias"] = only('a');
    body.update(fields);
    return server().post(path, body).document();
  };
  const auto first = [](const json& document) { return document["choices"][0]["message"]; };
  const json three = {{"type", "enabled"}, {"budget_tokens", 3}};
  // Marks that are no tokens.
  EXPECT_EQ(message({{"reasoning_effort", "low"}})["ignored_fields"],
            json::array({"reasoning_effort"}));
  EXPECT_EQ(message({{"thinking", three}}, "/v1/messages")["ignored_fields"],
            json::array({"thinking"}));

  EXPECT_EQ(message({{"thinking", {{"type", "disabled"}}}})["ignored_fields"],
            json::array({"thinking"}));

  name_tokens("<think>", "</think>");
  extend_template("", kOpensReasoning);
  for (const char* draft : {"", "ngram"}) {
    server_.reset();
    engine_.draft = draft;
    const json cut = message({{"thinking", three}});
    EXPECT_FALSE(cut.contains("ignored_fields")) << cut;
    EXPECT_EQ(first(cut)["reasoning_content"], "aaa");
    EXPECT_EQ(first(cut)["content"], std::string(8, 'a'));
    EXPECT_EQ(first(message(json::object()))["reasoning_content"], std::string(12, 'a'));
    const json none = first(message({{"reasoning_effort", "none"}}));
    EXPECT_EQ(none["content"], std::string(11, 'a'));
    EXPECT_FALSE(none.contains("reasoning_content"));
    const json disabled = message({{"thinking", {{"type", "disabled"}}}});
    EXPECT_EQ(first(disabled), none) << disabled;
    EXPECT_FALSE(disabled.contains("ignored_fields")) << disabled;
    // No bound, and nobody is told.
    EXPECT_EQ(message({{"thinking", {{"type", "enabled"}}}})["ignored_fields"],
              json::array({"thinking"}));
    const json strict = first(message({{"thinking", three}, {"grammar", "root ::= \"bb\""}}));
    EXPECT_EQ(strict["reasoning_content"], "aaa");
    EXPECT_EQ(strict["content"], "bb");
    const json blocks = message({{"thinking", three}}, "/v1/messages")["content"];
    EXPECT_EQ(blocks[0]["thinking"], "aaa") << blocks;
    EXPECT_EQ(blocks[1]["text"], std::string(8, 'a')) << blocks;
    json response = {{"input", "Why?"}, {"reasoning", {{"effort", "none"}}}};
    response["max_output_tokens"] = 12;
    const json output = message(response, "/v1/responses")["output"];
    ASSERT_EQ(output.size(), 1u) << output;
    EXPECT_EQ(output[0]["content"][0]["text"], std::string(11, 'a'));
  }
}

TEST_F(HttpFormatTest, ReasoningFieldsOfWrongValuesAreRefused) {
  struct Case {
    json fields;
    std::string param, accepted;
  };
  const std::string words = "\"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\"";
  const std::vector<Case> cases = {
      {{{"reasoning_effort", "much"}}, "reasoning_effort", words},
      {{{"reasoning_effort", 3}}, "reasoning_effort", words},
      {{{"reasoning", {{"effort", "Low"}}}}, "reasoning.effort", words},
      {{{"reasoning", "low"}}, "reasoning", "an object"},
      {{{"thinking", true}}, "thinking", "\"enabled\", \"disabled\" or \"adaptive\""},
      {{{"thinking", {{"type", "on"}}}}, "thinking.type", "\"enabled\""},
      {{{"thinking", {{"type", "enabled"}, {"budget_tokens", -5}}}},
       "thinking.budget_tokens",
       "a whole number"}};
  for (const Case& wrong : cases) {
    for (const char* path : {"/v1/chat/completions", "/tokenize", "/apply-template"}) {
      const json error = refusal(path, asked(wrong.fields));
      EXPECT_EQ(error["param"], wrong.param) << error;
      EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(wrong.accepted)) << error;
    }
    EXPECT_THAT(refusal("/v1/messages", asked(wrong.fields))["message"].get<std::string>(),
                HasSubstr(wrong.accepted));
    json response = {{"input", "Why?"}};
    response.update(wrong.fields);
    EXPECT_THAT(refusal("/v1/responses", response)["message"].get<std::string>(),
                HasSubstr(wrong.accepted));
  }
  // Absent is no value, and the smaller of two bounds counts.
  EXPECT_EQ(server().post("/tokenize", asked({{"reasoning_effort", nullptr}})).status, 200);
  name_tokens("<think>", "</think>");
  extend_template("", kOpensReasoning);
  server_.reset();
  json body = asked({{"reasoning_effort", "none"}, {"reasoning", {{"effort", "low"}}}});
  body["max_tokens"] = 12;
  body["logit_bias"] = only('a');
  const json answer = server().post("/v1/chat/completions", body).document();
  EXPECT_EQ(answer["choices"][0]["message"]["content"], std::string(11, 'a')) << answer;
  EXPECT_FALSE(answer.contains("ignored_fields")) << answer;
}

// Reasoning that the model opens behind space, and opens again, has one bound, streamed or not, and
// whether the prompt is read or kept.
TEST_F(HttpFormatTest, ReasoningIsBoundedWhereverItOpens) {
  name_tokens("<think>", "</think>");
  json body = asked({{"thinking", {{"type", "enabled"}, {"budget_tokens", 3}}}});
  body["grammar"] =
      "root ::= \" <think>\" \"a\"* \"</think>\" \"\\n<think>\" \"a\"* \"</think>\" \"bbbb\"";
  body["messages"][0]["content"] = "How many letters are there in the name of the longest river?";
  body["max_tokens"] = 60;
  body["logit_bias"] = {{std::to_string(static_cast<int>(' ')), 100},
                        {std::to_string(static_cast<int>('a')), 80},
                        {std::to_string(testing_support::kChatStart), 50}};
  const auto check = [](const std::string& reasoning, const std::string& content) {
    EXPECT_EQ(reasoning, "aaa");
    EXPECT_EQ(content, "bbbb");
  };
  for (const bool kept : {false, true}) {
    const json whole = server().post("/v1/chat/completions", body).document();
    EXPECT_EQ(whole["cache"]["tokens"] > 0, kept) << whole;
    const json& message = whole["choices"][0]["message"];
    check(message.value("reasoning_content", ""), message["content"]);
  }
  std::string reasoning, content;
  for (const Event& event : server().stream("/v1/chat/completions", body)) {
    if (event.data == "[DONE]") continue;
    const json chunk = event.document();
    for (const json& choice : chunk["choices"]) {
      reasoning += choice["delta"].value("reasoning_content", "");
      content += choice["delta"].value("content", "");
    }
  }
  check(reasoning, content);
}

// What only shows or keeps the prompt of a chat has the same one.
TEST_F(HttpFormatTest, TheTemplateIsToldOfReasoningEverywhere) {
  extend_template("{{ reasoning_effort }}{% if not enable_thinking %}off{% endif %}", "");
  json body = chat("Why is it that the river runs, and does not get anywhere?");
  body["max_tokens"] = 1;
  body["reasoning_effort"] = "low";
  body["thinking"] = {{"type", "disabled"}};
  const json shown = server().post("/apply-template", body).document();
  EXPECT_THAT(shown["prompt"].get<std::string>(), testing::StartsWith("lowoff<|start|>user"));
  EXPECT_EQ(server().post("/tokenize", body).document()["tokens"], shown["tokens"]);
  body["name"] = "one";
  const json saved = server().post("/v1/sessions/save", body).document();
  ASSERT_TRUE(saved.contains("tokens")) << saved;
  body.erase("name");
  const json answer = server().post("/v1/chat/completions", body).document();
  EXPECT_EQ(answer["usage"]["prompt_tokens"], shown["tokens"].size());
  EXPECT_EQ(answer["cache"]["tokens"], saved["tokens"]) << answer;
  EXPECT_FALSE(answer.contains("ignored_fields")) << answer;
}

}  // namespace
}  // namespace pronghorn
