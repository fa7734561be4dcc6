// The fields of a request: typed, with limits, and with a list of those that nobody read.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn::serve {

using Json = nlohmann::ordered_json;

// Parses the body of a request. Throws ApiError unless it is one JSON object, nested no deeper than
// kMaxJsonDepth.
Json parse_body(std::string_view bytes);

// One JSON object of a request. A field that is null counts as absent. Every getter throws ApiError
// naming the field, the value and what is allowed.
class Fields {
 public:
  // path: of the object, "" for the body itself. The object must outlive it. Throws ApiError unless
  // it is one.
  explicit Fields(const Json& object, std::string path = {});

  bool has(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t fallback, int64_t least, int64_t most);
  double number(const std::string& key, double fallback, double least, double most);
  bool boolean(const std::string& key, bool fallback);
  std::string text(const std::string& key, std::optional<std::string> fallback = {});
  // A string or a list of at most `most` strings.
  std::vector<std::string> texts(const std::string& key, size_t most);
  // The value as it stands; null if it is absent.
  const Json& raw(const std::string& key);
  // The same, which must be there.
  const Json& required(const std::string& key);
  // The value as it stands, which stays unread.
  const Json& peek(const std::string& key) const;

  // "messages[2].content"
  std::string path(const std::string& key) const;
  // Fields present that no getter has read, in the order of the request.
  std::vector<std::string> unread() const;

 private:
  const Json* find(const std::string& key);

  const Json& object_;
  std::string path_;
  std::set<std::string> known_;
};

// The JSON text of a value for a message, shortened.
std::string shown(const Json& value);

}  // namespace pronghorn::serve
