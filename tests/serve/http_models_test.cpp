// Several models of one server, loaded when they are asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "serve/http_client.h"

namespace pronghorn {
namespace {

using namespace testing_http;
using testing::HasSubstr;

// A server with models "a", "b" and "c", none of which is loaded at first.
class OnDemandTest : public testing::Test {
 protected:
  OnDemandTest() {
    spdlog::set_level(spdlog::level::critical);
    options_.port = 0;
    const char* const kinds[] = {"hybrid", "transformer", "mamba2"};
    for (int i = 0; i < 3; ++i) {
      serve::ModelSource source;
      source.name = std::string(1, static_cast<char>('a' + i));
      source.path = folder_.path() / source.name;
      std::filesystem::create_directories(source.path);
      write_chat_model(source.path, kinds[i]);
      source.engine.context = 256;
      source.engine.cache_bytes = 0;
      sources_.push_back(source);
    }
  }
  ~OnDemandTest() override {
    if (server_ != nullptr) {
      server_->drain();
      thread_.join();
    }
  }

  void start() {
    server_ = std::make_unique<serve::Server>(options_);
    for (const serve::ModelSource& source : sources_) server_->offer(source);
    thread_ = std::thread([this] { server_->run(); });
  }
  httplib::Result ask(const std::string& model) const {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(60, 0);
    const json body = {{"model", model},
                       {"prompt", "Hello"},
                       {"max_tokens", 4},
                       {"seed", 1},
                       {"ignore_eos", true}};
    return client.Post("/v1/completions", body.dump(), "application/json");
  }
  std::set<std::string> loaded() const {
    std::set<std::string> names;
    for (const auto& model : server_->service().models.all()) names.insert(model->name);
    return names;
  }

  const testing_support::Folder folder_;
  serve::ServerOptions options_;
  std::vector<serve::ModelSource> sources_;
  std::unique_ptr<serve::Server> server_;
  std::thread thread_;
};

TEST_F(OnDemandTest, ModelsAreLoadedWhenTheyAreAskedFor) {
  start();
  EXPECT_TRUE(server_->service().models.ready());
  EXPECT_TRUE(loaded().empty());
  EXPECT_EQ(ask("b")->status, 200);
  EXPECT_EQ(loaded(), std::set<std::string>{"b"});
  // Many at once for one that is not there yet.
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { good += ask("a")->status == 200 ? 1 : 0; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 8);
  EXPECT_EQ(loaded(), (std::set<std::string>{"a", "b"}));
  EXPECT_EQ(ask("nobody")->status, 404);
}

TEST_F(OnDemandTest, TheOneNotUsedForLongestGoes) {
  int64_t most = 0;
  std::vector<int64_t> needs;
  for (const serve::ModelSource& source : sources_) {
    needs.push_back(serve::expected_memory(source).total());
    most = std::max(most, needs.back());
    EXPECT_GT(serve::expected_memory(source).weights, 0);
    EXPECT_GT(serve::expected_memory(source).text, 0);
  }
  // Weights that are packed may take up to twice what they do in the file.
  options_.memory_bytes = most + most / 4;
  start();
  const std::string first = ask("a")->body;
  EXPECT_EQ(ask("b")->status, 200);
  EXPECT_EQ(ask("c")->status, 200);
  EXPECT_FALSE(loaded().contains("a"));
  EXPECT_TRUE(loaded().contains("c"));
  // Loaded again, it says the same.
  const std::string again = ask("a")->body;
  EXPECT_EQ(json::parse(again)["choices"], json::parse(first)["choices"]);
}

TEST_F(OnDemandTest, WhatDoesNotFitIsRefused) {
  options_.memory_bytes = 1000;
  start();
  const auto answer = ask("a");
  EXPECT_EQ(answer->status, 503);
  EXPECT_THAT(answer->body, HasSubstr("it needs about"));
  EXPECT_THAT(answer->body, HasSubstr("more than the 1.00 kB of --memory"));
  EXPECT_TRUE(loaded().empty());
  // A file that is damaged is said so, each time.
  std::filesystem::remove(folder_.path() / "b" / "model.safetensors");
  EXPECT_EQ(ask("b")->status, 503);
  EXPECT_EQ(ask("b")->status, 503);
}

}  // namespace
}  // namespace pronghorn
