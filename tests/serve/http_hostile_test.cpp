// Requests that are meant to do harm, or might.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "serve/http/text_run.h"
#include "serve/http_client.h"

namespace pronghorn::testing_http {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(HttpTest, HeadersWithoutEndAreRefused) {
  RawClient line(server().server().port()), lines(server().server().port());
  line.send("GET /health HTTP/1.1\r\nX: " + std::string(100000, 'x'));
  EXPECT_THAT(line.read_until("\r\n\r\n"), StartsWith("HTTP/1.1 431"));
  std::string many = "GET /health HTTP/1.1\r\n";
  while (many.size() < 100000) many += "X: y\r\n";
  lines.send(many);
  EXPECT_THAT(lines.read_until("\r\n\r\n"), StartsWith("HTTP/1.1 431"));
}

TEST_F(HttpTest, BodiesOfNobodyAreNotRead) {
  // Each says that it has more to come, and is answered all the same.
  const std::string chunked = "Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n";
  for (const auto& [head, status] :
       std::vector<std::pair<std::string, std::string>>{{"POST /nothing HTTP/1.1\r\n", "404"},
                                                        {"PUT /v1/completions HTTP/1.1\r\n", "405"},
                                                        {"DELETE /health HTTP/1.1\r\n", "405"},
                                                        {"PRI /health HTTP/1.1\r\n", "40"},
                                                        {"OPTIONS /health HTTP/1.1\r\n", "405"}}) {
    RawClient client(server().server().port());
    client.send(head + chunked);
    EXPECT_THAT(client.read_until("\r\n\r\n"), StartsWith("HTTP/1.1 " + status)) << head;
  }
}

TEST_F(HttpTest, ChunksEndAtTheLimit) {
  options_.body_bytes = 1000;
  RawClient client(server().server().port());
  client.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" +
              std::string("400\r\n") + std::string(0x400, ' ') + "\r\n");
  EXPECT_THAT(client.read_until("\r\n\r\n"), StartsWith("HTTP/1.1 413"));
  // A line of a chunk's size that never ends.
  RawClient endless(server().server().port());
  endless.send(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;" +
      std::string(200000, 'x'));
  EXPECT_THAT(endless.read_until("\r\n\r\n"), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpTest, PartsOfPagesAreNotMade) {
  std::string ranges = "bytes=0-0";
  for (int i = 0; i < 1500; ++i) ranges += ",-";
  const Answer whole = server().get("/"), part = server().get("/", {{"Range", ranges}});
  EXPECT_EQ(part.status, 200);
  EXPECT_EQ(part.body.size(), whole.body.size());
}

TEST_F(HttpTest, OnlyJsonIsTaken) {
  const httplib::MultipartFormDataItems parts = {{"a", "b", "", ""}};
  const auto multipart = server().client().Post("/tokenize", parts);
  ASSERT_TRUE(multipart);
  EXPECT_EQ(multipart->status, 415);
  // Sent by default by a well-known program.
  const auto form = server().client().Post("/tokenize", R"({"content": "a"})",
                                           "application/x-www-form-urlencoded");
  ASSERT_TRUE(form);
  EXPECT_EQ(form->status, 200);
}

TEST_F(HttpTest, ManyKeysAndMessagesAreRefused) {
  json keys = {{"content", "a"}};
  for (int i = 0; i < 5000; ++i) keys[std::to_string(i)] = i;
  const Answer refused = server().post("/tokenize", keys);
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("more than 4096 keys"));
  json messages = json::array();
  for (int i = 0; i < 5000; ++i) messages.push_back({{"role", "user"}, {"content", "a"}});
  EXPECT_EQ(server().post("/v1/chat/completions", {{"messages", messages}}).status, 413);
  EXPECT_EQ(server().post("/v1/messages", {{"messages", messages}, {"max_tokens", 1}}).status, 413);
  EXPECT_EQ(server().post("/v1/responses", {{"input", messages}}).status, 413);
}

TEST_F(HttpTest, KeysDoNotShareTheCache) {
  write_file(folder_ / "keys", "first\nsecond\n");
  options_.key_file = folder_ / "keys";
  const json body = chat("A message that is long enough to be kept for whoever asks it again.");
  const auto cached = [&](const std::string& key) {
    const json answer =
        server().post("/v1/chat/completions", body, {{"x-api-key", key}}).document();
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
  };
  EXPECT_EQ(cached("first"), 0);
  EXPECT_GT(cached("first"), 0);
  EXPECT_EQ(cached("second"), 0);
}

TEST_F(HttpTest, SilentStreamsAreKeptOpen) {
  options_.comment_seconds = 0;
  json body = chat("Hello");
  body["logit_bias"] = only('a');
  body["stop"] = std::string(60, 'a');  // all of the text may be its beginning
  body["stream"] = true;
  const Answer answer = server().post("/v1/chat/completions", body);
  EXPECT_THAT(answer.body, HasSubstr(": waiting\n\n"));
  EXPECT_THAT(answer.body, HasSubstr("aaaaaaaaaaaa"));
}

TEST(MailboxTest, DoesNotGrowWithoutEnd) {
  serve::Mailbox mailbox;
  for (int i = 0; i < 1 << 16; ++i) mailbox.put({});
  EXPECT_FALSE(mailbox.overflown());
  mailbox.put({});
  EXPECT_TRUE(mailbox.overflown());
}

}  // namespace
}  // namespace pronghorn::testing_http
