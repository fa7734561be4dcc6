// Completions, embeddings, and the endpoints for texts and tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "formats/tokenizer.h"
#include "serve/http_client.h"
#include "tensor/batch.h"

namespace pronghorn::testing_http {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kPath = "/v1/completions";

json completion(const json& prompt) {
  return {{"model", "tiny"}, {"prompt", prompt}, {"max_tokens", 4}, {"seed", 5}};
}

TEST_F(HttpTest, PromptsComeInFourForms) {
  const json text = server().post(kPath, completion("abc")).document();
  EXPECT_EQ(text["object"], "text_completion");
  EXPECT_EQ(text["usage"]["prompt_tokens"], 3);
  const json ids = server().post(kPath, completion({97, 98, 99})).document();
  EXPECT_EQ(ids["choices"], text["choices"]);
  const json texts = server().post(kPath, completion({"abc", "de"})).document();
  ASSERT_EQ(texts["choices"].size(), 2u);
  EXPECT_EQ(texts["choices"][0]["text"], text["choices"][0]["text"]);
  EXPECT_EQ(texts["choices"][1]["index"], 1);
  EXPECT_EQ(texts["usage"]["prompt_tokens"], 5);
  const json lists = server().post(kPath, completion({{97, 98, 99}, {100, 101}})).document();
  EXPECT_EQ(lists["choices"], texts["choices"]);
  for (const json& wrong :
       {json(), json(3), json::array(), json(""), json({1, 999999}), json::parse("[[1], [-1]]"),
        json::parse("[[]]"), json::parse("[[1.5]]")}) {
    EXPECT_EQ(server().post(kPath, completion(wrong)).status, 400) << wrong;
  }
}

TEST_F(HttpTest, CompletionsStream) {
  json body = completion("abc");
  body["logit_bias"] = only('x');
  body["stream_options"] = {{"include_usage", true}};
  const std::vector<Event> events = server().stream(kPath, body);
  std::string text;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    text += events[i].document()["choices"][0]["text"];
  }
  EXPECT_EQ(text, "xxxx");
  EXPECT_EQ(events[events.size() - 3].document()["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(events[events.size() - 2].document()["usage"]["completion_tokens"], 4);
  EXPECT_EQ(events.back().data, "[DONE]");
  EXPECT_TRUE(events[events.size() - 3].document().contains("timings"));
}

// Log-probabilities of each token after those before it, by one forward over all of them.
std::vector<double> reference(const std::filesystem::path& path,
                              const std::vector<int32_t>& tokens) {
  const std::unique_ptr<Model> model = Model::load(path);
  SequenceState state = model->new_state();
  const Batch batch = continue_sequence(state, tokens);
  const Tensor logits = model->logits({}, model->forward({}, batch));
  const auto width = static_cast<size_t>(model->config().vocab_size);
  std::vector<double> result;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const auto row = std::span<const float>(logits.values()).subspan(i * width, width);
    double sum = 0;
    for (const float score : row) sum += std::exp(double{score});
    result.push_back(double{row[static_cast<size_t>(tokens[i + 1])]} - std::log(sum));
  }
  return result;
}

TEST_F(HttpTest, EchoScoresThePrompt) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 300; ++i) tokens.push_back((7 * i) % 256);
  const std::vector<double> wanted = reference(folder_.path(), tokens);
  for (const int most : {0, 1}) {
    json body = completion(tokens);
    body["echo"] = true;
    body["logprobs"] = 2;
    body["max_tokens"] = most;
    body["temperature"] = 0;
    const json answer = server().post(kPath, body).document();
    const json& logprobs = answer["choices"][0]["logprobs"];
    const json& scores = logprobs["token_logprobs"];
    ASSERT_EQ(scores.size(), tokens.size() + static_cast<size_t>(most));
    EXPECT_EQ(logprobs["tokens"].size(), scores.size());
    EXPECT_EQ(logprobs["text_offset"].size(), scores.size());
    EXPECT_EQ(scores[0], nullptr);
    EXPECT_EQ(logprobs["top_logprobs"][0], nullptr);
    for (size_t i = 0; i < wanted.size(); ++i) {
      // One forward in pieces, the other at once: f32 sums in another order.
      EXPECT_NEAR(scores[i + 1].get<double>(), wanted[i], 1e-3) << i;
      EXPECT_LE(logprobs["top_logprobs"][i + 1].size(), 2u);
    }
    if (most == 1) {
      // What is written greedily is the likeliest.
      const json& top = logprobs["top_logprobs"].back();
      double best = -1e9;
      for (const auto& [token, score] : top.items()) best = std::max(best, score.get<double>());
      EXPECT_EQ(scores.back().get<double>(), best);
    }
  }
}

TEST_F(HttpTest, EchoRepeatsThePrompt) {
  json body = completion("abc");
  body["echo"] = true;
  body["logit_bias"] = only('x');
  EXPECT_EQ(server().post(kPath, body).document()["choices"][0]["text"], "abcxxxx");
}

TEST_F(HttpTest, Embeddings) {
  const json answer =
      server().post("/v1/embeddings", {{"input", {"abc", "something else"}}}).document();
  ASSERT_EQ(answer["data"].size(), 2u);
  const auto first = answer["data"][0]["embedding"].get<std::vector<float>>();
  EXPECT_EQ(first.size(), 24u);
  double square = 0;
  for (const float value : first) square += double{value} * double{value};
  EXPECT_NEAR(square, 1, 1e-5);  // f32 rounding
  EXPECT_NE(answer["data"][0]["embedding"], answer["data"][1]["embedding"]);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 3 + 14);

  // Four letters of base64 are three bytes of the vector.
  const json packed =
      server().post("/v1/embeddings", {{"input", "abc"}, {"encoding_format", "base64"}}).document();
  EXPECT_EQ(packed["data"][0]["embedding"].get<std::string>().size(), 4u * 24u * 4u / 3u);
  EXPECT_EQ(server().post("/v1/embeddings", {{"input", json::array()}}).status, 400);
  EXPECT_EQ(server().post("/v1/embeddings", {{"input", "a"}, {"dimensions", 5}}).status, 400);
}

TEST_F(HttpTest, TextsAndTokens) {
  const std::string text = "Grüße 🙂<|end|>";
  const json tokens =
      server().post("/tokenize", {{"content", text}, {"with_pieces", true}}).document();
  EXPECT_EQ(tokens["tokens"].back(), testing_support::kChatEnd);
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["pieces"].back(), "<|end|>");
  EXPECT_EQ(tokens["pieces"][2], "bytes:\\xc3");
  EXPECT_EQ(server().post("/detokenize", {{"tokens", tokens["tokens"]}}).document()["content"],
            text);
  EXPECT_EQ(server().post("/detokenize", {{"tokens", {1, "x"}}}).status, 400);
  const json rendered = server().post("/apply-template", chat("Hi")).document();
  EXPECT_EQ(rendered["prompt"], "<|start|>user\nHi<|end|>\n<|start|>assistant\n");
  EXPECT_THAT(rendered["message_ends"], ElementsAre(1 + 5 + 2 + 2));
}

// Endpoints that write no text say what they take no notice of, too, and take one text alone.
TEST_F(HttpTest, NothingIsIgnoredInSilence) {
  EXPECT_THAT(server().post("/apply-template", chat("Hi")).document()["ignored_fields"],
              ElementsAre("max_tokens", "seed"));
  const auto ignored = [&](const std::string& path, json body) {
    body["model"] = "tiny";
    body["colour"] = "blue";
    return server().post(path, body).document()["ignored_fields"];
  };
  const json only = json::array({"colour"});
  EXPECT_EQ(ignored("/tokenize", {{"content", "a"}}), only);
  EXPECT_EQ(ignored("/detokenize", {{"tokens", {1, 2}}}), only);
  EXPECT_EQ(ignored("/v1/embeddings", {{"input", "a"}}), only);
  json message = {{"messages", chat("Hi")["messages"]}};
  EXPECT_EQ(ignored("/v1/messages/count_tokens", message), only);
  EXPECT_FALSE(
      server().post("/tokenize", {{"content", "a"}}).document().contains("ignored_fields"));

  const auto refused = [&](const std::string& path, const json& body) {
    const Answer answer = server().post(path, body);
    EXPECT_EQ(answer.status, 400) << answer.body;
    return answer.document()["error"].value("param", "");
  };
  EXPECT_EQ(refused("/tokenize", {{"content", "a"}, {"prompt", "b"}}), "prompt");
  message["content"] = "a";
  EXPECT_EQ(refused("/tokenize", message), "content");
  EXPECT_EQ(refused("/v1/responses", {{"input", "a"}, {"n", 2}}), "n");
}

}  // namespace
}  // namespace pronghorn::testing_http
