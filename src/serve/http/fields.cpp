#include "serve/http/fields.h"

#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "formats/jinja.h"
#include "formats/json.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {

std::string shown(const Json& value) {
  constexpr size_t kShown = 60;  // characters of a value in a message
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), kShown);
}

namespace {

// Objects keep the order of their keys in lists that are searched for each new one.
constexpr int64_t kMostKeys = 4096;

// Whether one of the objects has more keys than that. Of text that is not JSON the answer says
// nothing, and the parser will.
bool has_many_keys(std::string_view bytes) {
  std::vector<int64_t> open;
  bool in_string = false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char c = bytes[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (open.size() > static_cast<size_t>(kMaxJsonDepth)) return false;
      open.push_back(0);
    } else if ((c == '}' || c == ']') && !open.empty()) {
      open.pop_back();
    } else if (c == ':' && !open.empty() && ++open.back() > kMostKeys) {
      return true;
    }
  }
  return false;
}

}  // namespace

Json parse_body(std::string_view bytes) {
  if (has_many_keys(bytes)) {
    throw ApiError(400, "invalid_json",
                   fmt::format("an object of the body has more than {} keys", kMostKeys));
  }
  try {
    Json body = parse_variables(bytes, "body");
    if (body.is_object()) return body;
  } catch (const Error& error) {
    throw ApiError(400, "invalid_json", error.what());
  }
  throw ApiError(400, "invalid_json", "the body must be a JSON object");
}

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object_.is_object()) refuse_field(path_, "must be an object, is " + shown(object_));
}

std::string Fields::path(const std::string& key) const {
  return path_.empty() ? key : path_ + "." + key;
}

const Json* Fields::find(const std::string& key) {
  known_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

int64_t Fields::integer(const std::string& key, int64_t fallback, int64_t least, int64_t most) {
  const Json* found = find(key);
  if (found == nullptr) return fallback;
  constexpr double kExact = 9007199254740992.0;  // 2^53: a float below it that is whole is exact
  std::optional<int64_t> value;
  if (found->is_number_unsigned()) {
    const auto bits = found->get<uint64_t>();
    if (bits <= uint64_t{INT64_MAX}) value = static_cast<int64_t>(bits);
  } else if (found->is_number_integer()) {
    value = found->get<int64_t>();
  } else if (found->is_number_float()) {
    const auto real = found->get<double>();
    if (std::floor(real) == real && std::abs(real) < kExact) value = static_cast<int64_t>(real);
  }
  if (!value || *value < least || *value > most) {
    refuse_field(path(key), fmt::format("must be a whole number from {} to {}, is {}", least, most,
                                        shown(*found)));
  }
  return *value;
}

double Fields::number(const std::string& key, double fallback, double least, double most) {
  const Json* found = find(key);
  if (found == nullptr) return fallback;
  const double value = found->is_number() ? found->get<double>() : NAN;
  if (!(value >= least && value <= most)) {
    refuse_field(path(key),
                 fmt::format("must be a number from {} to {}, is {}", least, most, shown(*found)));
  }
  return value;
}

bool Fields::boolean(const std::string& key, bool fallback) {
  const Json* found = find(key);
  if (found == nullptr) return fallback;
  if (!found->is_boolean()) refuse_field(path(key), "must be true or false, is " + shown(*found));
  return found->get<bool>();
}

std::string Fields::text(const std::string& key, std::optional<std::string> fallback) {
  const Json* found = find(key);
  if (found == nullptr && fallback) return *fallback;
  if (found == nullptr) throw ApiError(400, "missing_field", path(key) + " is missing", path(key));
  if (!found->is_string()) refuse_field(path(key), "must be a string, is " + shown(*found));
  return found->get<std::string>();
}

std::vector<std::string> Fields::texts(const std::string& key, size_t most) {
  const Json* found = find(key);
  if (found == nullptr) return {};
  if (found->is_string()) return {found->get<std::string>()};
  if (!found->is_array()) {
    refuse_field(path(key), "must be a string or a list of strings, is " + shown(*found));
  }
  if (found->size() > most) {
    ApiError error(413, "too_many_items",
                   fmt::format("{} has {} items, more than {}", path(key), found->size(), most),
                   path(key));
    error.details["limit"] = most;
    throw error;
  }
  std::vector<std::string> texts;
  for (const Json& item : *found) {
    if (!item.is_string()) refuse_field(path(key), "holds " + shown(item) + ", not a string");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

const Json& Fields::peek(const std::string& key) const {
  static const Json null;
  const auto found = object_.find(key);
  return found == object_.end() ? null : *found;
}

const Json& Fields::raw(const std::string& key) {
  known_.insert(key);
  return peek(key);
}

const Json& Fields::required(const std::string& key) {
  const Json* found = find(key);
  if (found == nullptr) throw ApiError(400, "missing_field", path(key) + " is missing", path(key));
  return *found;
}

std::vector<std::string> Fields::unread() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : object_.items()) {
    if (!known_.contains(key) && !value.is_null()) names.push_back(printable(key, kQuoteLength));
  }
  return names;
}

}  // namespace pronghorn::serve
