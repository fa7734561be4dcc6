#include "formats/hf_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "base/error.h"
#include "formats/bpe.h"
#include "formats/text_steps.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581
constexpr size_t kMaxAdded = 65536;                      // ids beyond the vocabulary

const json& member_or_null(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

// The steps of a component that may be a sequence.
std::vector<const json*> flatten(const json& component, const char* list_key) {
  if (component.is_null()) return {};
  const json& list = member_or_null(component, list_key);
  if (!list.is_array()) return {&component};
  std::vector<const json*> steps;
  for (const json& step : list) steps.push_back(&step);
  return steps;
}

bool has_type(const json& step, std::string_view type) {
  return member_or_null(step, "type") == type;
}

class HfTokenizer final : public Tokenizer {
 public:
  HfTokenizer(const json& parsed, const json& config, const std::string& where, Files files)
      : Tokenizer(std::move(files)),
        where_(where),
        normalizer_(member_or_null(parsed, "normalizer"), where),
        pre_tokenizer_(member_or_null(parsed, "pre_tokenizer"), where),
        model_(member_or_null(parsed, "model"), pre_tokenizer_.byte_level(), where) {
    read_decoder(member_or_null(parsed, "decoder"));
    read_tokens(parsed);
    for (const json* step : flatten(member_or_null(parsed, "post_processor"), "processors")) {
      read_post_processor(*step);
    }
    bos_ = named_token(config, "bos_token");
    eos_ = named_token(config, "eos_token");
    if (!bos_ && !prefix_.empty()) bos_ = prefix_.front();
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    const size_t invalid = find_invalid_utf8(text);
    require(invalid == text.npos, "text", "not UTF-8 at byte {}", invalid);
    std::vector<int32_t> ids;
    if (options.add_special) ids = prefix_;
    WordCache cache;
    for (const TextPart& part : plain_added_.split(text, options.parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const bool begins = part.text.data() == text.data();
      const After after = begins ? options.after : After::added_token;
      if (normalizer_.empty()) {
        encode_normalized(part.text, options.parse_special, after, cache, ids);
      } else {
        // Kept until the end: the cache views it.
        encode_normalized(
            cache.store.emplace_back(normalizer_.apply(part.text, after != After::text)),
            options.parse_special, after, cache, ids);
      }
    }
    if (options.add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  std::string token_bytes(int32_t id, bool special) const override {
    require(id >= 0 && id < vocab_size(), where_, "id {} is not in the vocabulary of {}", id,
            vocab_size());
    const Token& token = tokens_[static_cast<size_t>(id)];
    return token.special && !special ? std::string() : token.text;
  }

  bool adds_space() const override { return adds_space_; }
  bool is_special(int32_t id) const override {
    return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].special;
  }
  bool is_added(int32_t id) const override {
    return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].added;
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos() const override { return bos_; }
  std::optional<int32_t> eos() const override { return eos_; }

 private:
  struct Token {
    std::string text;
    bool special = false, added = false;
  };

  // The ids of words that one call has met: text repeats its words. Keys view the text or `store`.
  struct WordCache {
    struct Range {
      size_t begin, end;
    };
    std::unordered_map<std::string_view, Range> words;
    std::vector<int32_t> ids;
    std::deque<std::string> store;
  };

  void encode_normalized(std::string_view text, bool special, After after, WordCache& cache,
                         std::vector<int32_t>& ids) const {
    for (const TextPart& part : normalized_added_.split(text, special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const After behind = part.text.data() == text.data() ? after : After::added_token;
      for (const std::string_view piece : pre_tokenizer_.split(part.text, behind, cache.store)) {
        encode_piece(piece, cache, ids);
      }
    }
  }

  void encode_piece(std::string_view piece, WordCache& cache, std::vector<int32_t>& ids) const {
    constexpr size_t kLongestWord = 64, kMostWords = size_t{1} << 16;
    if (piece.size() > kLongestWord) {
      model_.encode(piece, ids);
      return;
    }
    auto found = cache.words.find(piece);
    if (found == cache.words.end()) {
      if (cache.words.size() >= kMostWords) {
        model_.encode(piece, ids);
        return;
      }
      const size_t begin = cache.ids.size();
      model_.encode(piece, cache.ids);
      found = cache.words.emplace(piece, WordCache::Range{begin, cache.ids.size()}).first;
    }
    const auto at = cache.ids.begin();
    ids.insert(ids.end(), at + static_cast<std::ptrdiff_t>(found->second.begin),
               at + static_cast<std::ptrdiff_t>(found->second.end));
  }

  // Decoders are known by what they undo; their steps are not run one by one.
  void read_decoder(const json& decoder) {
    for (const json* step : flatten(decoder, "decoders")) {
      const json& type = member_or_null(*step, "type");
      const bool known = type == "ByteLevel" || type == "Replace" || type == "ByteFallback" ||
                         type == "Fuse" || type == "Strip" || type == "Metaspace";
      require(known, where_, "decoder of type {} is not supported", type.dump());
      if (type == "Replace" || type == "Metaspace") metaspace_ = true;
      if (type == "Strip") {
        const json& count = member_or_null(*step, "start");
        adds_space_ = adds_space_ || (count.is_number_unsigned() && count.get<uint64_t>() > 0);
      }
      if (type == "Metaspace") {
        const json& scheme = member_or_null(*step, "prepend_scheme");
        const json& prefix = member_or_null(*step, "add_prefix_space");
        adds_space_ = scheme.is_string() ? scheme != "never" : prefix != false;
      }
    }
  }

  void read_tokens(const json& parsed) {
    for (size_t id = 0; id < model_.size(); ++id) {
      Token token{model_.token(id)};
      if (metaspace_) token.text = replace_all(token.text, kMetaspace, " ");
      if (model_.byte_fallback()) {
        if (const auto byte = parse_byte_token(model_.token(id))) {
          token.text = std::string(1, static_cast<char>(*byte));
        }
      }
      tokens_.push_back(std::move(token));
    }
    const json& list = member_or_null(parsed, "added_tokens");
    std::vector<AddedToken> plain, normalized;
    if (!list.is_null()) {
      for (AddedToken& token : read_added_tokens(list, where_ + ": added_tokens", tokens_.size())) {
        const auto id = static_cast<size_t>(token.id);
        if (id >= tokens_.size()) tokens_.resize(id + 1);
        tokens_[id] = {token.content, token.special, true};
        named_.emplace(token.content, token.id);
        if (token.normalized) {
          token.content = normalizer_.apply(token.content, true);
          normalized.push_back(token);
        } else {
          plain.push_back(token);
        }
      }
    }
    plain_added_ = AddedTokenMatcher(plain);
    normalized_added_ = AddedTokenMatcher(normalized);
  }

  void read_post_processor(const json& step) {
    const std::string where = where_ + ": post_processor";
    if (has_type(step, "ByteLevel")) return;  // trims offsets only
    if (has_type(step, "RobertaProcessing") || has_type(step, "BertProcessing")) {
      for (const char* key : {"cls", "sep"}) {
        const json& pair = member_or_null(step, key);
        require(pair.is_array() && pair.size() == 2, where, "'{}' must be [token, id]", key);
        (*key == 'c' ? prefix_ : suffix_).push_back(checked_id(pair[1], where));
      }
      return;
    }
    require(has_type(step, "TemplateProcessing"), where, "type {} is not supported",
            member_or_null(step, "type").dump());
    const json& single = member_or_null(step, "single");
    const json& tokens = member_or_null(step, "special_tokens");
    require(single.is_array(), where, "'single' must be an array");
    bool after_text = false;
    for (const json& part : single) {
      if (part.is_object() && part.contains("Sequence")) {
        after_text = true;
        continue;
      }
      const json& name = member_or_null(member_or_null(part, "SpecialToken"), "id");
      require(name.is_string(), where, "a part of 'single' is neither text nor a token");
      const auto& text = name.get_ref<const std::string&>();
      const json& ids = member_or_null(member_or_null(tokens, text.c_str()), "ids");
      require(ids.is_array(), where, "no ids of the token '{}'", text);
      for (const json& id : ids) (after_text ? suffix_ : prefix_).push_back(checked_id(id, where));
    }
  }

  int32_t checked_id(const json& id, const std::string& where) const {
    require(id.is_number_unsigned() && id.get<uint64_t>() < tokens_.size(), where,
            "id {} is not in the vocabulary of {}", id.dump(), tokens_.size());
    return id.get<int32_t>();
  }

  // "bos_token": "<s>", or {"content": "<s>", ...}.
  std::optional<int32_t> named_token(const json& config, const char* key) const {
    const json* name = &member_or_null(config, key);
    if (name->is_object()) name = &member_or_null(*name, "content");
    if (!name->is_string()) return {};
    const auto found = named_.find(name->get_ref<const std::string&>());
    return found == named_.end() ? std::nullopt : std::optional<int32_t>(found->second);
  }

  std::string where_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  std::vector<Token> tokens_;
  std::unordered_map<std::string, int32_t> named_;  // added tokens by their text
  AddedTokenMatcher plain_added_, normalized_added_;
  std::vector<int32_t> prefix_, suffix_;
  std::optional<int32_t> bos_, eos_;
  bool metaspace_ = false, adds_space_ = false;
};

}  // namespace

bool is_hf_bpe(const json& parsed) {
  const json& model = member_or_null(parsed, "model");
  const json& type = member_or_null(model, "type");
  // Old files leave the type out; merges belong to BPE only.
  return type.is_null() ? model.is_object() && model.contains("merges") : type == "BPE";
}

std::vector<AddedToken> read_added_tokens(const json& list, const std::string& where,
                                          size_t vocabulary) {
  require(list.is_array() || list.is_object(), where, "must be an array or an object");
  std::vector<AddedToken> tokens;
  for (const auto& item : list.items()) {
    const json& entry = item.value();
    const json& content = member_or_null(entry, "content");
    require(content.is_string(), where, "entry {} has no content", item.key());
    AddedToken token;
    uint64_t id = 0;
    if (list.is_array()) {
      const json& value = member_or_null(entry, "id");
      require(value.is_number_unsigned(), where, "entry {} has no id", item.key());
      id = value.get<uint64_t>();
    } else {
      const char* end = item.key().data() + item.key().size();
      const auto result = std::from_chars(item.key().data(), end, id);
      require(result.ec == std::errc() && result.ptr == end, where, "'{}' is not an id",
              item.key());
    }
    require(id < vocabulary + kMaxAdded, where, "id {} is too far beyond the vocabulary of {}", id,
            vocabulary);
    const auto flag = [&](const char* key) { return member_or_null(entry, key) == true; };
    token.id = static_cast<int32_t>(id);
    token.content = content.get<std::string>();
    token.special = flag("special");
    token.normalized = flag("normalized");
    token.left_strip = flag("lstrip");
    token.right_strip = flag("rstrip");
    token.single_word = flag("single_word");
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::unique_ptr<Tokenizer> make_hf_tokenizer(const json& parsed, const json& config,
                                             const std::string& where, Tokenizer::Files files) {
  require(is_hf_bpe(parsed), where, "model type {} is not supported",
          member_or_null(member_or_null(parsed, "model"), "type").dump());
  return std::make_unique<HfTokenizer>(parsed, config, where, std::move(files));
}

}  // namespace pronghorn
