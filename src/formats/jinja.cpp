#include "formats/jinja.h"

#include <utility>

#include "base/quote.h"
#include "formats/jinja/interpreter.h"
#include "formats/json.h"

namespace pronghorn {

struct JinjaTemplate::Parts {
  std::string where;
  jinja::Symbols symbols;
  jinja::Block block;
};

nlohmann::ordered_json parse_variables(std::string_view bytes, std::string_view where) {
  parse_json(bytes, where);  // refuses what must be refused
  return nlohmann::ordered_json::parse(bytes);
}

// Characters of a template's own words that a message shows.
constexpr size_t kMostShown = 300;

JinjaError::JinjaError(std::string_view where, int line, std::string message, bool raised)
    : Error(where, fmt::format("line {}: {}", line, printable(message, kMostShown))),
      message_(std::move(message)),
      line_(line),
      raised_(raised) {}

JinjaTemplate::JinjaTemplate(std::string_view source, std::string where)
    : parts_(std::make_unique<Parts>()) {
  parts_->where = std::move(where);
  constexpr size_t kMostBytes = size_t{4} << 20;
  require(source.size() <= kMostBytes, parts_->where,
          "a template of {} bytes, more than the {} allowed here", source.size(), kMostBytes);
  try {
    parts_->block = jinja::parse(jinja::tokenize(source), parts_->symbols);
  } catch (const jinja::SyntaxFailure& failure) {
    throw JinjaError(parts_->where, failure.line, failure.what(), false);
  }
}

JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate& JinjaTemplate::operator=(JinjaTemplate&&) noexcept = default;
JinjaTemplate::~JinjaTemplate() = default;

std::string JinjaTemplate::render(const nlohmann::ordered_json& context,
                                  std::optional<std::time_t> now, const JinjaLimits& limits) const {
  jinja::Interpreter interpreter(parts_->symbols, limits, now.value_or(std::time(nullptr)));
  try {
    return interpreter.run(parts_->block, context);
  } catch (const jinja::Failure& failure) {
    throw JinjaError(parts_->where, interpreter.line(), failure.what(), failure.raised);
  }
}

}  // namespace pronghorn
