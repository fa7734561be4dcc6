// JSON for configuration files: strict parsing, and typed access that leaves no key unread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pronghorn {

// Deepest nesting of objects and arrays that parse_json takes: far above any real file, far below
// what recursion over the result needs to exhaust a stack.
constexpr int kMaxJsonDepth = 64;

// Parses one JSON document. where: the file's name, for messages. Throws Error, with line and
// column, for malformed text, invalid UTF-8, a key that occurs twice in one object, nesting beyond
// kMaxJsonDepth, or more than `limit` bytes.
nlohmann::json parse_json(std::string_view bytes, std::string_view where,
                          size_t limit = size_t{1} << 28);

// Parses a config.json. Strict JSON but for one thing: the bare words Infinity, -Infinity and NaN,
// which Python writes (published Mamba-2 configurations have them), are read as strings of that
// name, which only the keys that know them accept. Throws Error.
nlohmann::json read_config_json(const std::filesystem::path& file);

// The name among `known` that is closest to `name` (edit distance, at most a third of its length
// or two), or an empty string.
std::string nearest_name(std::string_view name, const std::vector<std::string>& known);

// JSON text of a value for a message, shortened.
std::string shown_json(const nlohmann::json& value);

// One JSON object of a configuration. Each getter marks its key as known; finish() then refuses
// keys that nothing asked for, so that a misspelt option is an error and not a silent default.
// A getter without a fallback requires the key. A key whose value is null counts as absent.
// Every getter throws Error naming the file, the path of the key, the value and what is allowed.
class ConfigReader {
 public:
  // where: "config.json" or "config.json: blocks.a.mixer". Throws Error unless it is an object.
  ConfigReader(nlohmann::json object, std::string where);

  bool has(std::string_view key) const;

  int64_t integer(std::string_view key, std::optional<int64_t> fallback = {},
                  int64_t minimum = std::numeric_limits<int64_t>::min(),
                  int64_t maximum = std::numeric_limits<int64_t>::max());
  double number(std::string_view key, std::optional<double> fallback = {},
                double minimum = std::numeric_limits<double>::lowest(),
                double maximum = std::numeric_limits<double>::max());
  bool boolean(std::string_view key, std::optional<bool> fallback = {});
  std::string string(std::string_view key, std::optional<std::string> fallback = {});
  std::string one_of(std::string_view key, std::span<const std::string_view> choices,
                     std::optional<std::string> fallback = {});
  std::string one_of(std::string_view key, std::initializer_list<std::string_view> choices,
                     std::optional<std::string> fallback = {}) {
    return one_of(key, std::span(choices.begin(), choices.size()), std::move(fallback));
  }
  // The object under `key`; required.
  ConfigReader object(std::string_view key);
  // The value as it stands (null if absent), for what the typed getters do not cover.
  const nlohmann::json& raw(std::string_view key);
  // Marks a key as known without reading it: keys of other tools that are ignored on purpose.
  void ignore(std::string_view key);

  // Throws Error for the first key that no call above has named.
  void finish() const;

  // Keys present that no call above has named, in the order of the alphabet.
  std::vector<std::string> unread() const;
  // The value as it stands (null if absent), without marking the key.
  const nlohmann::json& peek(std::string_view key) const;
  // The known key that is closest to `key`, or an empty string.
  std::string nearest(std::string_view key) const;

  // Names of the keys present, in the order of the alphabet.
  std::vector<std::string> keys() const;
  // "config.json: blocks.a.mixer.heads", for messages about the value of a key. Where a file calls
  // it otherwise, with that name: "config.json: layers[0-3].mixer.heads (num_attention_heads)".
  std::string path(std::string_view key) const;
  const std::string& where() const { return where_; }

  // What a file calls a key with this value, for a configuration that was made from another one;
  // empty: nothing else is known.
  using FileNames = std::function<std::string(std::string_view key, const nlohmann::json& value)>;
  // Of this object and those in it.
  void set_file_names(FileNames names) { file_names_ = std::move(names); }
  // What the file calls a key of this object.
  std::string name_in_file(std::string_view key) const;
  // Another object of the same file, at a place of its own.
  ConfigReader part(nlohmann::json object, std::string where) const;

 private:
  // The value, or null if it is absent and a fallback exists; throws if it is required.
  const nlohmann::json* value(std::string_view key, bool required);
  // path() without the name that the file has.
  std::string place(std::string_view key) const;

  nlohmann::json object_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
  FileNames file_names_;
};

}  // namespace pronghorn
