// A server with a tiny model on a port of its own, and clients of it.
#pragma once

#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "serve/http/server.h"
#include "support/chat_model.h"
#include "support/folder.h"
#include "support/tiny_models.h"

namespace pronghorn::testing_http {

using nlohmann::json;

// A model with random weights that writes bytes, and a chat template.
inline void write_chat_model(const std::filesystem::path& directory, const std::string& name) {
  using namespace testing_support;
  const auto found =
      std::ranges::find(model_configs(), name, &std::pair<std::string, std::string>::first);
  ModelConfig config = model_config(found->second);
  config.vocab_size = kChatVocabulary;
  Model(config, 31).save(directory);
  write_chat_tokenizer(directory);
}

struct Answer {
  int status = 0;
  httplib::Headers headers;
  std::string body;

  json document() const {
    json parsed = json::parse(body, nullptr, false);
    EXPECT_FALSE(parsed.is_discarded()) << body;
    return parsed;
  }
  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string() : found->second;
  }
};

// An event of a stream.
struct Event {
  std::string name, data;
  json document() const { return json::parse(data); }
};

// The events of a stream's bytes; whatever else is in it fails the test.
inline std::vector<Event> events_of(const std::string& bytes) {
  std::vector<Event> events;
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t end = bytes.find("\n\n", at);
    if (end == bytes.npos) {
      ADD_FAILURE() << "an event is not complete: " << bytes.substr(at);
      break;
    }
    std::string text = bytes.substr(at, end - at);
    at = end + 2;
    if (text.starts_with(':')) continue;
    Event event;
    if (text.starts_with("event: ")) {
      const size_t line = text.find('\n');
      event.name = text.substr(7, line - 7);
      text.erase(0, line + 1);
    }
    EXPECT_TRUE(text.starts_with("data: ")) << text;
    event.data = text.substr(6);
    EXPECT_EQ(event.data.find('\n'), std::string::npos) << event.data;
    events.push_back(event);
  }
  return events;
}

// A server that runs while this lives.
class RunningServer {
 public:
  RunningServer(const std::filesystem::path& model, const serve::ServerOptions& options,
                const EngineOptions& engine)
      : server_(options) {
    serve::ModelSource source;
    source.path = model;
    source.name = "tiny";
    source.engine = engine;
    server_.load(source);
    thread_ = std::thread([this] {
      server_.run();
      ended_ = true;
    });
    EXPECT_TRUE(server_.wait_until_loaded());
  }
  ~RunningServer() {
    if (!ended_) server_.drain();
    thread_.join();
  }

  serve::Server& server() { return server_; }
  bool ended() const { return ended_; }
  EngineCounters counters() const {
    return server_.service().models.all().at(0)->engine->counters();
  }

  httplib::Client client() const {
    httplib::Client client("127.0.0.1", server_.port());
    client.set_read_timeout(60, 0);
    client.set_keep_alive(false);
    return client;
  }

  Answer post(const std::string& path, const json& body, const httplib::Headers& headers = {}) {
    return post_text(path, body.dump(), headers);
  }
  Answer post_text(const std::string& path, const std::string& body,
                   const httplib::Headers& headers = {}) {
    return answer_of(client().Post(path, headers, body, "application/json"));
  }
  Answer get(const std::string& path, const httplib::Headers& headers = {}) {
    return answer_of(client().Get(path, headers));
  }
  // The events that a request with "stream": true is answered with.
  std::vector<Event> stream(const std::string& path, json body) {
    body["stream"] = true;
    const Answer answer = post(path, body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.header("Content-Type"), "text/event-stream");
    return events_of(answer.body);
  }

 private:
  static Answer answer_of(const httplib::Result& result) {
    if (!result) {
      ADD_FAILURE() << "no answer: " << httplib::to_string(result.error());
      return {};
    }
    return {result->status, result->headers, result->body};
  }

  serve::Server server_;
  std::thread thread_;
  std::atomic<bool> ended_{false};
};

// A connection that says what it is told to.
class RawClient {
 public:
  explicit RawClient(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const timeval limit{20, 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void send(const std::string& bytes) const {
    EXPECT_EQ(::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  void post(const std::string& path, const json& body) const {
    const std::string text = body.dump();
    send(fmt::format("POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{}", path,
                     text.size(), text));
  }
  // What has come until `mark` has, or the connection ended.
  std::string read_until(const std::string& mark) const {
    std::string bytes;
    char buffer[4096];
    while (bytes.find(mark) == bytes.npos) {
      const ssize_t count = ::recv(socket_, buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      bytes.append(buffer, static_cast<size_t>(count));
    }
    return bytes;
  }
  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

 private:
  int socket_;
};

// Waits until something is so, for half a minute at most.
template <typename Condition>
bool eventually(const Condition& condition) {
  for (int i = 0; i < 3000; ++i) {
    if (condition()) return true;
    ::usleep(10000);
  }
  return condition();
}

class HttpTest : public testing::Test {
 protected:
  HttpTest() {
    spdlog::set_level(spdlog::level::warn);
    write_chat_model(folder_.path(), "hybrid");
    options_.port = 0;
    engine_.context = 512;
  }

  // The server, started by the first call.
  RunningServer& server() {
    if (server_ == nullptr) {
      server_ = std::make_unique<RunningServer>(folder_.path(), options_, engine_);
    }
    return *server_;
  }

  static json chat(const std::string& text) {
    return {{"model", "tiny"},
            {"messages", {{{"role", "user"}, {"content", text}}}},
            {"max_tokens", 12},
            {"seed", 7}};
  }
  // Makes a model write one byte again and again.
  static json only(char byte) { return {{std::to_string(static_cast<int>(byte)), 100}}; }

  const testing_support::Folder folder_;
  serve::ServerOptions options_;
  EngineOptions engine_;
  std::unique_ptr<RunningServer> server_;
};

}  // namespace pronghorn::testing_http
