#include "formats/gguf_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.h"
#include "base/quote.h"
#include "base/warning.h"
#include "formats/component.h"
#include "formats/gguf_pre.h"
#include "formats/hf_tokenizer.h"
#include "formats/normalizer.h"
#include "formats/sentencepiece_tokenizer.h"
#include "formats/utf8.h"
#include "formats/world_tokenizer.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581

// The pattern as files write it: characters instead of \x{4E00}.
std::string as_written(std::string_view pattern) {
  std::string out;
  while (!pattern.empty()) {
    size_t length = 1;
    if (pattern.starts_with("\\x{")) {
      length = pattern.find('}') + 1;
      uint32_t code = 0;
      for (const char c : pattern.substr(3, length - 4)) {
        code = code * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
      }
      append_utf8(code, out);
    } else {
      length = pattern[0] == '\\' ? 2 : 1;
      out += pattern.substr(0, length);
    }
    pattern.remove_prefix(length);
  }
  return out;
}

json split_by(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", as_written(pattern)}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

// With every key that Hugging Face's tokenizers asks for; as a decoder only the type counts.
json byte_level(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json sequence(const char* key, json steps) {
  return {{"type", "Sequence"}, {key, std::move(steps)}};
}

const GgufPre& find_pre(std::string_view name, const std::string& where) {
  if (name.empty()) {
    warn_once(where +
              ": does not say how its tokenizer cuts texts (tokenizer.ggml.pre): taken as "
              "'default', which may be wrong");
    name = "default";
  }
  for (const GgufPre& pre : gguf_pres()) {
    if (std::find(pre.names.begin(), pre.names.end(), name) != pre.names.end()) return pre;
  }
  throw Error(where, fmt::format("tokenizer.ggml.pre {} is not known", quote(name)));
}

class Writer {
 public:
  Writer(const GgufVocabulary& vocabulary, const std::string& where)
      : in_(vocabulary), where_(where), tokens_(vocabulary.tokens) {
    require(!tokens_.empty(), where_, "tokenizer.ggml.tokens is empty");
    require(in_.scores.empty() || in_.scores.size() >= tokens_.size(), where_,
            "{} tokens and {} scores", tokens_.size(), in_.scores.size());
    require(in_.types.empty() || in_.types.size() >= tokens_.size(), where_,
            "{} tokens and {} types", tokens_.size(), in_.types.size());
    for (size_t id = 0; id < tokens_.size(); ++id) {
      require(find_invalid_utf8(tokens_[id]) == std::string::npos, where_, "token {} is not UTF-8",
              id);
      if (tokens_[id].empty()) tokens_[id] = fmt::format("[EMPTY_{}]", id);
    }
  }

  std::unique_ptr<Tokenizer> bpe() {
    const GgufPre& pre =
        find_pre(in_.pre.empty() && in_.model == "gemma4" ? in_.model : in_.pre, where_);
    json parsed = begin_json();
    json model = {{"type", "BPE"},
                  {"vocab", vocabulary(tokens_)},
                  {"merges", merges()},
                  {"ignore_merges", pre.ignore_merges},
                  {"byte_fallback", pre.marks_spaces}};
    parsed["model"] = std::move(model);
    json steps = json::array();
    for (const std::string_view pattern : pre.patterns) steps.push_back(split_by(pattern));
    if (pre.marks_spaces) {
      parsed["normalizer"] = replace(" ", kWordMark);
      parsed["decoder"] = sequence(
          "decoders", {replace(kWordMark, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
    } else {
      if (pre.nfc) parsed["normalizer"] = {{"type", "NFC"}};
      steps.push_back(byte_level(false, false));
      parsed["decoder"] = byte_level(true, true);
    }
    parsed["pre_tokenizer"] = sequence("pretokenizers", std::move(steps));
    // Files are written by programs that know: only those that say nothing get the usual.
    return from_json(std::move(parsed), in_.add_bos.value_or(pre.add_bos),
                     in_.add_eos.value_or(false));
  }

  std::unique_ptr<Tokenizer> word_piece() {
    // Words begin with U+2581 here, and continue without "##".
    std::vector<std::string> written = tokens_;
    for (std::string& token : written) {
      if (token.starts_with(kWordMark)) {
        token.erase(0, kWordMark.size());
      } else if (!token.starts_with('[') || !token.ends_with(']')) {
        token.insert(0, "##");
      }
    }
    tokens_ = written;
    const int32_t cls = id_of(in_.cls ? in_.cls : in_.bos, 101, "cls_token_id");
    const int32_t separator = id_of(in_.separator, 102, "seperator_token_id");
    const int32_t unknown = id_of(in_.unknown_id, 100, "unknown_token_id");
    const bool lower = in_.lower_case.value_or(true);
    json parsed = begin_json();
    parsed["normalizer"] = {{"type", "BertNormalizer"},
                            {"clean_text", true},
                            {"handle_chinese_chars", true},
                            {"strip_accents", nullptr},
                            {"lowercase", lower}};
    parsed["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
    parsed["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
    const auto around = [&](int32_t id) {
      return json::array({token(id), static_cast<uint64_t>(id)});
    };
    parsed["post_processor"] = {
        {"type", "BertProcessing"}, {"cls", around(cls)}, {"sep", around(separator)}};
    parsed["model"] = {{"type", "WordPiece"},
                       {"unk_token", token(unknown)},
                       {"continuing_subword_prefix", "##"},
                       {"max_input_chars_per_word", uint64_t{100}},
                       {"vocab", vocabulary(tokens_)}};
    const std::string config = names(cls, separator).dump(2) + "\n";
    SideFiles side{.config = json::parse(config), .special_map = {}, .added = {}};
    return make_hf_tokenizer(
        parsed, side, where_,
        {{"tokenizer.json", parsed.dump()}, {"tokenizer_config.json", config}});
  }

  std::unique_ptr<Tokenizer> sentence_piece() {
    const bool unigram = in_.model == "t5";
    SentencePieceModel model;
    model.kind = unigram ? SentencePieceModel::Kind::unigram : SentencePieceModel::Kind::bpe;
    model.rules_bytes = in_.charsmap;
    model.rules = Charsmap(in_.charsmap, where_);
    model.add_dummy_prefix = in_.add_space_prefix.value_or(true);
    model.remove_extra_spaces = in_.remove_extra_spaces.value_or(false);
    model.pieces = tokens_;
    const int32_t unknown = id_of(in_.unknown_id, unigram ? 2 : 0, "unknown_token_id");
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const float score = in_.scores.empty() ? 0 : in_.scores[id];
      require(std::isfinite(score), where_, "score {} of token {}", score, id);
      model.scores.push_back(score);
      int64_t type = in_.types.empty() ? GgufVocabulary::normal : in_.types[id];
      if (type < GgufVocabulary::normal || type > GgufVocabulary::byte)
        type = GgufVocabulary::unused;
      // One piece is unknown; a control piece that has its id stays what it is elsewhere.
      const bool is_unknown = static_cast<int32_t>(id) == unknown;
      if (type == GgufVocabulary::unknown && !is_unknown) type = GgufVocabulary::control;
      if (is_unknown) type = GgufVocabulary::unknown;
      model.byte_fallback = model.byte_fallback || type == GgufVocabulary::byte;
      model.types.push_back(static_cast<PieceType>(type));
    }
    const std::optional<int32_t> bos = optional_id(in_.bos, unigram ? -1 : 1, "bos_token_id");
    const std::optional<int32_t> eos = optional_id(in_.eos, unigram ? 1 : 2, "eos_token_id");
    if (bos) model.bos_piece = token(*bos);
    if (eos) model.eos_piece = token(*eos);
    json config = names(bos, eos);
    config["tokenizer_class"] = "LlamaTokenizer";
    config["legacy"] = true;
    config["unk_token"] = token(unknown);
    config["add_bos_token"] = in_.add_bos.value_or(!unigram);
    config["add_eos_token"] = in_.add_eos.value_or(unigram);
    config["added_tokens_decoder"] = by_id(added_tokens());
    const SideFiles side{.config = config, .special_map = {}, .added = {}};
    Tokenizer::Files files = {{"tokenizer.model", write_sentencepiece_model(model)},
                              {"tokenizer_config.json", config.dump(2) + "\n"}};
    return make_sentencepiece_tokenizer(std::move(model), side, where_, std::move(files));
  }

  std::unique_ptr<Tokenizer> world() {
    WorldTokens tokens(tokens_.size());
    for (size_t id = 1; id < tokens.size(); ++id) {
      if (type_of(id) != GgufVocabulary::normal) continue;
      tokens[id] = unescape_world_token(tokens_[id], fmt::format("{}: token {}", where_, id));
    }
    json config = {{"add_bos_token", in_.add_bos.value_or(false)},
                   {"add_eos_token", in_.add_eos.value_or(false)},
                   {"tokenizer_class", "RwkvTokenizer"}};
    const auto name = [&](const char* key, std::optional<int64_t> given) {
      const std::optional<int32_t> id = optional_id(given, 0, key);
      if (!id) return;
      const std::string& bytes = tokens[static_cast<size_t>(*id)];
      require(find_invalid_utf8(bytes) == std::string::npos, where_,
              "tokenizer.ggml.{} {} is a token that is not UTF-8", key, *id);
      config[std::string(key, 9)] = bytes.empty() ? token(*id) : bytes;
    };
    name("bos_token_id", in_.bos);
    name("eos_token_id", in_.eos);
    config["added_tokens_decoder"] = by_id(added_tokens());
    const SideFiles side{.config = config, .special_map = {}, .added = {}};
    std::string text = write_world_vocabulary(tokens);
    // What could not be read again once it is saved is refused now: equal tokens, too many holes.
    tokens = read_world_vocabulary(text, where_ + ": tokenizer.ggml.tokens as a file");
    Tokenizer::Files files = {{kWorldFile, std::move(text)},
                              {"tokenizer_config.json", config.dump(2) + "\n"}};
    return make_world_tokenizer(std::move(tokens), side, where_, std::move(files));
  }

 private:
  static json replace(std::string_view from, std::string_view to) {
    return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  }

  int64_t type_of(size_t id) const {
    return in_.types.empty() ? static_cast<int64_t>(GgufVocabulary::normal) : in_.types[id];
  }
  const std::string& token(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }

  std::optional<int32_t> optional_id(std::optional<int64_t> given, int64_t usual,
                                     const char* key) const {
    const auto size = static_cast<int64_t>(tokens_.size());
    if (!given)
      return usual >= 0 && usual < size ? std::optional(static_cast<int32_t>(usual)) : std::nullopt;
    require(*given >= 0 && *given < size, where_, "tokenizer.ggml.{} {} is not one of {} tokens",
            key, *given, size);
    return static_cast<int32_t>(*given);
  }
  int32_t id_of(std::optional<int64_t> given, int64_t usual, const char* key) const {
    const std::optional<int32_t> id = optional_id(given, usual, key);
    require(id.has_value(), where_, "no tokenizer.ggml.{}", key);
    return *id;
  }

  json begin_json() const {
    return {{"version", "1.0"},         {"added_tokens", added_tokens()}, {"normalizer", nullptr},
            {"pre_tokenizer", nullptr}, {"post_processor", nullptr},      {"decoder", nullptr}};
  }

  json added_tokens() const {
    json list = json::array();
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const int64_t type = type_of(id);
      const bool special = type == GgufVocabulary::control || type == GgufVocabulary::unknown;
      if (!special && type != GgufVocabulary::user_defined) continue;
      list.push_back({{"id", id},
                      {"content", tokens_[id]},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", special}});
    }
    return list;
  }

  // As tokenizer_config.json lists them.
  static json by_id(json added) {
    json result = json::object();
    for (json& entry : added) {
      const std::string key = std::to_string(entry["id"].get<int64_t>());
      result[key] = std::move(entry);
    }
    return result;
  }

  json vocabulary(const std::vector<std::string>& tokens) const {
    json result = json::object();
    for (size_t id = 0; id < tokens.size(); ++id) {
      const bool fresh = result.emplace(tokens[id], id).second;
      require(fresh, where_, "token {} ({}) occurs twice", id, quote(tokens[id]));
    }
    return result;
  }

  // Merges of tokens that are not there can never be made.
  json merges() const {
    const std::unordered_set<std::string_view> known(tokens_.begin(), tokens_.end());
    json list = json::array();
    std::string merged;
    for (const std::string& merge : in_.merges) {
      const size_t space = merge.find(' ', 1);
      if (space == merge.npos || space + 1 == merge.size()) continue;
      const std::string_view left = std::string_view(merge).substr(0, space);
      const std::string_view right = std::string_view(merge).substr(space + 1);
      merged.assign(left).append(right);
      if (known.contains(left) && known.contains(right) && known.contains(merged)) {
        list.push_back(merge);
      }
    }
    require(!list.empty() || in_.merges.empty(), where_, "no merge fits its tokens");
    require(!in_.merges.empty() || in_.no_merges, where_, "no tokenizer.ggml.merges");
    return list;
  }

  json names(std::optional<int32_t> bos, std::optional<int32_t> eos) const {
    json config = json::object();
    if (bos) config["bos_token"] = token(*bos);
    if (eos) config["eos_token"] = token(*eos);
    return config;
  }

  std::unique_ptr<Tokenizer> from_json(json parsed, bool add_bos, bool add_eos) const {
    json config =
        names(optional_id(in_.bos, -1, "bos_token_id"), optional_id(in_.eos, -1, "eos_token_id"));
    config["add_bos_token"] = add_bos;
    config["add_eos_token"] = add_eos;
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    // Other libraries look for the tokens around a text here.
    json used = json::object();
    const auto around = [&](json& parts, const char* key, int type_id) {
      const json& name = member_or_null(config, key);
      if (!name.is_string()) return;
      const auto at = std::find(tokens_.begin(), tokens_.end(), name.get_ref<const std::string&>());
      parts.push_back({{"SpecialToken", {{"id", name}, {"type_id", type_id}}}});
      used[name.get<std::string>()] = {
          {"id", name}, {"ids", {static_cast<uint64_t>(at - tokens_.begin())}}, {"tokens", {name}}};
    };
    const auto add = [&](json& parts, const char* text, int type_id) {
      if (add_bos) around(parts, "bos_token", type_id);
      parts.push_back({{"Sequence", {{"id", text}, {"type_id", type_id}}}});
      if (add_eos) around(parts, "eos_token", type_id);
    };
    json single = json::array();
    add(single, "A", 0);
    json pair = single;
    add(pair, "B", 1);
    parsed["post_processor"] = {{"type", "TemplateProcessing"},
                                {"single", single},
                                {"pair", pair},
                                {"special_tokens", used}};
    const SideFiles side{.config = config, .special_map = {}, .added = {}};
    return make_hf_tokenizer(
        parsed, side, where_,
        {{"tokenizer.json", parsed.dump()}, {"tokenizer_config.json", config.dump(2) + "\n"}});
  }

  const GgufVocabulary& in_;
  const std::string& where_;
  std::vector<std::string> tokens_;
};

// The patterns by which a pre-tokenizer cuts, if that is all it does before bytes.
std::optional<std::vector<std::string>> patterns_of(const json& pre_tokenizer) {
  std::vector<std::string> patterns;
  for (const Component& step : steps_of(pre_tokenizer, "pretokenizers", "pre_tokenizer")) {
    if (step.type() == "ByteLevel") {
      if (step.flag("add_prefix_space", true)) return {};
      if (step.flag("use_regex", true)) patterns.emplace_back(gguf_pres()[0].patterns[0]);
    } else if (step.type() == "Digits") {
      patterns.emplace_back(step.flag("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    } else if (step.type() == "Split" && step.text("behavior") == "Isolated" &&
               !step.flag("invert", false)) {
      const json& regex = member_or_null(step.member("pattern"), "Regex");
      if (!regex.is_string()) return {};
      // Some write line ends as they are.
      const std::string text = replace_all(regex.get<std::string>(), "\r", "\\r");
      patterns.push_back(replace_all(text, "\n", "\\n"));
    } else {
      return {};
    }
  }
  return patterns;
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const GgufMetadata& metadata) {
  GgufVocabulary vocabulary;
  const auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  const auto copy = [&](const char* name) {
    const std::vector<std::string_view> texts = metadata.texts(key(name));
    return std::vector<std::string>(texts.begin(), texts.end());
  };
  const auto id = [&](const char* name) -> std::optional<int64_t> {
    if (!metadata.has(key(name))) return {};
    return metadata.integer(key(name));
  };
  const auto flag = [&](const char* name) -> std::optional<bool> {
    if (!metadata.has(key(name))) return {};
    return metadata.boolean(key(name));
  };
  vocabulary.model = metadata.text(key("model"));
  vocabulary.pre = metadata.text(key("pre"), "");
  vocabulary.tokens = copy("tokens");
  vocabulary.scores = metadata.numbers(key("scores"));
  vocabulary.types = metadata.integers(key("token_type"));
  vocabulary.merges = copy("merges");
  vocabulary.no_merges = metadata.has(key("merges")) && vocabulary.merges.empty();
  for (const int64_t byte : metadata.integers(key("precompiled_charsmap"))) {
    vocabulary.charsmap += static_cast<char>(byte);
  }
  vocabulary.bos = id("bos_token_id");
  vocabulary.eos = id("eos_token_id");
  vocabulary.unknown_id = id("unknown_token_id");
  vocabulary.separator = id("seperator_token_id");  // as the format spells it
  vocabulary.cls = id("cls_token_id");
  vocabulary.add_bos = flag("add_bos_token");
  vocabulary.add_eos = flag("add_eos_token");
  vocabulary.add_space_prefix = flag("add_space_prefix");
  vocabulary.remove_extra_spaces = flag("remove_extra_whitespaces");
  vocabulary.lower_case = flag("normalizer.lowercase");
  return vocabulary;
}

std::unique_ptr<Tokenizer> make_gguf_tokenizer(const GgufVocabulary& vocabulary,
                                               const std::string& where) {
  Writer writer(vocabulary, where);
  if (vocabulary.model == "gpt2" || vocabulary.model == "gemma4") return writer.bpe();
  if (vocabulary.model == "bert") return writer.word_piece();
  if (vocabulary.model == "llama" || vocabulary.model == "t5") return writer.sentence_piece();
  if (vocabulary.model == "rwkv") return writer.world();
  throw Error(where,
              fmt::format("tokenizer.ggml.model {} is not supported", quote(vocabulary.model)));
}

std::optional<std::string> gguf_pre_name(const json& tokenizer) {
  const auto patterns = patterns_of(member_or_null(tokenizer, "pre_tokenizer"));
  if (!patterns) return {};
  const bool ignore_merges =
      member_or_null(member_or_null(tokenizer, "model"), "ignore_merges") == true;
  bool nfc = false;
  for (const Component& step :
       steps_of(member_or_null(tokenizer, "normalizer"), "normalizers", "normalizer")) {
    nfc = nfc || step.type() == "NFC";
  }
  const GgufPre* best = nullptr;
  int best_agreement = -1;
  for (const GgufPre& pre : gguf_pres()) {
    const bool same = std::equal(
        pre.patterns.begin(), pre.patterns.end(), patterns->begin(), patterns->end(),
        [](std::string_view ours, std::string_view theirs) { return as_written(ours) == theirs; });
    const int agreement = (pre.ignore_merges == ignore_merges ? 2 : 0) + (pre.nfc == nfc ? 1 : 0);
    if (!same || pre.marks_spaces || agreement <= best_agreement) continue;
    best = &pre;
    best_agreement = agreement;
  }
  if (best == nullptr) return {};
  return std::string(best->names.front());
}

}  // namespace pronghorn
