// Chat templates: every construct against transformers' renderer, and what must be refused.
#include "formats/jinja.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"

namespace pronghorn {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

std::string render(std::string_view source, const ordered_json& context = ordered_json::object(),
                   const JinjaLimits& limits = {}) {
  return JinjaTemplate(source, "test").render(context, {}, limits);
}

std::string message_of(std::string_view source, const JinjaLimits& limits = {}) {
  try {
    return "text: " + render(source, ordered_json::object(), limits);
  } catch (const JinjaError& error) {
    return error.what();
  }
}

// scripts/make_template_goldens.py wrote what the reference makes of each.
TEST(Jinja, RendersEveryConstructAsTheReferenceDoes) {
  ::setenv("TZ", "UTC", 1);
  const ordered_json golden = ordered_json::parse(
      read_file(std::string(PRONGHORN_SOURCE_DIR) + "/tests/formats/golden/templates.json"));
  ASSERT_GT(golden.at("rows").size(), 450u);
  for (const ordered_json& row : golden.at("rows")) {
    const auto source = row.at("template").get<std::string>();
    std::string text, error;
    bool raised = false;
    try {
      text = JinjaTemplate(source, "test")
                 .render(golden.at("context"), golden.at("now").get<std::time_t>());
    } catch (const JinjaError& failure) {
      error = failure.message();
      raised = failure.raised();
    }
    if (row.contains("text")) {
      EXPECT_EQ(error, "") << source;
      EXPECT_EQ(text, row.at("text").get<std::string>()) << source;
      continue;
    }
    const auto kind = row.at("error").get<std::string>();
    EXPECT_NE(error, "") << source << " gives " << text;
    EXPECT_EQ(raised, kind == "TemplateError") << source;
    // Where Jinja2 itself chooses the words; those of Python and of its parser differ now and then.
    if (kind == "TemplateError" || kind == "UndefinedError" || kind == "SecurityError") {
      EXPECT_EQ(error, row.at("message").get<std::string>()) << source;
    }
  }
}

TEST(Jinja, KeysKeepTheirOrder) {
  const ordered_json context = ordered_json::parse(R"({"o": {"z": 1, "a": {"y": 2, "b": 3}}})");
  EXPECT_EQ(render("{{ o | tojson }}", context), R"({"z": 1, "a": {"y": 2, "b": 3}})");
  EXPECT_EQ(render("{% for k in o %}{{ k }}{% endfor %}", context), "za");
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_THAT(message_of("a\nb\n{{ missing.x }}"),
              HasSubstr("test: line 3: 'missing' is undefined"));
  EXPECT_THAT(message_of("a\n{% if %}"), HasSubstr("line 2: "));
  EXPECT_THAT(message_of("{% macro m() %}\n\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}"),
              HasSubstr("line 3: division by zero"));
  EXPECT_THAT(message_of("\n{{ raise_exception('no system message') }}"),
              HasSubstr("line 2: no system message"));
}

TEST(Jinja, WhatIsNotUtf8IsRefused) {
  EXPECT_THAT(message_of("ok \xff"), HasSubstr("not UTF-8 at byte 3"));
}

TEST(Jinja, LargeNumbersOfVariablesAreRefusedWithWords) {
  const ordered_json context = ordered_json::parse(R"({"n": 18446744073709551615})");
  EXPECT_THROW(render("{{ n }}", context), JinjaError);
  EXPECT_EQ(render("unused", context), "unused");
}

// Each would run for ever, or take all memory, or leave the stack.
TEST(Jinja, HasABound) {
  const JinjaLimits small{200'000, 64 << 20, 500};
  const std::pair<const char*, const char*> cases[] = {
      {"{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}", "steps"},
      {"{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% "
       "endfor %}",
       "bytes"},
      {"{{ 'x' * 1000000000 }}", "bytes"},
      {"{{ [1] * 1000000000 }}", "bytes"},
      {"{{ 'x'.center(1000000000) }}", "bytes"},
      {"{{ 'x'.zfill(1000000000) }}", "bytes"},
      {"{{ 'x' | indent(1000000000) }}", "bytes"},
      {"{{ [1] | tojson(indent=1000000000) }}", "bytes"},
      {"{{ [1] | batch(1000000000, 0) | list }}", "bytes"},
      {"{{ '%999999999d' % 1 }}", "too wide"},
      {"{{ '{:999999999}'.format(1) }}", "too wide"},
      {"{% set s = 'a' * 9999 %}{{ s.replace('', s) }}", "bytes"},
      {"{% set s = 'a' * 9999 %}{{ s | replace('a', s) }}", "bytes"},
      {"{% set s = 'a' * 9999 %}{{ s.join(s) }}", "bytes"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deep"},
      {"{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "too deep"},
      {"{% set ns = namespace(l=[]) %}{% for a in range(9999) %}{% set ns.l = [ns.l] %}{% endfor "
       "%}",
       "too deep"},
      {"{% set ns = namespace(l=1) %}{% for a in range(9999) %}{% set ns.l = joiner(ns.l) %}{% "
       "endfor %}",
       "too deep"},
      {"{% set ns = namespace(l=1) %}{% for a in range(9999) %}{% set ns.l = [ns.l].count %}{% "
       "endfor %}",
       "too deep"},
      {"{% set ns = namespace(l=[1]) %}{% for a in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% "
       "endfor %}"
       "{{ ns.l | tojson }}",
       "steps"},
      {"{% set ns = namespace(l=[1], m=[1]) %}{% for a in range(99) %}{% set ns.l = [ns.l, ns.l] %}"
       "{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
       "steps"},
      {"{{ range(100001) }}", "Range too big"},
      {"{{ 9223372036854775807 + 1 }}", "64 bits"},
      {"{{ 10 ** 100 }}", "64 bits"},
  };
  for (const auto& [source, words] : cases) {
    EXPECT_THAT(message_of(source, small), HasSubstr(words)) << source;
  }
}

TEST(Jinja, DeepSourceIsRefused) {
  const auto repeated = [](std::string_view text, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text;
    return out;
  };
  for (const std::string& source :
       {"{{ " + repeated("(", 10000) + "1" + repeated(")", 10000) + " }}",
        "{{ " + repeated("[", 10000) + repeated("]", 10000) + " }}",
        "{{ " + repeated("{1:", 10000) + "1" + repeated("}", 10000) + " }}",
        "{% set " + repeated("(", 10000) + "x" + repeated(")", 10000) + " = 1 %}",
        "{{ " + repeated("-", 10000) + "1 }}", "{{ " + repeated("not ", 10000) + "1 }}",
        "{{ x" + repeated(".a", 10000) + " }}", "{{ 1" + repeated("+1", 10000) + " }}",
        "{{ 1" + repeated("|abs", 10000) + " }}", "{{ f" + repeated("()", 10000) + " }}",
        "{{ x" + repeated(" if y else x", 10000) + " }}", repeated("{% if x %}", 10000)}) {
    EXPECT_THAT(message_of(source), HasSubstr("too deep")) << source.substr(0, 40);
  }
}

// Values that refer to themselves are no leak; the sanitizers see it.
TEST(Jinja, LetsGoOfWhatRefersToItself) {
  EXPECT_EQ(render("{% set ns = namespace() %}{% set ns.me = ns %}{% set ns.list = [ns] %}x"), "x");
  EXPECT_EQ(render("{% macro m() %}{% endmacro %}{% set ns = namespace(m=m) %}{% set k = m %}x"),
            "x");
  EXPECT_EQ(
      render("{% set ns = namespace() %}{% for i in [1, 2] %}{% set ns.loop = loop %}{% endfor %}"
             "{{ ns.loop.index }}"),
      "2");
  EXPECT_EQ(render("{% set c = cycler(1) %}{% set ns = namespace(n=c.next) %}{{ ns.n() }}"), "1");
}

}  // namespace
}  // namespace pronghorn
