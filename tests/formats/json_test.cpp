// Strict JSON, and configuration objects that leave no key unread.
#include "formats/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::error_of;

ConfigReader reader(std::string_view text) {
  return ConfigReader(parse_json(text, "config.json"), "config.json");
}

TEST(ParseJson, NamesLineAndColumn) {
  EXPECT_EQ(parse_json(R"({"a": [1, 2.5, "x"]})", "f")["a"][2], "x");
  EXPECT_THAT(error_of([] { parse_json("{\n  \"a\": ?\n}", "f.json"); }),
              AllOf(HasSubstr("f.json"), HasSubstr("line 2, column 8")));
  EXPECT_THAT(error_of([] { parse_json("", "f.json"); }), HasSubstr("line 1"));
  EXPECT_THAT(error_of([] { parse_json("{} x", "f.json"); }), HasSubstr("column 4"));
  EXPECT_THAT(error_of([] { parse_json("\"\xFF\"", "f.json"); }), HasSubstr("f.json"));
  EXPECT_THAT(error_of([] { parse_json("1e999", "f.json"); }), HasSubstr("f.json"));
}

TEST(ParseJson, RefusesDepthSizeAndDuplicates) {
  const std::string deep(10'000'000, '[');
  EXPECT_THAT(error_of([&] { parse_json(deep, "f"); }), HasSubstr("nested"));
  std::string fits(kMaxJsonDepth, '[');
  fits.append(kMaxJsonDepth, ']');
  EXPECT_NO_THROW(parse_json(fits, "f"));
  EXPECT_THAT(error_of([&] { parse_json("[" + fits + "]", "f"); }), HasSubstr("column 65"));
  // Brackets in strings are text.
  EXPECT_NO_THROW(parse_json("\"\\\"" + std::string(100, '[') + "\"", "f"));
  EXPECT_THAT(error_of([] { parse_json("[1, 2]", "f", 3); }), HasSubstr("6 bytes"));
  EXPECT_THAT(error_of([] { parse_json(R"({"a": {"b": 1, "b": 2}})", "f"); }),
              HasSubstr("\"b\" occurs twice"));
  EXPECT_NO_THROW(parse_json(R"({"a": {"b": 1}, "c": {"b": 2}})", "f"));
}

TEST(ConfigReader, ReadsTypedValues) {
  auto config = reader(R"({"i": 7, "whole": 1e4, "n": 0.5, "b": true, "s": "x", "none": null,
                           "o": {"deep": 3}})");
  EXPECT_EQ(config.integer("i"), 7);
  EXPECT_EQ(config.integer("whole"), 10000);
  EXPECT_EQ(config.integer("absent", 3), 3);
  EXPECT_EQ(config.integer("none", 4), 4);
  EXPECT_EQ(config.number("n"), 0.5);
  EXPECT_EQ(config.number("i"), 7.0);
  EXPECT_TRUE(config.boolean("b"));
  EXPECT_EQ(config.one_of("s", {"x", "y"}), "x");
  EXPECT_EQ(config.string("absent", "z"), "z");
  EXPECT_FALSE(config.has("none"));
  EXPECT_TRUE(config.raw("absent").is_null());
  auto inner = config.object("o");
  EXPECT_EQ(inner.integer("deep"), 3);
  EXPECT_EQ(inner.where(), "config.json: o");
  inner.finish();
  config.finish();
}

TEST(ConfigReader, ErrorsNamePathValueAndRange) {
  auto config =
      reader(R"({"a": {"b": {"heads": 0, "x": "y", "f": 1.5, "big": 99999999999999999999}}})");
  auto inner = config.object("a").object("b");
  EXPECT_EQ(error_of([&] { inner.integer("heads", {}, 1, 64); }),
            "config.json: a.b.heads: must be an integer from 1 to 64, is 0");
  EXPECT_THAT(error_of([&] { inner.integer("x", 1, 1); }),
              AllOf(HasSubstr("a.b.x"), HasSubstr("at least 1"), HasSubstr("\"y\"")));
  EXPECT_THAT(error_of([&] { inner.integer("f"); }), HasSubstr("1.5"));
  EXPECT_THAT(error_of([&] { inner.integer("big"); }), HasSubstr("an integer"));
  EXPECT_THAT(error_of([&] { inner.number("f", {}, 0, 1); }), HasSubstr("from 0 to 1"));
  EXPECT_THAT(error_of([&] { inner.number("x"); }), HasSubstr("a number"));
  EXPECT_THAT(error_of([&] { inner.boolean("f"); }), HasSubstr("true or false"));
  EXPECT_THAT(error_of([&] { inner.string("f"); }), HasSubstr("a string"));
  EXPECT_THAT(error_of([&] {
                inner.one_of("x", {"relu", "silu"});
              }),
              AllOf(HasSubstr("relu, silu"), HasSubstr("\"y\"")));
  EXPECT_THAT(error_of([&] { inner.integer("absent"); }), HasSubstr("a.b.absent: missing"));
  EXPECT_THAT(error_of([&] { inner.object("f"); }), HasSubstr("must be an object"));
}

TEST(ConfigReader, FinishNamesUnknownKeyAndNearest) {
  auto config = reader(R"({"kvheads": 2})");
  config.integer("kv_heads", 1);
  config.integer("heads", 1);
  EXPECT_EQ(error_of([&] { config.finish(); }),
            "config.json: unknown key 'kvheads' (did you mean 'kv_heads'?)");
  auto other = reader(R"({"zzz": 2})");
  other.integer("heads", 1);
  EXPECT_EQ(error_of([&] { other.finish(); }), "config.json: unknown key 'zzz'");
  auto ignored = reader(R"({"zzz": 2})");
  ignored.ignore("zzz");
  ignored.finish();
}

}  // namespace
}  // namespace pronghorn
