// Pre-tokenizers of a tokenizer.json: cutting a text into pieces that are encoded apart.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/component.h"
#include "formats/regex.h"
#include "formats/tokenizer.h"

namespace pronghorn {

// BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, FixedLength, Metaspace, Punctuation,
// Split, UnicodeScripts, Whitespace, WhitespaceSplit, and sequences of them.
class PreTokenizer {
 public:
  // Where a text is cut; pieces view it.
  using Pieces = std::vector<std::string_view>;

  PreTokenizer() = default;  // the text is one piece
  // description: "pre_tokenizer" of tokenizer.json; null for none. prefix_space: what replaces the
  // file's add_prefix_space of ByteLevel, if given. Throws Error.
  PreTokenizer(const nlohmann::json& description, const std::string& where,
               std::optional<bool> prefix_space = {});

  // How many steps there are, each applied to the pieces of the one before.
  size_t steps() const { return steps_.size(); }
  // From this step on what comes of a piece depends on the piece alone.
  size_t first_pure() const { return first_pure_; }

  // Cuts `piece`, which must be UTF-8 and not empty, by one step into pieces that are not empty.
  // They view it, or strings added to `store`. after: what the piece stands after.
  void apply(size_t step, std::string_view piece, After after, std::deque<std::string>& store,
             Pieces& pieces) const;

 private:
  enum class Kind : uint8_t {
    pattern,
    characters,
    words,
    fixed,
    scripts,
    metaspace,
    prefix,
    bytes
  };
  enum class Behavior : uint8_t { isolated, removed, contiguous, with_previous, with_next };
  enum class Prepend : uint8_t { never, first, always };
  struct Step {
    Kind kind = Kind::pattern;
    std::shared_ptr<const Regex> regex{};
    bool (*matches)(uint32_t) = nullptr;  // characters
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    size_t length = 0;                 // fixed: in characters
    std::string replacement{};         // metaspace
    Prepend prepend = Prepend::never;  // metaspace
  };
  struct Range {
    size_t begin, end;
    bool match;
  };

  static Behavior behavior_of(const Component& part, const char* fallback);
  void add(const Component& part, std::optional<bool> prefix_space);
  void add_pattern(const std::string& pattern, const std::string& where);
  void add_characters(bool (*matches)(uint32_t), Behavior behavior);
  static std::vector<Range> ranges_of(const Step& step, std::string_view text);
  static void cut(const Step& step, std::string_view text, Pieces& pieces);

  std::vector<Step> steps_;
  size_t first_pure_ = 0;
};

}  // namespace pronghorn
