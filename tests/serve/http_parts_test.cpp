// The parts of the HTTP layer by themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "formats/jinja.h"
#include "serve/engine.h"
#include "serve/http/access.h"
#include "serve/http/answer_parser.h"
#include "serve/http/api_error.h"
#include "serve/http/event_stream.h"
#include "serve/http/fields.h"
#include "serve/http/metrics.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn::serve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Parsed {
  std::string content, reasoning;
  std::vector<std::pair<std::string, std::string>> calls;
  int64_t malformed = 0;
  bool operator==(const Parsed&) const = default;
};

// The text in pieces of `size` bytes.
Parsed parsed(const std::string& text, size_t size, bool tools, bool in_reasoning = false) {
  AnswerParser parser(tools, in_reasoning);
  Parsed result;
  const auto take = [&](const std::vector<AnswerPiece>& pieces) {
    for (const AnswerPiece& piece : pieces) {
      if (piece.kind == AnswerPiece::Kind::content) result.content += piece.text;
      if (piece.kind == AnswerPiece::Kind::reasoning) result.reasoning += piece.text;
      if (piece.kind == AnswerPiece::Kind::tool_call) {
        result.calls.emplace_back(piece.name, piece.arguments);
      }
    }
  };
  for (size_t at = 0; at < text.size(); at += size) take(parser.push(text.substr(at, size)));
  take(parser.finish());
  result.malformed = parser.malformed_calls();
  return result;
}

void expect_parsed(const std::string& text, bool tools, const Parsed& wanted,
                   bool in_reasoning = false) {
  for (size_t size = 1; size <= text.size() + 1; ++size) {
    const Parsed got = parsed(text, size, tools, in_reasoning);
    EXPECT_EQ(got.content, wanted.content) << text << " in pieces of " << size;
    EXPECT_EQ(got.reasoning, wanted.reasoning) << text << " in pieces of " << size;
    EXPECT_EQ(got.calls, wanted.calls) << text << " in pieces of " << size;
    EXPECT_EQ(got.malformed, wanted.malformed) << text << " in pieces of " << size;
  }
}

TEST(AnswerParserTest, PlainTextStaysAsItIs) {
  expect_parsed(" Hello <b>you</b> \n", false, {" Hello <b>you</b> \n", "", {}, 0});
  expect_parsed("a <thin", false, {"a <thin", "", {}, 0});
  expect_parsed("", true, {});
}

TEST(AnswerParserTest, TakesReasoningOut) {
  expect_parsed("<think>\nhm, hm\n</think>\n\nYes.", false, {"Yes.", "hm, hm", {}, 0});
  expect_parsed("\n<think></think>Yes.", false, {"Yes.", "", {}, 0});
  // Opened by the template; never closed, because the text was too short.
  expect_parsed("so it is\n</think>\nYes", false, {"Yes", "so it is", {}, 0}, true);
  expect_parsed("so it", false, {"", "so it", {}, 0}, true);
}

TEST(AnswerParserTest, ReasoningIsAtTheBeginningOnly) {
  expect_parsed("Say <think>x</think>", false, {"Say <think>x</think>", "", {}, 0});
}

// Calls and space are no other text.
TEST(AnswerParserTest, ReasoningMayOpenBehindACall) {
  const std::string call = "<tool_call>{\"name\": \"f\"}</tool_call>";
  const std::vector<std::pair<std::string, std::string>> calls = {{"f", "{}"}};
  expect_parsed(call + "\n<think>x</think>\nYes", true, {"Yes", "x", calls, 0});
  expect_parsed("<think>x</think>" + call + "<think>y</think>Yes", true, {"Yes", "xy", calls, 0});
  expect_parsed("Well. " + call + "<think>x</think>", true,
                {"Well.<think>x</think>", "", calls, 0});
  // In a call it is text of that.
  expect_parsed("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"<think>\"}}</tool_call>b",
                true, {"b", "", {{"f", R"({"a":"<think>"})"}}, 0});
}

TEST(AnswerParserTest, TakesCallsOut) {
  const std::string call =
      "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"b\": 2, \"a\": [1]}}\n</tool_call>";
  expect_parsed(
      "Let me see.\n" + call + "\n" + call, true,
      {"Let me see.", "", {{"add", R"({"b":2,"a":[1]})"}, {"add", R"({"b":2,"a":[1]})"}}, 0});
  expect_parsed("<think>x</think>\n" + call, true, {"", "x", {{"add", R"({"b":2,"a":[1]})"}}, 0});
  // Without tools it is text.
  EXPECT_EQ(parsed(call, 3, false).content, call);
}

// What is given out of calls while they come: the pieces of each.
std::vector<std::string> call_parts(const std::string& text, size_t size, int64_t& malformed) {
  AnswerParser parser(true, false, true);
  std::vector<std::string> calls;
  std::vector<AnswerPiece> pieces;
  const auto take = [&](const std::vector<AnswerPiece>& more) {
    pieces.insert(pieces.end(), more.begin(), more.end());
  };
  for (size_t at = 0; at < text.size(); at += size) take(parser.push(text.substr(at, size)));
  take(parser.finish());
  for (const AnswerPiece& piece : pieces) {
    if (piece.kind != AnswerPiece::Kind::tool_call) continue;
    if (piece.begins) calls.push_back(piece.name + " ");
    calls.back() += piece.arguments;
    if (piece.ends) calls.back() += " end";
  }
  malformed = parser.malformed_calls();
  return calls;
}

TEST(AnswerParserTest, ArgumentsAreGivenOutWhileTheyCome) {
  const std::string text =
      "Well.\n<tool_call>\n{\"name\": \"a\\u0064d\", \"arguments\": {\"b\": 2, \"a\": [\"x \\\"}] "
      "\", "
      "{}]}}\n</tool_call>\n<tool_call>{\"arguments\": {\"c\": 1}, \"name\": \"late\"}</tool_call>"
      "<tool_call>{\"name\": \"cut\", \"arguments\": {\"d\": [1, ";
  for (size_t size = 1; size <= text.size() + 1; ++size) {
    int64_t malformed = 0;
    EXPECT_THAT(call_parts(text, size, malformed),
                ElementsAre("add {\"b\":2,\"a\":[\"x \\\"}] \",{}]} end", "late {\"c\":1} end",
                            "cut {\"d\":[1,"))
        << size;
    EXPECT_EQ(malformed, 1) << size;
    // What cannot be read although it is closed.
    EXPECT_THAT(call_parts("<tool_call>{\"name\": \"x\", \"arguments\": {\"a\"}}</tool_call>", size,
                           malformed),
                ElementsAre("x {\"a\"}"));
    EXPECT_EQ(malformed, 1) << size;
  }
  AnswerParser parser(true, false, true);
  parser.push("<tool_call>{\"name\": \"f\", \"arguments\": ");
  const std::vector<AnswerPiece> first = parser.push("{\"a\": \"on");
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].name, "f");
  EXPECT_EQ(first[0].arguments, "{\"a\":\"on");
  const std::vector<AnswerPiece> second = parser.push("e\"");
  ASSERT_EQ(second.size(), 1u);
  EXPECT_FALSE(second[0].begins || second[0].ends);
  EXPECT_EQ(second[0].arguments, "e\"");
}

TEST(AnswerParserTest, MalformedCallsAreNoContent) {
  expect_parsed("a<tool_call>{\"name\": </tool_call>", true, {"a", "", {}, 1});
  expect_parsed("a<tool_call>{\"name\": 3}</tool_call>b", true, {"ab", "", {}, 1});
  expect_parsed("a<tool_call>{\"name\": \"x\"", true, {"a", "", {}, 1});
}

std::string refusal(const std::function<void()>& act) {
  try {
    act();
  } catch (const ApiError& error) {
    return fmt::format("{} {} {}", error.status, error.code, error.message);
  }
  return "none";
}

TEST(FieldsTest, ChecksTypesAndRanges) {
  const Json body = parse_body(R"({"a": 3, "b": 1.5, "c": "x", "d": null, "e": true, "f": ["p"]})");
  Fields fields(body);
  EXPECT_EQ(fields.integer("a", 0, 0, 3), 3);
  EXPECT_EQ(fields.number("b", 0, 0, 2), 1.5);
  EXPECT_EQ(fields.text("c"), "x");
  EXPECT_EQ(fields.text("d", "default"), "default");
  EXPECT_THAT(fields.unread(), ElementsAre("e", "f"));
  EXPECT_TRUE(fields.boolean("e", false));
  EXPECT_THAT(fields.texts("f", 1), ElementsAre("p"));
  EXPECT_THAT(fields.texts("c", 1), ElementsAre("x"));
  EXPECT_EQ(refusal([&] { fields.integer("a", 0, 4, 9); }),
            "400 invalid_value a must be a whole number from 4 to 9, is 3");
  EXPECT_THAT(refusal([&] { fields.integer("b", 0, 0, 9); }), HasSubstr("is 1.5"));
  EXPECT_THAT(refusal([&] { fields.boolean("a", true); }), HasSubstr("true or false, is 3"));
  EXPECT_THAT(refusal([&] { fields.text("g"); }), HasSubstr("400 missing_field g"));
  EXPECT_THAT(refusal([&] { fields.texts("f", 0); }), HasSubstr("413 too_many_items"));
}

TEST(FieldsTest, RefusesWhatIsNoObject) {
  for (const std::string text : {"", "{", "[1]", "3", "{\"a\": 1} x", "{\"a\": \"\xff\"}"}) {
    EXPECT_THAT(refusal([&] { parse_body(text); }), HasSubstr("400 invalid_json")) << text;
  }
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_THAT(refusal([&] { parse_body("{\"a\": " + deep + "}"); }), HasSubstr("nested deeper"));
}

TEST(ApiErrorTest, SaysWhoseFaultItIs) {
  const auto status_of = [](auto&& error) {
    return as_api_error(std::make_exception_ptr(error)).status;
  };
  EXPECT_EQ(status_of(UsageError("stop", "empty")), 400);
  EXPECT_EQ(status_of(JinjaError("t", 1, "no", true)), 400);
  EXPECT_EQ(status_of(Error("x", "y")), 500);
  EXPECT_EQ(status_of(std::bad_alloc()), 500);
  const ApiError full = as_api_error(std::make_exception_ptr(QueueFull(4, 100, 2.5)));
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.retry_after_seconds, 2.5);
  EXPECT_EQ(openai_error(full)["error"]["waiting_requests"], 4);
  EXPECT_EQ(anthropic_error(full, "r")["error"]["type"], "rate_limit_error");
}

TEST(EventStreamTest, AnEventIsALineOfJson) {
  std::string bytes;
  EventStream out([&](std::string_view piece) {
    bytes += piece;
    return true;
  });
  out.data({{"text", "a\nb\xff"}}, "delta");
  out.comment();
  out.text("[DONE]");
  EXPECT_EQ(bytes,
            "event: delta\ndata: {\"text\":\"a\\nb\uFFFD\"}\n\n: waiting\n\ndata: [DONE]\n\n");
  EventStream nobody([](std::string_view) { return false; });
  EXPECT_THROW(nobody.comment(), ClientGone);
}

TEST(AccessTest, KeysComeFromAFileThatMayChange) {
  const testing_support::Folder folder;
  const std::filesystem::path file = folder / "keys";
  write_file(file, "# those of the team\nalpha\n\n beta \r\n");
  Keys keys(file);
  EXPECT_TRUE(keys.accept("alpha"));
  EXPECT_TRUE(keys.accept("beta"));
  for (const char* wrong : {"", "alph", "alphaa", "alphaalpha", "# those of the team", "gamma"}) {
    EXPECT_FALSE(keys.accept(wrong)) << wrong;
  }
  write_file(file, "gamma\n");
  std::filesystem::last_write_time(
      file, std::filesystem::file_time_type::clock::now() + std::chrono::seconds(5));
  EXPECT_FALSE(keys.accept("alpha"));
  EXPECT_TRUE(keys.accept("gamma"));
  std::filesystem::remove(file);
  EXPECT_TRUE(keys.accept("gamma"));
  EXPECT_TRUE(Keys("").accept("anything"));
  write_file(file, "\n");
  EXPECT_THROW(Keys{file}, Error);
}

TEST(AccessTest, FindsTheKey) {
  EXPECT_EQ(key_of("Bearer abc", ""), "abc");
  EXPECT_EQ(key_of("", "def"), "def");
  EXPECT_EQ(key_of("Basic abc", "def"), "def");
}

TEST(AccessTest, PagesOfOtherSitesMayNotAsk) {
  EXPECT_TRUE(origin_allowed("", "localhost:8080", ""));
  EXPECT_TRUE(origin_allowed("http://localhost:8080", "localhost:8080", ""));
  EXPECT_FALSE(origin_allowed("http://evil.example", "localhost:8080", ""));
  EXPECT_FALSE(origin_allowed("null", "localhost:8080", ""));
  EXPECT_TRUE(origin_allowed("http://mine.example", "localhost:8080", "http://mine.example"));
  EXPECT_FALSE(origin_allowed("http://evil.example", "localhost:8080", "http://mine.example"));
  EXPECT_TRUE(origin_allowed("http://evil.example", "localhost:8080", "*"));
  EXPECT_TRUE(host_allowed("localhost:8080", "127.0.0.1"));
  EXPECT_TRUE(host_allowed("[::1]:8080", "127.0.0.1"));
  EXPECT_FALSE(host_allowed("rebound.example:8080", "127.0.0.1"));
  EXPECT_FALSE(host_allowed("localhost.evil.example", "127.0.0.1"));
  EXPECT_FALSE(host_allowed("127.0.0.1.evil.example", "127.0.0.1"));
  EXPECT_TRUE(host_allowed("box.example", "0.0.0.0"));
}

TEST(MetricsTest, HistogramsAddUp) {
  Histogram histogram({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 7.0}) histogram.add(value);
  EXPECT_EQ(histogram.text("t", "m=\"a\""),
            "t_bucket{m=\"a\",le=\"1\"} 2\nt_bucket{m=\"a\",le=\"2\"} 3\n"
            "t_bucket{m=\"a\",le=\"+Inf\"} 4\nt_sum{m=\"a\"} 10\nt_count{m=\"a\"} 4\n");
}

}  // namespace
}  // namespace pronghorn::serve
