// States in files, over HTTP: the next turn of a chat after a restart reads its new message alone,
// and is answered as it would have been.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "serve/http/openapi.h"
#include "serve/http/routes.h"
#include "serve/http_client.h"

namespace pronghorn {
namespace {

using namespace testing_http;
using testing::HasSubstr;

class HttpSessionTest : public HttpTest {
 protected:
  HttpSessionTest() { options_.session_directory = folder_.path() / "sessions"; }

  json session(const std::string& name, const json& fields = json::object()) const {
    json body = {{"model", "tiny"}, {"name", name}};
    body.update(fields);
    return body;
  }
  void restart() {
    server_.reset();
    server();
  }
  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> files;
    const std::filesystem::path folder = folder_.path() / "sessions";
    if (!std::filesystem::exists(folder)) return files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    return files;
  }
};

TEST_F(HttpSessionTest, AChatGoesOnAfterARestart) {
  for (const char* kind : {"hybrid", "transformer"}) {
    write_chat_model(folder_.path(), kind);
    restart();
    const json first = chat("What is it that runs, and does not get anywhere?");
    const json answer = server().post("/v1/chat/completions", first).document();
    json turn = first;
    turn["messages"].push_back(answer["choices"][0]["message"]);
    json next = turn;
    next["messages"].push_back({{"role", "user"}, {"content", "And then?"}});
    const json cold = server().post("/v1/chat/completions", next).document();

    const Answer saved =
        server().post("/v1/sessions/save", session("one", {{"messages", turn["messages"]}}));
    ASSERT_EQ(saved.status, 200) << saved.body;
    EXPECT_GT(saved.document()["tokens"], 40);
    EXPECT_GT(saved.document()["bytes"], 0);
    EXPECT_EQ(files().size(), 1u);

    restart();
    const Answer restored = server().post("/v1/sessions/restore", session("one"));
    ASSERT_EQ(restored.status, 200) << restored.body;
    EXPECT_EQ(restored.document()["tokens"], saved.document()["tokens"]);
    const json warm = server().post("/v1/chat/completions", next).document();
    EXPECT_EQ(warm["choices"], cold["choices"]);
    EXPECT_GE(warm["cache"]["tokens"].get<int64_t>() + 20,
              saved.document()["tokens"].get<int64_t>());
  }
}

TEST_F(HttpSessionTest, ATextIsReadWhereNothingIsKept) {
  const std::string text = "Once upon a time there was a state that nobody had kept.";
  const Answer saved = server().post("/v1/sessions/save", session("text", {{"prompt", text}}));
  ASSERT_EQ(saved.status, 200) << saved.body;
  EXPECT_EQ(saved.document()["tokens"], text.size());
  EXPECT_FALSE(saved.document().contains("ignored_fields")) << saved.body;
  // What belongs to a chat does nothing for a text.
  const json fields = {{"prompt", text}, {"tools", json::array()}};
  EXPECT_EQ(
      server().post("/v1/sessions/save", session("text", fields)).document()["ignored_fields"],
      json::array({"tools"}));
  restart();
  EXPECT_EQ(server().post("/v1/sessions/restore", session("text")).status, 200);
  EXPECT_EQ(server().counters().cache_states, 1);
}

TEST_F(HttpSessionTest, WhatIsWrongIsSaid) {
  const auto code = [&](const std::string& path, const json& body, int status) {
    const Answer answer = server().post(path, body);
    EXPECT_EQ(answer.status, status) << answer.body;
    return answer.document()["error"].value("code", "");
  };
  EXPECT_EQ(code("/v1/sessions/restore", session("none"), 404), "session_not_found");
  for (const char* name : {"", ".x", "a/b", "../x", "a b", "\u00e9"}) {
    code("/v1/sessions/save", session(name, {{"prompt", "x"}}), 400);
    code("/v1/sessions/restore", session(name), 400);
    code("/v1/sessions/delete", session(name), 400);
  }
  code("/v1/sessions/save", session("x"), 400);
  code("/v1/sessions/save", session("x", {{"prompt", ""}}), 400);
  json both = session("x", chat("Which of the two?"));
  both["prompt"] = "abc";
  EXPECT_EQ(server().post("/v1/sessions/save", both).document()["error"]["param"], "prompt");
  EXPECT_TRUE(files().empty());
  // Damaged, cut short, and of another model.
  EXPECT_EQ(server().post("/v1/sessions/save", session("x", {{"prompt", "abcdef"}})).status, 200);
  const std::string bytes = read_file(files().at(0));
  for (size_t at : {size_t{3}, size_t{20}, bytes.size() / 2}) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    if (at > bytes.size() / 3) damaged.resize(at);
    write_file(files().at(0), damaged);
    EXPECT_EQ(code("/v1/sessions/restore", session("x"), 409), "session_mismatch");
  }
  write_file(files().at(0), bytes);
  write_chat_model(folder_.path(), "transformer");
  restart();
  EXPECT_EQ(code("/v1/sessions/restore", session("x"), 409), "session_mismatch");
  engine_.cache_bytes = 0;
  restart();
  EXPECT_EQ(code("/v1/sessions/save", session("y", {{"prompt", "abcdef"}}), 409), "nothing_kept");
  options_.session_directory.clear();
  restart();
  EXPECT_EQ(code("/v1/sessions/save", session("y", {{"prompt", "a"}}), 400),
            "no_session_directory");
  EXPECT_EQ(code("/v1/sessions/list", {{"model", "tiny"}}, 400), "no_session_directory");
  EXPECT_EQ(code("/v1/sessions/delete", session("x"), 400), "no_session_directory");
}

TEST_F(HttpSessionTest, TheyAreListedAndDeleted) {
  const auto names = [&] {
    std::string all;
    const json list = server().post("/v1/sessions/list", {{"model", "tiny"}}).document();
    for (const json& one : list["data"]) {
      all += one["name"].get<std::string>() + " ";
      EXPECT_GT(one["bytes"], 0);
      EXPECT_GT(one["created"], 1'700'000'000);
    }
    return all;
  };
  EXPECT_EQ(names(), "");
  for (const char* name : {"two.b", "one", "two"}) {
    const Answer saved = server().post("/v1/sessions/save", session(name, {{"prompt", "abc"}}));
    EXPECT_EQ(saved.status, 200) << saved.body;
  }
  const std::filesystem::path folder = files().at(0).parent_path();
  write_file(folder / "other.txt", "not a session");
  write_file(folder / ".hidden.session", "nor this");
  EXPECT_EQ(names(), "one two two.b ");
  EXPECT_EQ(server().post("/v1/sessions/delete", session("two")).document()["deleted"], true);
  EXPECT_EQ(names(), "one two.b ");
  EXPECT_EQ(server().post("/v1/sessions/delete", session("two")).status, 404);
  EXPECT_EQ(server().post("/v1/sessions/restore", session("two")).status, 404);
  EXPECT_EQ(server().post("/v1/sessions/delete", session("other.txt")).status, 404);
  EXPECT_EQ(files().size(), 4u);
}

TEST_F(HttpSessionTest, KeysDoNotShareThem) {
  options_.key_file = folder_.path() / "keys";
  write_file(options_.key_file, "one\ntwo\n");
  const httplib::Headers one = {{"Authorization", "Bearer one"}},
                         two = {{"Authorization", "Bearer two"}};
  const json body = session("mine", {{"prompt", "a secret"}});
  EXPECT_EQ(server().post("/v1/sessions/save", body, one).status, 200);
  EXPECT_EQ(server().post("/v1/sessions/restore", session("mine"), two).status, 404);
  EXPECT_EQ(server().post("/v1/sessions/delete", session("mine"), two).status, 404);
  const json all = {{"model", "tiny"}};
  EXPECT_EQ(server().post("/v1/sessions/list", all, two).document()["data"], json::array());
  EXPECT_EQ(server().post("/v1/sessions/list", all, one).document()["data"].size(), 1u);
  EXPECT_EQ(server().post("/v1/sessions/restore", session("mine"), one).status, 200);
}

// Every route is in the document, and every schema there is one.
TEST_F(HttpSessionTest, TheDescriptionHasEveryRoute) {
  const json document = server().get("/openapi.json").document();
  EXPECT_EQ(document["openapi"], "3.1.0");
  for (const std::string& path : serve::post_paths()) {
    const json& own = document["paths"][path]["post"];
    EXPECT_NE(own["summary"], "") << path;
    const json& schema = own["requestBody"]["content"]["application/json"]["schema"];
    EXPECT_EQ(schema["type"], "object") << path;
    EXPECT_FALSE(schema["properties"].empty()) << path;
    EXPECT_FALSE(serve::request_schema(path).is_null()) << path;
    // A body without what is required is refused.
    if (schema.contains("required")) {
      EXPECT_EQ(server().post(path, json::object()).status, 400) << path;
    }
  }
  for (const std::string& path : serve::get_paths()) {
    EXPECT_NE(document["paths"][path]["get"]["summary"], "") << path;
  }
  EXPECT_EQ(document["paths"].size(), serve::post_paths().size() + serve::get_paths().size());
}

}  // namespace
}  // namespace pronghorn
