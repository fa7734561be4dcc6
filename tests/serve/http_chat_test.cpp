// The chat APIs: OpenAI's chat completions and responses, Anthropic's messages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/base64.h"
#include "formats/utf8.h"
#include "serve/http_client.h"

namespace pronghorn::testing_http {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kPath = "/v1/chat/completions";

TEST_F(HttpTest, AChatIsAnswered) {
  const json answer = server().post(kPath, chat("Hello")).document();
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "tiny");
  const json& choice = answer["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_TRUE(choice["message"]["content"].is_string());
  const json& usage = answer["usage"];
  // <|start|>user\nHello<|end|>\n<|start|>assistant\n
  EXPECT_EQ(usage["prompt_tokens"], 1 + 5 + 5 + 1 + 1 + 1 + 10);
  EXPECT_EQ(usage["total_tokens"],
            usage["prompt_tokens"].get<int>() + usage["completion_tokens"].get<int>());
  EXPECT_TRUE(answer["timings"].contains("tokens_per_second"));
  EXPECT_FALSE(answer["cache"]["why"].get<std::string>().empty());
  EXPECT_FALSE(answer.contains("ignored_fields"));
}

TEST_F(HttpTest, AStreamKeepsItsOrder) {
  json body = chat("Hello");
  body["stream_options"] = {{"include_usage", true}};
  const json whole = server().post(kPath, body).document();
  const std::vector<Event> events = server().stream(kPath, body);
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events.back().data, "[DONE]");
  const json first = events.front().document()["choices"][0];
  EXPECT_EQ(first["delta"]["role"], "assistant");
  EXPECT_EQ(first["finish_reason"], nullptr);
  std::string content;
  for (size_t i = 1; i + 3 < events.size(); ++i) {
    const json choice = events[i].document()["choices"][0];
    EXPECT_EQ(choice["finish_reason"], nullptr);
    EXPECT_FALSE(choice["delta"].empty());
    content += choice["delta"].value("content", "");
  }
  const json finish = events[events.size() - 3].document();
  EXPECT_EQ(finish["choices"][0]["delta"], json::object());
  EXPECT_EQ(finish["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
  EXPECT_EQ(finish["usage"], nullptr);
  const json usage = events[events.size() - 2].document();
  EXPECT_EQ(usage["choices"], json::array());
  EXPECT_EQ(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
  EXPECT_EQ(content, whole["choices"][0]["message"]["content"]);
  for (const Event& event : events) {
    EXPECT_EQ(find_invalid_utf8(event.data), std::string::npos) << event.data;
  }
}

// Every byte of a character is a token here: a stream gives out whole characters.
TEST_F(HttpTest, CharactersAreNotCut) {
  json body = chat("Grüße");
  body["logit_bias"] = {
      {std::to_string(0xE2), 100}, {std::to_string(0x82), 90}, {std::to_string(0xAC), 80}};
  body["frequency_penalty"] = 2;
  body["max_tokens"] = 40;
  const std::vector<Event> events = server().stream(kPath, body);
  for (const Event& event : events) {
    EXPECT_EQ(find_invalid_utf8(event.data), std::string::npos) << event.data;
  }
}

TEST_F(HttpTest, TheSameSeedGivesTheSameText) {
  json body = chat("Hello");
  body["n"] = 3;
  const json answer = server().post(kPath, body).document();
  ASSERT_EQ(answer["choices"].size(), 3u);
  for (int i = 0; i < 3; ++i) {
    body["n"] = 1;
    body["seed"] = 7 + i;
    const json one = server().post(kPath, body).document();
    EXPECT_EQ(one["choices"][0]["message"], answer["choices"][static_cast<size_t>(i)]["message"]);
  }
  EXPECT_NE(answer["choices"][0]["message"], answer["choices"][1]["message"]);
  // The prompt is one, whoever continues it.
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 24);
}

TEST_F(HttpTest, BiasesStopsAndLimitsWork) {
  json body = chat("Hello");
  body["logit_bias"] = only('a');
  body["max_tokens"] = 5;
  json choice = server().post(kPath, body).document()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "aaaaa");
  EXPECT_EQ(choice["finish_reason"], "length");
  body["stop"] = {"zz", "aaa"};
  choice = server().post(kPath, body).document()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], "aaa");
  body.erase("stop");
  body["logit_bias"] = {{std::to_string(testing_support::kChatEnd), 100}};
  choice = server().post(kPath, body).document()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], nullptr);
  body["max_completion_tokens"] = 2;
  body["logit_bias"] = only('b');
  EXPECT_EQ(server().post(kPath, body).document()["usage"]["completion_tokens"], 2);
}

TEST_F(HttpTest, LogprobsOfChats) {
  json body = chat("Hello");
  body["temperature"] = 0;
  body["logprobs"] = true;
  body["top_logprobs"] = 3;
  const json answer = server().post(kPath, body).document();
  const json tokens = answer["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(tokens.size(), answer["usage"]["completion_tokens"].get<size_t>());
  for (const json& token : tokens) {
    ASSERT_EQ(token["top_logprobs"].size(), 3u);
    // The likeliest is what greedy decoding writes.
    EXPECT_EQ(token["logprob"], token["top_logprobs"][0]["logprob"]);
    EXPECT_EQ(token["bytes"], token["top_logprobs"][0]["bytes"]);
    double sum = 0;
    for (const json& top : token["top_logprobs"]) sum += std::exp(top["logprob"].get<double>());
    EXPECT_LT(sum, 1);
  }
  size_t streamed = 0;
  for (const Event& event : server().stream(kPath, body)) {
    if (event.data == "[DONE]") continue;
    const json logprobs = event.document()["choices"][0]["logprobs"];
    if (!logprobs.is_null()) streamed += logprobs["content"].size();
  }
  EXPECT_EQ(streamed, tokens.size());
}

TEST_F(HttpTest, UnknownFieldsAreNamed) {
  json body = chat("Hello");
  body["user"] = "ada";
  body["frobnicate"] = 1;
  body["max_tokens"] = 1;
  const json answer = server().post(kPath, body).document();
  EXPECT_THAT(answer["ignored_fields"], ElementsAre("frobnicate", "user"));
}

TEST_F(HttpTest, TheNextTurnReadsItsMessageOnly) {
  json body = chat("A message that is long enough to be worth keeping for the next turn.");
  body["logit_bias"] = only('a');
  const json first = server().post(kPath, body).document();
  EXPECT_EQ(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  body["messages"].push_back(first["choices"][0]["message"]);
  body["messages"].push_back({{"role", "user"}, {"content", "And?"}});
  const json second = server().post(kPath, body).document();
  const int64_t cached = second["usage"]["prompt_tokens_details"]["cached_tokens"];
  const int64_t prompt = second["usage"]["prompt_tokens"];
  EXPECT_GE(cached, first["usage"]["prompt_tokens"].get<int64_t>());
  // "<|end|>\n<|start|>user\nAnd?<|end|>\n<|start|>assistant\n" and what an exact step reads again
  EXPECT_LE(prompt - cached, 26 + 16);
  body["cache_prompt"] = false;
  const json third = server().post(kPath, body).document();
  EXPECT_EQ(third["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  EXPECT_EQ(third["choices"][0]["message"], second["choices"][0]["message"]);
}

TEST_F(HttpTest, AnAnswerCanBeContinued) {
  json body = chat("Hello");
  body["messages"].push_back({{"role", "assistant"}, {"content", "I am"}});
  body["continue_final_message"] = true;
  const json prompt = server().post("/apply-template", body).document();
  EXPECT_THAT(prompt["prompt"].get<std::string>(), testing::EndsWith("assistant\nI am"));
  // Also one that occurs in what the template puts behind it.
  body["messages"].back()["content"] = "e ";
  const json short_one = server().post("/apply-template", body).document();
  EXPECT_THAT(short_one["prompt"].get<std::string>(), testing::EndsWith("assistant\ne "));
}

// A message with an image of 4 by 4 grey pixels.
json shown(const std::string& url) {
  return {{"model", "tiny"},
          {"messages",
           {{{"role", "user"},
             {"content",
              {{{"type", "image_url"}, {"image_url", {{"url", url}}}},
               {{"type", "text"}, {"text", "What is it?"}}}}}}},
          {"max_tokens", 4},
          {"temperature", 0},
          {"logprobs", true}};
}

std::string grey_image(char first, int width = 4) {
  std::string pixels(static_cast<size_t>(4 * width), 'a');
  pixels[0] = first;
  return "data:image/x-portable-graymap;base64," +
         to_base64(fmt::format("P5 {} 4 255\n", width) + pixels);
}

TEST_F(HttpTest, AModelThatSeesIsShownAnImage) {
  const auto refusal = [&](const json& body) {
    const Answer answer = server().post(kPath, body);
    EXPECT_EQ(answer.status, 400) << answer.body;
    return answer.document()["error"];
  };
  EXPECT_THAT(refusal(shown(grey_image('a')))["message"].get<std::string>(),
              HasSubstr("sees no images"));
  server_.reset();
  ModelConfig config = Model::load(folder_.path())->config();
  ImageConfig vision;
  vision.patch = 2;
  vision.width = vision.height = 4;
  vision.channels = 1;
  config.vision = vision;
  Model(config, 31).save(folder_.path());

  const json dark = server().post(kPath, shown(grey_image('\x01'))).document();
  const json light = server().post(kPath, shown(grey_image('\x7f'))).document();
  const json again = server().post(kPath, shown(grey_image('\x01'))).document();
  EXPECT_EQ(dark["choices"], again["choices"]);
  EXPECT_NE(dark["choices"][0]["logprobs"], light["choices"][0]["logprobs"]);
  EXPECT_EQ(again["cache"]["tokens"], 0);
  EXPECT_THAT(again["cache"]["why"].get<std::string>(), HasSubstr("image"));
  json blind = shown(grey_image('a'));
  blind["messages"][0]["content"].erase(size_t{0});
  const json text = server().post(kPath, blind).document();
  EXPECT_EQ(dark["usage"]["prompt_tokens"], text["usage"]["prompt_tokens"].get<int>() + 4);

  // The same image as the other APIs have it.
  const std::string url = grey_image('\x01');
  const json wanted = dark["choices"][0]["message"]["content"];
  const json source = {{"type", "base64"},
                       {"media_type", "image/x-portable-graymap"},
                       {"data", url.substr(url.find(',') + 1)}};
  json message = shown(url);
  message["messages"][0]["content"][0] = {{"type", "image"}, {"source", source}};
  const json counted = server().post("/v1/messages/count_tokens", message).document();
  EXPECT_EQ(counted["input_tokens"], dark["usage"]["prompt_tokens"]);
  message.erase("logprobs");
  const json said = server().post("/v1/messages", message).document();
  EXPECT_EQ(said["usage"]["input_tokens"], dark["usage"]["prompt_tokens"]) << said;
  std::string answer;
  for (const json& block : said["content"]) answer += block.value("text", "");
  EXPECT_EQ(wanted, answer);
  json response = {{"model", "tiny"}, {"max_output_tokens", 4}, {"temperature", 0}};
  response["input"] = {{{"role", "user"},
                        {"content",
                         {{{"type", "input_image"}, {"image_url", url}},
                          {{"type", "input_text"}, {"text", "What is it?"}}}}}};
  const json responded = server().post("/v1/responses", response).document();
  EXPECT_EQ(responded["usage"]["input_tokens"], dark["usage"]["prompt_tokens"]) << responded;
  answer.clear();
  for (const json& item : responded["output"]) answer += item["content"][0].value("text", "");
  EXPECT_EQ(wanted, answer);

  EXPECT_THAT(refusal(shown("http://127.0.0.1/a.png"))["message"].get<std::string>(),
              HasSubstr("not fetched"));
  refusal(shown("data:image/gif;base64,AAAA"));
  refusal(shown("data:image/png;base64,?"));
  EXPECT_EQ(refusal(shown("data:image/png;base64,AAAA"))["code"], "invalid_image");
  EXPECT_EQ(refusal(shown(grey_image('a', 2)))["code"], "invalid_image");
  EXPECT_EQ(refusal(shown(grey_image('a', 4000)))["code"], "invalid_image");
  json two = shown(grey_image('a'));
  two["messages"][0]["content"].push_back(two["messages"][0]["content"][0]);
  EXPECT_EQ(refusal(two)["code"], "unsupported_content");
}

std::vector<std::string> names(const std::vector<Event>& events) {
  std::vector<std::string> names;
  for (const Event& event : events) {
    EXPECT_EQ(event.document()["type"], event.name);
    if (names.empty() || names.back() != event.name) names.push_back(event.name);
  }
  return names;
}

TEST_F(HttpTest, AnthropicsMessages) {
  json body = {
      {"model", "tiny"},
      {"max_tokens", 6},
      {"seed", 1},
      {"system", {{{"type", "text"}, {"text", "Be good."}}}},
      {"logit_bias", only('a')},
      {"messages", {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "Hi"}}}}}}}};
  const json answer = server().post("/v1/messages", body).document();
  EXPECT_EQ(answer["type"], "message");
  EXPECT_EQ(answer["content"], json::parse(R"([{"type": "text", "text": "aaaaaa"}])"));
  EXPECT_EQ(answer["stop_reason"], "max_tokens");
  EXPECT_EQ(answer["usage"]["output_tokens"], 6);
  const json count = server().post("/v1/messages/count_tokens", body).document();
  EXPECT_EQ(count["input_tokens"], answer["usage"]["input_tokens"].get<int64_t>() +
                                       answer["usage"]["cache_read_input_tokens"].get<int64_t>());
  const std::vector<Event> events = server().stream("/v1/messages", body);
  EXPECT_THAT(names(events),
              ElementsAre("message_start", "content_block_start", "content_block_delta",
                          "content_block_stop", "message_delta", "message_stop"));
  std::string text;
  for (const Event& event : events) {
    if (event.name == "content_block_delta") text += event.document()["delta"]["text"];
  }
  EXPECT_EQ(text, "aaaaaa");
  EXPECT_EQ(events.front().document()["message"]["usage"]["input_tokens"], count["input_tokens"]);

  body["stop_sequences"] = {"aaa"};
  const json stopped = server().post("/v1/messages", body).document();
  EXPECT_EQ(stopped["stop_reason"], "stop_sequence");
  EXPECT_EQ(stopped["stop_sequence"], "aaa");
  EXPECT_EQ(stopped["content"], json::array());
  body.erase("max_tokens");
  EXPECT_EQ(server().post("/v1/messages", body).document()["error"]["type"],
            "invalid_request_error");
}

TEST_F(HttpTest, AnthropicsToolsReachTheTemplate) {
  const json body = {
      {"messages",
       {{{"role", "user"}, {"content", "Hi"}},
        {{"role", "assistant"},
         {"content", {{{"type", "tool_use"}, {"id", "t"}, {"name", "f"}, {"input", {{"a", 1}}}}}}},
        {{"role", "user"},
         {"content", {{{"type", "tool_result"}, {"tool_use_id", "t"}, {"content", "seven"}}}}}}}};
  const int64_t tokens =
      server().post("/v1/messages/count_tokens", body).document()["input_tokens"];
  // Three messages of this template and what it asks for: "tool\nseven".
  EXPECT_EQ(tokens, (1 + 5 + 2 + 2) + (1 + 10 + 0 + 2) + (1 + 5 + 5 + 2) + (1 + 10));
}

TEST_F(HttpTest, Responses) {
  const json body = {
      {"model", "tiny"},        {"input", "Hello"},           {"seed", 3},
      {"max_output_tokens", 5}, {"instructions", "Be good."}, {"logit_bias", only('a')}};
  const json answer = server().post("/v1/responses", body).document();
  EXPECT_EQ(answer["object"], "response");
  EXPECT_EQ(answer["status"], "incomplete");
  EXPECT_EQ(answer["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(answer["output"][0]["content"][0]["text"], "aaaaa");
  EXPECT_EQ(answer["usage"]["output_tokens"], 5);
  const std::vector<Event> events = server().stream("/v1/responses", body);
  EXPECT_THAT(names(events),
              ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                          "response.content_part.added", "response.output_text.delta",
                          "response.output_text.done", "response.content_part.done",
                          "response.output_item.done", "response.incomplete"));
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].document()["sequence_number"], i);
  }
  json stored = body;
  stored["previous_response_id"] = "resp_1";
  EXPECT_EQ(server().post("/v1/responses", stored).document()["error"]["param"],
            "previous_response_id");
}

}  // namespace
}  // namespace pronghorn::testing_http
