#include "formats/json.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/edit_distance.h"
#include "base/error.h"
#include "base/files.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr size_t kShownValue = 60;  // characters of a value in a message

std::string line_and_column(std::string_view bytes, size_t offset) {
  const auto before = bytes.substr(0, std::min(offset, bytes.size()));
  const size_t line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
  const size_t newline = before.rfind('\n');
  const size_t column = newline == before.npos ? before.size() : before.size() - newline - 1;
  return fmt::format("line {}, column {}", line, std::max<size_t>(column, 1));
}

// Offset of the bracket that nests too deep, or npos. Brackets inside strings do not count.
size_t find_too_deep(std::string_view bytes) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char c = bytes[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) return i;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return bytes.npos;
}

// Puts quotes around the bare words that Python writes for numbers that JSON cannot spell.
std::string quote_bare_numbers(std::string_view text) {
  constexpr std::string_view kWords[] = {"-Infinity", "Infinity", "NaN"};
  std::string quoted;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!in_string) {
      const auto* word = std::find_if(std::begin(kWords), std::end(kWords), [&](auto candidate) {
        return text.substr(i).starts_with(candidate);
      });
      if (word != std::end(kWords)) {
        quoted.append(1, '"').append(*word).append(1, '"');
        i += word->size() - 1;
        continue;
      }
    }
    quoted += text[i];
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\' && i + 1 < text.size()) quoted += text[++i];
  }
  return quoted;
}

// Models are large files, of which a configuration's limit would say nothing useful.
void refuse_models(const std::filesystem::path& file) {
  const MappedFile mapped(file);
  const auto bytes = mapped.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  constexpr size_t kLength = 8;  // of the header of a safetensors file
  std::string_view what;
  if (text.starts_with("GGUF")) what = "a model in GGUF";
  if (text.starts_with("PK\x03\x04")) what = "an archive, perhaps of PyTorch";
  if (text.size() > kLength && text[kLength] == '{' && !text.starts_with('{')) {
    what = "weights in safetensors";
  }
  if (what.empty()) return;
  throw Error(file.string(), fmt::format("is {}, where a configuration is wanted", what),
              "name a config.json, or the directory of a checkpoint");
}

}  // namespace

std::string shown_json(const json& value) {
  return printable(value.dump(-1, ' ', false, json::error_handler_t::replace), kShownValue);
}

json parse_json(std::string_view bytes, std::string_view where, size_t limit) {
  require(bytes.size() <= limit, where, "{} bytes of JSON, more than the {} allowed here",
          bytes.size(), limit);
  if (const size_t deep = find_too_deep(bytes); deep != bytes.npos) {
    throw Error(where, fmt::format("JSON nested deeper than {} levels at {}", kMaxJsonDepth,
                                   line_and_column(bytes, deep + 1)));
  }
  std::vector<std::set<std::string>> seen;  // keys of each object that is open
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) seen.emplace_back();
    if (event == json::parse_event_t::object_end) seen.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      require(seen.back().insert(key).second, where, "the key {} occurs twice in one object",
              shown_json(parsed));
    }
    return true;
  };
  try {
    return json::parse(bytes.begin(), bytes.end(), watch);
  } catch (const json::parse_error& error) {
    std::string_view problem = error.what();
    if (const size_t colon = problem.find(": "); colon != problem.npos) {
      problem.remove_prefix(colon + 2);
    }
    throw Error(where, fmt::format("not JSON at {}: {}", line_and_column(bytes, error.byte),
                                   printable(problem, 2 * kQuoteLength)));
  } catch (const json::exception& error) {
    throw Error(where, fmt::format("not usable JSON: {}", error.what()));
  }
}

json read_config_json(const std::filesystem::path& file) {
  refuse_models(file);
  return parse_json(quote_bare_numbers(read_file(file, kMaxConfigBytes)), file.string());
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& known) {
  constexpr size_t kLongestName = 100;  // keeps hostile keys cheap
  if (name.size() > kLongestName) return {};
  const size_t tolerance = std::max<size_t>(2, name.size() / 3);
  std::string best;
  size_t best_distance = tolerance + 1;
  for (const std::string& candidate : known) {
    if (candidate.size() > kLongestName) continue;
    const size_t distance = edit_distance(name, std::string_view(candidate));
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

ConfigReader::ConfigReader(json object, std::string where)
    : object_(std::move(object)), where_(std::move(where)) {
  require(object_.is_object(), where_, "must be an object, is {}", shown_json(object_));
}

std::string ConfigReader::path(std::string_view key) const {
  const std::string name = name_in_file(key);
  return name == key ? place(key)
                     : fmt::format("{} ({})", place(key), printable(name, kQuoteLength));
}

std::string ConfigReader::name_in_file(std::string_view key) const {
  std::string name = file_names_ ? file_names_(key, peek(key)) : std::string();
  return name.empty() ? std::string(key) : name;
}

ConfigReader ConfigReader::part(json object, std::string where) const {
  ConfigReader reader(std::move(object), std::move(where));
  reader.file_names_ = file_names_;
  return reader;
}

std::string ConfigReader::place(std::string_view key) const {
  return fmt::format("{}{}{}", where_, where_.find(": ") == where_.npos ? ": " : ".",
                     printable(key, kQuoteLength));
}

const json* ConfigReader::value(std::string_view key, bool required) {
  known_.emplace(key);
  const auto found = object_.find(std::string(key));
  if (found != object_.end() && !found->is_null()) return &*found;
  if (required) throw Error(path(key), "missing", "add this key");
  return nullptr;
}

bool ConfigReader::has(std::string_view key) const {
  const auto found = object_.find(std::string(key));
  return found != object_.end() && !found->is_null();
}

namespace {

// " from 1 to 8", or the one bound there is, or nothing.
template <typename T>
std::string range_text(T minimum, T maximum) {
  const bool bounded_below = minimum != std::numeric_limits<T>::lowest();
  const bool bounded_above = maximum != std::numeric_limits<T>::max();
  if (bounded_below && bounded_above) return fmt::format(" from {} to {}", minimum, maximum);
  if (bounded_below) return fmt::format(" of at least {}", minimum);
  if (bounded_above) return fmt::format(" of at most {}", maximum);
  return {};
}

}  // namespace

int64_t ConfigReader::integer(std::string_view key, std::optional<int64_t> fallback,
                              int64_t minimum, int64_t maximum) {
  const json* found = value(key, !fallback.has_value());
  if (found == nullptr) return *fallback;
  constexpr double kExact = 9007199254740992.0;  // 2^53: a float below it that is whole is exact
  std::optional<int64_t> result;
  if (found->is_number_unsigned()) {
    const auto bits = found->get<uint64_t>();
    if (bits <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      result = static_cast<int64_t>(bits);
    }
  } else if (found->is_number_integer()) {
    result = found->get<int64_t>();
  } else if (found->is_number_float()) {
    const auto real = found->get<double>();
    if (std::floor(real) == real && std::abs(real) < kExact) result = static_cast<int64_t>(real);
  }
  if (!result || *result < minimum || *result > maximum) {
    throw Error(path(key), fmt::format("must be an integer{}, is {}", range_text(minimum, maximum),
                                       shown_json(*found)));
  }
  return *result;
}

double ConfigReader::number(std::string_view key, std::optional<double> fallback, double minimum,
                            double maximum) {
  const json* found = value(key, !fallback.has_value());
  if (found == nullptr) return *fallback;
  const double result = found->is_number() ? found->get<double>() : 0;
  if (!found->is_number() || !(result >= minimum && result <= maximum)) {
    throw Error(path(key), fmt::format("must be a number{}, is {}", range_text(minimum, maximum),
                                       shown_json(*found)));
  }
  return result;
}

bool ConfigReader::boolean(std::string_view key, std::optional<bool> fallback) {
  const json* found = value(key, !fallback.has_value());
  if (found == nullptr) return *fallback;
  require(found->is_boolean(), path(key), "must be true or false, is {}", shown_json(*found));
  return found->get<bool>();
}

std::string ConfigReader::string(std::string_view key, std::optional<std::string> fallback) {
  const json* found = value(key, !fallback.has_value());
  if (found == nullptr) return *fallback;
  require(found->is_string(), path(key), "must be a string, is {}", shown_json(*found));
  return found->get<std::string>();
}

std::string ConfigReader::one_of(std::string_view key, std::span<const std::string_view> choices,
                                 std::optional<std::string> fallback) {
  const json* found = value(key, !fallback.has_value());
  if (found == nullptr) return *fallback;
  if (found->is_string()) {
    const auto& text = found->get_ref<const std::string&>();
    if (std::find(choices.begin(), choices.end(), text) != choices.end()) return text;
  }
  throw Error(path(key), fmt::format("must be one of {}, is {}", fmt::join(choices, ", "),
                                     shown_json(*found)));
}

ConfigReader ConfigReader::object(std::string_view key) {
  return part(*value(key, true), place(key));
}

const json& ConfigReader::raw(std::string_view key) {
  known_.emplace(key);
  return peek(key);
}

const json& ConfigReader::peek(std::string_view key) const {
  static const json null;
  const auto found = object_.find(std::string(key));
  return found == object_.end() ? null : *found;
}

void ConfigReader::ignore(std::string_view key) { known_.emplace(key); }

std::vector<std::string> ConfigReader::keys() const {
  std::vector<std::string> names;
  for (const auto& item : object_.items()) names.push_back(item.key());
  return names;
}

std::vector<std::string> ConfigReader::unread() const {
  std::vector<std::string> names = keys();
  std::erase_if(names, [&](const std::string& key) { return known_.contains(key); });
  return names;
}

std::string ConfigReader::nearest(std::string_view key) const {
  return nearest_name(key, {known_.begin(), known_.end()});
}

void ConfigReader::finish() const {
  const std::vector<std::string> left = unread();
  if (left.empty()) return;
  const std::string near = nearest(left.front());
  throw Error(where_, fmt::format("unknown key {}{}", quote(left.front()),
                                  near.empty() ? "" : fmt::format(" (did you mean '{}'?)", near)));
}

}  // namespace pronghorn
