// Filters of texts.
#include <algorithm>

#include "formats/jinja/filters.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

template <std::string (*change)(std::string_view)>
Value changed(Engine& engine, const Value& value, Given) {
  const Value soft = soft_text(engine, value);
  return like(engine, soft, change(soft.text()->bytes));
}

// Words begin after white space and - ( { [ <, as Jinja's own filter has it.
std::string title_words(std::string_view text) {
  std::string out;
  bool begins = true;
  for (const std::string_view character : characters(text)) {
    const bool breaks = std::string_view("-({[<").find(character) != std::string_view::npos ||
                        strip(character).empty();
    if (breaks) {
      out += character;
    } else {
      out += begins ? to_upper(character) : to_lower(character);
    }
    begins = breaks;
  }
  return out;
}

Value centered(Engine& engine, const Value& value, Given given) {
  Arguments arguments;
  arguments.list.push_back(given[0] == nullptr ? Value(int64_t{80}) : *given[0]);
  return through(engine, value, "center", std::move(arguments));
}

Value escape(Engine& engine, const Value& value, Given) {
  if (value.text() != nullptr && value.text()->safe) return value;
  return make_text(engine.budget, escape_html(to_text(engine.budget, value)), true);
}

Value force_escape(Engine& engine, const Value& value, Given) {
  return make_text(engine.budget, escape_html(to_text(engine.budget, value)), true);
}

Value safe(Engine& engine, const Value& value, Given) {
  return make_text(engine.budget, to_text(engine.budget, value), true);
}

Value indent(Engine& engine, const Value& value, Given given) {
  value.must_be_defined();
  if (value.text() == nullptr) {
    throw Failure(fmt::format("indent needs a string, not {}", type_name(value)));
  }
  std::string indention;
  if (given[0] != nullptr && given[0]->text() != nullptr) {
    indention = given[0]->text()->bytes;
  } else {
    const int64_t width = std::max<int64_t>(0, number(given[0], 4));
    engine.budget.bytes(static_cast<size_t>(width));
    indention.assign(static_cast<size_t>(width), ' ');
  }
  const std::string text = value.text()->bytes + "\n";
  std::string out = flag(given[1]) ? indention : "";
  bool begins = true;
  for (const std::string_view line : lines_of(text, false)) {
    if (!begins) out += '\n';
    if (!begins && (flag(given[2]) || !line.empty())) {
      engine.budget.bytes(indention.size());
      out += indention;
    }
    out += line;
    begins = false;
  }
  return like(engine, value, std::move(out));
}

Value replaced(Engine& engine, const Value& value, Given given) {
  const std::string text = to_text(engine.budget, value), from = to_text(engine.budget, *given[0]),
                    to = to_text(engine.budget, *given[1]);
  const int64_t most = number(given[2], -1);
  engine.budget.bytes(to.size() * static_cast<size_t>(count_of(text, from, most)));
  return make_text(engine.budget, replace(text, from, to, most));
}

Value text(Engine& engine, const Value& value, Given) { return soft_text(engine, value); }

Value trim(Engine& engine, const Value& value, Given given) {
  Arguments arguments;
  if (given[0] != nullptr) arguments.list.push_back(*given[0]);
  return through(engine, value, "strip", std::move(arguments));
}

Value truncate(Engine& engine, const Value& value, Given given) {
  value.must_be_defined();
  if (value.text() == nullptr) throw Failure("truncate needs a string");
  const int64_t length = number(given[0], 255), leeway = number(given[3], 5);
  const std::string end = given[2] == nullptr ? "..." : to_text(engine.budget, *given[2]);
  const int64_t kept = length - character_count(end);
  if (kept < 0)
    throw Failure(fmt::format("expected length >= {}, got {}", character_count(end), length));
  const std::vector<std::string_view> all = characters(value.text()->bytes);
  if (static_cast<int64_t>(all.size()) <= length + leeway) return value;
  std::string out;
  for (int64_t i = 0; i < kept; ++i) out += all[static_cast<size_t>(i)];
  if (!flag(given[1])) {
    if (const size_t space = out.rfind(' '); space != out.npos) out.resize(space);
  }
  return like(engine, value, out + end);
}

Value quoted_for_url(Engine& engine, const Value& value, Given) {
  const auto quote = [&](const Value& part, bool query) {
    std::string out;
    for (const char c : to_text(engine.budget, part)) {
      const auto byte = static_cast<unsigned char>(c);
      const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-' || c == '~' ||
                         (c == '/' && !query);
      out += plain ? std::string(1, c) : query && c == ' ' ? "+" : fmt::format("%{:02X}", byte);
    }
    return out;
  };
  if (value.dict() == nullptr) return make_text(engine.budget, quote(value, false));
  std::string out;
  for (const auto& [key, item] : value.dict()->items) {
    if (!out.empty()) out += '&';
    out += quote(key, true) + "=" + quote(item, true);
  }
  return make_text(engine.budget, std::move(out));
}

Value word_count(Engine& engine, const Value& value, Given) {
  const std::string text = to_text(engine.budget, value);
  int64_t count = 0;
  bool inside = false;
  for (const std::string_view character : characters(text)) {
    const bool word = every_character(character, is_word);
    count += word && !inside ? 1 : 0;
    inside = word;
  }
  return count;
}

Value json(Engine& engine, const Value& value, Given given) {
  JsonStyle style;
  style.ascii = flag(given[0]);
  style.sort_keys = flag(given[3]);
  if (given[1] != nullptr && !given[1]->is_none()) {
    if (const auto width = whole(*given[1])) {
      engine.budget.bytes(static_cast<size_t>(std::max<int64_t>(0, *width)));
      style.indent = std::string(static_cast<size_t>(std::max<int64_t>(0, *width)), ' ');
    } else {
      style.indent = to_text(engine.budget, *given[1]);
    }
    style.item_separator = ",";
  }
  if (given[2] != nullptr && !given[2]->is_none()) {
    const std::vector<Value> both = items_of(engine, *given[2]);
    if (both.size() != 2 || both[0].text() == nullptr || both[1].text() == nullptr) {
      throw Failure("separators must be two strings");
    }
    style.item_separator = both[0].text()->bytes;
    style.key_separator = both[1].text()->bytes;
  }
  return Value(to_json(engine.budget, value, style));
}

Value format(Engine& engine, const Value& value, Arguments& arguments) {
  const Value soft = soft_text(engine, value);
  if (!arguments.list.empty() && !arguments.named.empty()) {
    throw Failure("can't handle positional and keyword arguments at the same time");
  }
  Value values;
  if (arguments.named.empty()) {
    values = make_list(engine.budget, arguments.list, List::Type::tuple);
  } else {
    Dict dict;
    for (const auto& [name, item] : arguments.named) dict.set(engine.budget, Value(name), item);
    values = make_dict(engine.budget, std::move(dict));
  }
  return Value(format_percent(engine, soft.text()->bytes, values), soft.text()->safe);
}

constexpr Filter kFilters[] = {
    {"capitalize", "", 0, changed<capitalized>},
    {"center", "width", 0, centered},
    {"e", "", 0, escape},
    {"escape", "", 0, escape},
    {"forceescape", "", 0, force_escape},
    {"indent", "width first blank", 0, indent},
    {"lower", "", 0, changed<to_lower>},
    {"replace", "old new count", 2, replaced},
    {"safe", "", 0, safe},
    {"string", "", 0, text},
    {"title", "", 0, changed<title_words>},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, json},
    {"trim", "chars", 0, trim},
    {"truncate", "length killwords end leeway", 0, truncate},
    {"upper", "", 0, changed<to_upper>},
    {"urlencode", "", 0, quoted_for_url},
    {"wordcount", "", 0, word_count},
};

constexpr FreeFilter kFreeFilters[] = {
    {"format", format},
};

}  // namespace

std::span<const Filter> text_filters() { return kFilters; }
std::span<const FreeFilter> free_text_filters() { return kFreeFilters; }

}  // namespace pronghorn::jinja
