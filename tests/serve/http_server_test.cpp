// The server as a whole, seen by its clients: access, limits, cancelling, ending.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ringbuffer_sink.h>

#include <algorithm>

#include "base/files.h"
#include "serve/http_client.h"

namespace pronghorn::testing_http {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(HttpTest, SaysHowItIs) {
  EXPECT_EQ(server().get("/health").document()["status"], "ok");
  EXPECT_EQ(server().get("/ready").status, 200);
  const json models = server().get("/v1/models").document();
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["context_length"], 512);
  EXPECT_EQ(models["data"][0]["chat_template"], true);
  const Answer page = server().get("/");
  EXPECT_THAT(page.body, StartsWith("<!doctype html>"));
  EXPECT_THAT(page.body, testing::Not(HasSubstr("{{")));
  EXPECT_THAT(page.header("Content-Security-Policy"), HasSubstr("default-src 'none'"));
}

TEST_F(HttpTest, CountsWhatItDoes) {
  EXPECT_EQ(server().post("/v1/chat/completions", chat("Hello")).status, 200);
  EXPECT_EQ(server().post("/v1/chat/completions", json::object()).status, 400);
  ASSERT_TRUE(eventually([&] {
    return server().get("/metrics").body.find("pronghorn_http_requests_running 0") !=
           std::string::npos;
  }));
  const Answer metrics = server().get("/metrics");
  EXPECT_THAT(metrics.header("Content-Type"), StartsWith("text/plain"));
  for (const char* line :
       {"pronghorn_ready 1\n", "pronghorn_generation_tokens_total{model=\"tiny\"} ",
        "pronghorn_http_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"} 1\n",
        "pronghorn_http_requests_total{endpoint=\"/v1/chat/completions\",status=\"400\"} 1\n",
        "pronghorn_http_refused_total{code=\"missing_field\"} 1\n",
        "pronghorn_e2e_request_latency_seconds_count{model=\"tiny\"} 1\n"}) {
    EXPECT_THAT(metrics.body, HasSubstr(line));
  }
}

TEST_F(HttpTest, RequestsKeepTheirIds) {
  EXPECT_EQ(server()
                .post("/tokenize", {{"content", "a"}}, {{"X-Request-Id", "mine-1"}})
                .header("X-Request-Id"),
            "mine-1");
  EXPECT_THAT(server()
                  .post("/tokenize", {{"content", "a"}}, {{"X-Request-Id", "a b"}})
                  .header("X-Request-Id"),
              StartsWith("req_"));
}

TEST_F(HttpTest, SeveralRequestsOnOneConnection) {
  httplib::Client client = server().client();
  client.set_keep_alive(true);
  for (int i = 0; i < 20; ++i) {
    const auto result = client.Post("/tokenize", R"({"content": "abc"})", "application/json");
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, 200);
  }
  // One after the other, without waiting for the first answer.
  RawClient raw(server().server().port());
  raw.send(
      "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /ready HTTP/1.1\r\nHost: "
      "localhost\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(raw.read_until("ready"), HasSubstr("{\"status\":\"ok\"}"));
}

TEST_F(HttpTest, ErrorsSayWhatIsWrong) {
  const auto error = [&](const std::string& path, const std::string& body, int status) {
    const Answer answer = server().post_text(path, body);
    EXPECT_EQ(answer.status, status) << answer.body;
    return answer.document()["error"];
  };
  const std::string path = "/v1/chat/completions";
  EXPECT_EQ(error(path, "{", 400)["code"], "invalid_json");
  EXPECT_EQ(error(path, R"({"a": )" + std::string(200000, '[') + "}", 400)["code"], "invalid_json");
  EXPECT_EQ(error(path, R"({"model": "other", "messages": []})", 404)["code"], "model_not_found");
  EXPECT_EQ(error(path, R"({"messages": []})", 400)["param"], "messages");
  EXPECT_EQ(error(path, R"({"messages": [{"role": "user", "content": 3}]})", 400)["param"],
            "messages[0].content");
  const std::string image =
      R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})";
  EXPECT_EQ(error(path, image, 400)["code"], "unsupported_content");
  EXPECT_EQ(error("/nothing", "{}", 404)["code"], "not_found");
  EXPECT_EQ(error("/health", "{}", 405)["code"], "method_not_allowed");
  EXPECT_EQ(server().get("/v1/completions").status, 405);
}

TEST_F(HttpTest, ParametersAreChecked) {
  const std::vector<std::pair<json, int>> cases = {
      {{{"temperature", -1}}, 400},
      {{{"temperature", "hot"}}, 400},
      {{{"top_p", 1.5}}, 400},
      {{{"n", 0}}, 400},
      {{{"n", 100000}}, 400},
      {{{"stop", json::array({""})}}, 400},
      {{{"stop", std::vector<std::string>(17, "x")}}, 413},
      {{{"stop", std::string(2000, 'x')}}, 413},
      {{{"top_logprobs", 2}}, 400},
      {{{"logprobs", true}, {"top_logprobs", 1000}}, 400},
      {{{"logit_bias", {{"999999", 1}}}}, 400},
      {{{"logit_bias", {{"5", 101}}}}, 400},
      {{{"response_format", {{"type", "xml"}}}}, 400},
      {{{"response_format", 3}}, 400},
      {{{"seed", 1.5}}, 400},
      {{{"max_tokens", -2}}, 400},
      {{{"tools", 3}}, 400},
      {{{"continue_final_message", true}}, 400},
  };
  for (const auto& [fields, status] : cases) {
    json body = chat("Hello");
    body.update(fields);
    const Answer answer = server().post("/v1/chat/completions", body);
    EXPECT_EQ(answer.status, status) << fields << answer.body;
    EXPECT_TRUE(answer.document()["error"]["message"].is_string());
  }
  EXPECT_EQ(server().counters().running, 0);
}

TEST_F(HttpTest, LongPromptsAreRefusedWithBothNumbers) {
  const Answer answer = server().post("/v1/chat/completions", chat(std::string(600, 'a')));
  EXPECT_EQ(answer.status, 400);
  const json error = answer.document()["error"];
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["context_length"], 512);
  EXPECT_GT(error["prompt_tokens"], 600);
}

TEST_F(HttpTest, LargeBodiesAreRefused) {
  options_.body_bytes = 1000;
  const Answer answer = server().post("/v1/chat/completions", chat(std::string(2000, 'a')));
  EXPECT_EQ(answer.status, 413);
  EXPECT_EQ(answer.document()["error"]["limit"], 1000);
  // One that says it is even larger, and one that is packed.
  RawClient huge(server().server().port());
  huge.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{");
  EXPECT_THAT(huge.read_until("limit"), HasSubstr("413"));
  httplib::Client packing = server().client();
  packing.set_compress(true);
  const json zeros = {{"content", std::string(100000, '0')}};
  const auto packed = packing.Post("/tokenize", zeros.dump(), "application/json");
  ASSERT_TRUE(packed);
  EXPECT_EQ(packed->status, 415);
  RawClient endless(server().server().port());
  endless.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_THAT(endless.read_until("length_required"), HasSubstr("411"));
}

TEST_F(HttpTest, KeysAreAskedFor) {
  write_file(folder_ / "keys", "secret\n");
  options_.key_file = folder_ / "keys";
  const json body = {{"content", "a"}};
  EXPECT_EQ(server().post("/tokenize", body).status, 401);
  EXPECT_EQ(server().post("/tokenize", body, {{"Authorization", "Bearer wrong"}}).status, 401);
  EXPECT_EQ(server().post("/tokenize", body, {{"Authorization", "Bearer secret"}}).status, 200);
  EXPECT_EQ(server().post("/tokenize", body, {{"x-api-key", "secret"}}).status, 200);
  EXPECT_EQ(server().get("/metrics").status, 401);
  EXPECT_EQ(server().get("/v1/models").status, 401);
  EXPECT_EQ(server().get("/health").status, 200);
  const json refused = server().post("/v1/messages", body).document();
  EXPECT_EQ(refused["error"]["type"], "authentication_error");
}

TEST_F(HttpTest, PagesOfOthersMayNotAsk) {
  const json body = {{"content", "a"}};
  const httplib::Headers evil = {{"Origin", "http://evil.example"}};
  EXPECT_EQ(server().post("/tokenize", body, evil).status, 403);
  EXPECT_EQ(server().post("/tokenize", body, {{"Host", "rebound.example"}}).status, 403);
  EXPECT_EQ(server().post("/tokenize", body).header("Access-Control-Allow-Origin"), "");
}

TEST_F(HttpTest, CorsNamesWhoMayAsk) {
  options_.cors = "http://mine.example";
  const httplib::Headers mine = {{"Origin", "http://mine.example"}};
  const Answer answer = server().post("/tokenize", {{"content", "a"}}, mine);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.header("Access-Control-Allow-Origin"), "http://mine.example");
  const auto asked = server().client().Options("/tokenize", mine);
  ASSERT_TRUE(asked);
  EXPECT_EQ(asked->status, 204);
}

// Texts that do not end before the test is over, if the engine's context has room for them.
constexpr int64_t kEndless = 1 << 22;

json long_chat(int64_t tokens = kEndless) {
  return {{"messages", {{{"role", "user"}, {"content", "Hello"}}}},
          {"ignore_eos", true},
          {"max_tokens", tokens},
          {"stream", true},
          {"seed", 1}};
}

TEST_F(HttpTest, AClosedSocketEndsItsText) {
  engine_.context = 2 * kEndless;
  RawClient streaming(server().server().port());
  streaming.post("/v1/chat/completions", long_chat());
  EXPECT_THAT(streaming.read_until("data: "), HasSubstr("200 OK"));
  streaming.close();
  EXPECT_TRUE(eventually([&] { return server().counters().cancelled == 1; }));

  json whole = long_chat();
  whole["stream"] = false;
  RawClient waiting(server().server().port());
  waiting.post("/v1/chat/completions", whole);
  ASSERT_TRUE(eventually([&] { return server().counters().running == 1; }));
  waiting.close();
  EXPECT_TRUE(eventually([&] { return server().counters().cancelled == 2; }));
  EXPECT_EQ(server().counters().running, 0);
  EXPECT_EQ(server().post("/v1/chat/completions", chat("still there?")).status, 200);
}

TEST_F(HttpTest, AFullQueueSaysWhenToComeBack) {
  engine_.sequences = 1;
  engine_.queue_requests = 1;
  engine_.context = 2 * kEndless;
  json whole = long_chat();
  whole["stream"] = false;
  RawClient first(server().server().port()), second(server().server().port());
  first.post("/v1/chat/completions", whole);
  ASSERT_TRUE(eventually([&] { return server().counters().running == 1; }));
  second.post("/v1/chat/completions", whole);
  ASSERT_TRUE(eventually([&] { return server().counters().waiting == 1; }));
  const Answer refused = server().post("/v1/chat/completions", chat("me too"));
  EXPECT_EQ(refused.status, 429) << refused.body;
  EXPECT_GE(std::stoi(refused.header("Retry-After")), 1);
  EXPECT_EQ(refused.document()["error"]["waiting_requests"], 1);
}

TEST_F(HttpTest, DrainingLetsTextsEnd) {
  constexpr int64_t kTokens = 1500;
  engine_.context = 2 * kTokens;
  RawClient client(server().server().port());
  json body = long_chat(kTokens);
  body["n"] = 8;  // takes longer than the requests below
  client.post("/v1/chat/completions", body);
  client.read_until("data: ");
  std::thread drain([&] { server().server().drain(); });
  ASSERT_TRUE(eventually([&] { return server().server().service().draining.load(); }));
  const Answer refused = server().post("/v1/chat/completions", chat("too late"));
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(refused.header("Retry-After"), "");
  EXPECT_EQ(server().get("/ready").status, 503);
  EXPECT_EQ(server().get("/health").status, 200);
  EXPECT_NE(client.read_until("[DONE]").find("\"finish_reason\":\"length\""), std::string::npos);
  drain.join();
  EXPECT_TRUE(eventually([&] { return server().ended(); }));
}

TEST_F(HttpTest, WhoTakesTooLongIsCutWithAnError) {
  options_.drain_seconds = 0;
  engine_.context = 2 * kEndless;
  RawClient client(server().server().port());
  json body = long_chat();
  client.post("/v1/chat/completions", body);
  client.read_until("data: ");
  server().server().drain();
  const std::string rest = client.read_until("shutting_down");
  EXPECT_NE(rest.find("event: error"), std::string::npos) << rest.substr(rest.size() - 300);
  EXPECT_TRUE(eventually([&] { return server().ended(); }));
}

TEST_F(HttpTest, ResponsesThatAreCutSaySo) {
  options_.drain_seconds = 0;
  engine_.context = 2 * kEndless;
  RawClient client(server().server().port());
  client.post("/v1/responses", {{"input", "Hello"},
                                {"stream", true},
                                {"ignore_eos", true},
                                {"max_output_tokens", kEndless}});
  client.read_until("response.output_text.delta");
  server().server().drain();
  const std::string rest = client.read_until("0\r\n\r\n");
  EXPECT_NE(rest.find("event: response.failed"), std::string::npos);
}

TEST_F(HttpTest, MoreConnectionsThanAllowedAreTurnedAway) {
  options_.connections = 2;
  RawClient first(server().server().port()), second(server().server().port());
  for (const RawClient* client : {&first, &second}) {
    client->send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client->read_until("ok");
  }
  RawClient third(server().server().port());
  EXPECT_THAT(third.read_until("too_many_connections"), StartsWith("HTTP/1.1 503"));
}

TEST_F(HttpTest, RequestsMustArriveInTime) {
  options_.read_seconds = 0.3;
  RawClient slow(server().server().port());
  slow.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"a");
  EXPECT_THAT(slow.read_until("did not arrive"), HasSubstr("400"));
}

TEST_F(HttpTest, EveryRequestLeavesALine) {
  const auto before = spdlog::default_logger();
  const auto sink = std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(64);
  const auto logger = std::make_shared<spdlog::logger>("lines", sink);
  logger->set_level(spdlog::level::debug);
  logger->set_pattern("%l %v");
  spdlog::set_default_logger(logger);
  const httplib::Headers id = {{"X-Request-Id", "mine"}};
  for (const char* path : {"/v1/models", "/health", "/metrics", "/ready", "/runs", "/nowhere"}) {
    server().get(path, id);
  }
  server().post("/health", json::object(), id);
  server().post("/tokenize", {{"content", "a secret"}}, id);
  server_.reset();
  spdlog::set_default_logger(before);
  const std::vector<std::string> lines = sink->last_formatted();
  const auto expect_one = [&](const std::string& begin, const std::string& end) {
    const auto found = std::ranges::count_if(lines, [&](const std::string& line) {
      return line.starts_with(begin) && line.ends_with(end + "\n");
    });
    EXPECT_EQ(found, 1) << begin << "\n" << testing::PrintToString(lines);
  };
  expect_one("info mine GET /v1/models 200 ", " ms");
  expect_one("debug mine GET /health 200 ", " ms");
  expect_one("debug mine GET /metrics 200 ", " ms");
  expect_one("info mine GET /ready 200 ", " ms");
  expect_one("info mine GET /runs 404 ", " ms");
  expect_one("info mine GET /nowhere", " ms");
  expect_one("debug mine POST /health 405 ", " ms");
  expect_one("info mine /tokenize 200 ", " end=-");
  EXPECT_THAT(testing::PrintToString(lines), testing::Not(HasSubstr("secret")));
}

TEST(HttpLoadingTest, AModelThatIsNotThereIsNotReady) {
  serve::ServerOptions options;
  options.port = 0;
  spdlog::set_level(spdlog::level::off);
  serve::Server server(options);
  serve::ModelSource source;
  source.path = "/nowhere";
  source.name = "ghost";
  server.load(source);
  std::thread thread([&] { server.run(); });
  EXPECT_FALSE(server.wait_until_loaded());
  httplib::Client client("127.0.0.1", server.port());
  const auto ready = client.Get("/ready");
  EXPECT_TRUE(ready);
  EXPECT_EQ(ready ? ready->status : 0, 503);
  const auto refused = client.Post("/tokenize", R"({"content": "a"})", "application/json");
  EXPECT_TRUE(refused);
  EXPECT_EQ(refused ? refused->status : 0, 503);
  EXPECT_THAT(refused ? refused->body : "", HasSubstr("model_not_loaded"));
  server.drain();
  thread.join();
}

TEST(HttpLoadingTest, APortThatIsTakenIsAnError) {
  serve::ServerOptions options;
  options.port = 0;
  const serve::Server first(options);
  options.port = first.port();
  EXPECT_THROW(serve::Server{options}, Error);
}

}  // namespace
}  // namespace pronghorn::testing_http
