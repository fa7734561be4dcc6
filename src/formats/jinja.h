// Jinja: renders the chat templates of published models. The language of Jinja2 3.1 as
// transformers sets it up: sandboxed, immutable lists and dictionaries, trim_blocks,
// lstrip_blocks, break and continue, `generation` blocks, `raise_exception`, `strftime_now`, and
// its own `tojson`. Nothing is read from the outside: a template that includes others is refused
// where it does so.
//
// Source: the documentation of Jinja2 (templates) and the behaviour of transformers'
// apply_chat_template, against which scripts/check_chat_templates.py compares.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace pronghorn {

// What one rendering may use. Templates come from the internet: each of these ends it with an
// Error, long before memory or patience do.
struct JinjaLimits {
  int64_t steps = 50'000'000;        // expressions and statements run, characters compared
  int64_t bytes = int64_t{1} << 30;  // of all strings and lists made on the way, summed
  int64_t depth = 2000;              // of calls and expressions in one another
};

// One JSON document whose objects keep the order of their keys, as templates see it. Throws as
// parse_json does.
nlohmann::ordered_json parse_variables(std::string_view bytes, std::string_view where);

// A template that does not parse, an operation that fails in it, or what it refuses with
// raise_exception().
class JinjaError : public Error {
 public:
  JinjaError(std::string_view where, int line, std::string message, bool raised);
  // Without the place: for raise_exception() its text.
  const std::string& message() const { return message_; }
  // True if the template itself refused, through raise_exception().
  bool raised() const { return raised_; }
  int line() const { return line_; }

 private:
  std::string message_;
  int line_;
  bool raised_;
};

class JinjaTemplate {
 public:
  // source: UTF-8. where: named in errors. Throws JinjaError.
  JinjaTemplate(std::string_view source, std::string where);
  JinjaTemplate(JinjaTemplate&&) noexcept;
  JinjaTemplate& operator=(JinjaTemplate&&) noexcept;
  ~JinjaTemplate();

  // The text for the variables of `context`, an object whose keys keep their order. now: what
  // strftime_now() tells, in local time; empty: the time of the call. Throws JinjaError.
  std::string render(const nlohmann::ordered_json& context, std::optional<std::time_t> now = {},
                     const JinjaLimits& limits = {}) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace pronghorn
