// The page of training runs and what it asks the server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/files.h"
#include "serve/http_client.h"

namespace pronghorn::testing_http {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class HttpWatchTest : public HttpTest {
 protected:
  HttpWatchTest() {
    for (const char* name : {"runs/m2", "runs/a run"}) {
      std::filesystem::create_directories(folder_ / name);
    }
    add_step("m2", 1);
    add_step("m2", 2);
    add_step("a run", 1);
  }

  void add_step(const std::string& run, int step) {
    const json line = {
        {"step", step},       {"tokens", 100 * step}, {"loss", 5.0 / step},      {"lr", 0.001},
        {"gradient_norm", 1}, {"seconds", step},      {"tokens_per_second", 100}};
    std::ofstream(folder_ / "runs" / run / "log.jsonl", std::ios::app) << line.dump() << "\n";
  }
};

TEST_F(HttpWatchTest, ShowsRunsBesideModels) {
  options_.runs = {folder_ / "runs"};
  EXPECT_THAT(server().get("/").body, HasSubstr("href=\"/watch\""));
  const Answer page = server().get("/watch");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.header("Content-Security-Policy"), HasSubstr("default-src 'none'"));
  EXPECT_THAT(page.body, StartsWith("<!doctype html>"));
  EXPECT_THAT(page.body, HasSubstr("href=\"/\">Chat"));
  // Nothing is left to fill in, and nothing is loaded from elsewhere.
  for (const char* load : {"{{page", "{{chart", "{{script", "{{style", "{{link", "src=\"http",
                           "href=\"http", "@import", "src=\"//"}) {
    EXPECT_THAT(page.body, Not(HasSubstr(load)));
  }

  const json list = server().get("/runs").document();
  EXPECT_EQ(list["omitted"], 0);
  ASSERT_EQ(list["runs"].size(), 2u);
  const json run = list["runs"][1];
  EXPECT_EQ(run["name"], "m2");
  EXPECT_EQ(run["state"], "stopped");
  EXPECT_EQ(run["points"], 2);
  EXPECT_EQ(run["last"]["tokens"], 200);
  EXPECT_TRUE(run["share"].is_null());

  add_step("m2", 3);
  server().get("/runs");
  const std::string version = run["version"].dump();
  const json news = server().get("/runs/curve?run=m2&from=2&version=" + version).document();
  EXPECT_EQ(news["from"], 2);
  EXPECT_EQ(news["points"]["step"], json::array({3}));
  EXPECT_EQ(news["points"]["loss"], json::array({5.0 / 3}));
  EXPECT_EQ(news["points"]["held_out_bits_per_byte"], json::array({nullptr}));
  const json whole = server().get("/runs/curve?run=a%20run&from=1&version=999").document();
  EXPECT_EQ(whole["from"], 0);
  EXPECT_EQ(whole["points"]["tokens"], json::array({100}));
}

TEST_F(HttpWatchTest, AsksForWhatIsThere) {
  options_.runs = {folder_ / "runs"};
  EXPECT_EQ(server().get("/runs/curve?run=other").status, 404);
  EXPECT_EQ(server().get("/runs/curve").status, 404);
  EXPECT_EQ(server().get("/runs/curve?run=m2&from=x").document()["error"]["param"], "from");
  EXPECT_EQ(server().get("/runs/curve?run=m2&from=-1").status, 400);
  EXPECT_EQ(server().get("/runs/curve?run=m2&from=99999999999999999999").status, 400);
  const std::string version = server().get("/runs").document()["runs"][1]["version"].dump();
  const std::string known = "/runs/curve?run=m2&version=" + version;
  EXPECT_EQ(server().get(known + "&from=7").document()["points"]["step"], json::array());
  EXPECT_EQ(server().post("/runs", json::object()).status, 405);
}

TEST_F(HttpWatchTest, WithoutRunsThereIsNoPageOfThem) {
  EXPECT_THAT(server().get("/").body, Not(HasSubstr("href=\"/watch\"")));
  for (const char* path : {"/watch", "/runs", "/runs/curve?run=m2"}) {
    EXPECT_EQ(server().get(path).status, 404) << path;
  }
}

TEST_F(HttpWatchTest, RunsAreForThoseWithAKey) {
  write_file(folder_ / "keys", "secret\n");
  options_.key_file = folder_ / "keys";
  options_.runs = {folder_ / "runs"};
  EXPECT_EQ(server().get("/watch").status, 200);
  EXPECT_EQ(server().get("/runs").status, 401);
  EXPECT_EQ(server().get("/runs/curve?run=m2").status, 401);
  EXPECT_EQ(server().get("/runs", {{"Authorization", "Bearer secret"}}).status, 200);
}

TEST_F(HttpWatchTest, AServerOfRunsAloneBeginsWithThem) {
  options_.runs = {folder_ / "runs"};
  serve::Server alone(options_);
  std::thread thread([&] { alone.run(); });
  httplib::Client client("127.0.0.1", alone.port());
  const auto page = client.Get("/");
  ASSERT_TRUE(page);
  EXPECT_THAT(page->body, HasSubstr("training runs"));
  EXPECT_THAT(page->body, Not(HasSubstr(">Chat</a>")));
  const auto list = client.Get("/runs");
  ASSERT_TRUE(list);
  EXPECT_EQ(json::parse(list->body)["runs"].size(), 2u);
  client.stop();
  alone.drain();
  thread.join();
}

}  // namespace
}  // namespace pronghorn::testing_http
