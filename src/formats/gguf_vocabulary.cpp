#include "formats/gguf_vocabulary.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/quote.h"
#include "formats/component.h"
#include "formats/gguf_tokenizer.h"
#include "formats/json.h"
#include "formats/sentencepiece_model.h"
#include "formats/world_tokenizer.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kModelFile = "tokenizer.model";
constexpr const char* kConfigFile = "tokenizer_config.json";

// What llama.cpp knows of a token.
enum class TokenType : int32_t { normal = 1, unknown, control, user_defined, unused, byte };

struct TokenList {
  std::vector<std::string> texts;
  std::vector<int32_t> types;
  std::vector<float> scores;  // empty where merges decide

  TokenList(int64_t size, bool scored) {
    const auto count = static_cast<size_t>(size);
    for (size_t id = 0; id < count; ++id) texts.push_back(fmt::format("[PAD{}]", id));
    types.assign(count, static_cast<int32_t>(TokenType::unused));
    if (scored) scores.assign(count, -1e4f);
  }

  void set(int64_t id, std::string text, TokenType type, float score, const std::string& where) {
    require(id >= 0 && id < static_cast<int64_t>(texts.size()), where,
            "token {} has the id {} in a model of {} tokens", quote(text), id, texts.size());
    const auto i = static_cast<size_t>(id);
    texts[i] = std::move(text);
    types[i] = static_cast<int32_t>(type);
    if (!scores.empty()) scores[i] = score;
  }

  void write(GgufMetadata& metadata) const {
    metadata.set("tokenizer.ggml.tokens", GgufValue::texts(texts));
    metadata.set("tokenizer.ggml.token_type", GgufValue::i32s(types));
    if (!scores.empty()) metadata.set("tokenizer.ggml.scores", GgufValue::f32s(scores));
  }

  std::optional<int64_t> find(const std::string& text) const {
    const auto found = std::ranges::find(texts, text);
    if (found == texts.end()) return {};
    return found - texts.begin();
  }
};

// A file as JSON, or null if it is not there.
json parsed(const Tokenizer::Files& files, const char* name) {
  const auto found = files.find(name);
  return found == files.end() ? json() : parse_json(found->second, name);
}

// How a byte-level encoding cuts text into words, by the name that llama.cpp has for it.
std::string pre_name(const json& tokenizer) {
  if (const auto name = gguf_pre_name(tokenizer)) return *name;
  const json& pre = tokenizer.at("pre_tokenizer");
  throw Error(kTokenizerFile,
              fmt::format("its way of cutting text into words has no name in GGUF: {}",
                          quote(pre.dump(-1, ' ', true, json::error_handler_t::replace), 200)));
}

bool has_step(const json& step, std::string_view type) {
  if (!step.is_object()) return false;
  if (step.value("type", "") == type) return true;
  for (const char* list : {"pretokenizers", "normalizers", "decoders"}) {
    if (!step.contains(list)) continue;
    for (const json& each : step.at(list)) {
      if (has_step(each, type)) return true;
    }
  }
  return false;
}

void add_added_tokens(const json& tokenizer, TokenList& vocabulary) {
  for (const json& token : tokenizer.value("added_tokens", json::array())) {
    const auto type = token.value("special", false) ? TokenType::control : TokenType::user_defined;
    vocabulary.set(token.at("id"), token.at("content"), type, 0, kTokenizerFile);
  }
}

std::vector<std::pair<std::string, std::string>> merges_of(const json& model) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const json& merge : model.at("merges")) {
    if (merge.is_array() && merge.size() == 2) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const auto text = merge.get<std::string>();
    const size_t space = text.find(' ', 1);
    require(space != std::string::npos, kTokenizerFile, "{} is not a merge", quote(text));
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

// Whether encoding puts the token of this key first: as tokenizer_config.json says or, failing
// that, as the template does.
bool adds_first(const json& tokenizer, const json& config, const std::string& token) {
  if (config.is_object() && config.contains("add_bos_token") &&
      config.at("add_bos_token").is_boolean()) {
    return config.at("add_bos_token");
  }
  const auto of_template = [&](const json& processor) {
    if (processor.value("type", "") != "TemplateProcessing") return false;
    const json single = processor.value("single", json::array());
    return !single.empty() && single[0].contains("SpecialToken") &&
           single[0].at("SpecialToken").value("id", "") == token;
  };
  if (!tokenizer.is_object() || !tokenizer.contains("post_processor")) return false;
  const json& processor = tokenizer.at("post_processor");
  if (!processor.is_object()) return false;
  if (of_template(processor)) return true;
  return std::ranges::any_of(processor.value("processors", json::array()), of_template);
}

void add_special_tokens(const json& tokenizer, const json& config, const TokenList& vocabulary,
                        GgufMetadata& metadata) {
  std::string first;
  for (const auto& [key, name] : {std::pair{"bos_token", "bos"},
                                  {"eos_token", "eos"},
                                  {"unk_token", "unknown"},
                                  {"pad_token", "padding"}}) {
    if (!config.is_object() || !config.contains(key)) continue;
    const json& token = config.at(key);
    const std::string text = token.is_object()   ? token.value("content", "")
                             : token.is_string() ? token.get<std::string>()
                                                 : std::string();
    if (text.empty()) continue;
    if (std::string_view(key) == "bos_token") first = text;
    if (const auto id = vocabulary.find(text)) {
      metadata.set(fmt::format("tokenizer.ggml.{}_token_id", name),
                   GgufValue::u32(static_cast<uint32_t>(*id)));
    }
  }
  metadata.set("tokenizer.ggml.add_bos_token",
               GgufValue::boolean(!first.empty() && adds_first(tokenizer, config, first)));
}

void add_byte_level(const json& tokenizer, TokenList& vocabulary, GgufMetadata& metadata) {
  const json& model = tokenizer.at("model");
  metadata.set("tokenizer.ggml.model", GgufValue::text("gpt2"));
  metadata.set("tokenizer.ggml.pre", GgufValue::text(pre_name(tokenizer)));
  for (const auto& [text, id] : model.at("vocab").items()) {
    vocabulary.set(id.get<int64_t>(), text, TokenType::normal, 0, kTokenizerFile);
  }
  std::vector<std::string> merges;
  for (const auto& [left, right] : merges_of(model)) merges.push_back(left + " " + right);
  metadata.set("tokenizer.ggml.merges", GgufValue::texts(merges));
}

// A SentencePiece encoding that was made into merges: the score of a piece is the place of the
// merge that makes it.
void add_merged_pieces(const json& tokenizer, TokenList& vocabulary, GgufMetadata& metadata) {
  const json& model = tokenizer.at("model");
  std::map<std::string, float> scores;
  for (const auto& [left, right] : merges_of(model)) {
    scores.emplace(left + right, -static_cast<float>(scores.size()));
  }
  const std::string unknown = model.contains("unk_token") && model.at("unk_token").is_string()
                                  ? model.at("unk_token").get<std::string>()
                                  : "<unk>";
  std::vector<std::pair<int64_t, std::string>> unknowns;
  for (const auto& [text, id] : model.at("vocab").items()) {
    const bool byte = text.size() == 6 && text.starts_with("<0x") && text.ends_with('>');
    const auto score = scores.find(text);
    // Single characters come before all merges in the order of SentencePiece: never merged into.
    const float value = score == scores.end() ? -static_cast<float>(scores.size()) : score->second;
    vocabulary.set(id.get<int64_t>(), text, byte ? TokenType::byte : TokenType::normal, value,
                   kTokenizerFile);
    if (text == unknown) unknowns.emplace_back(id.get<int64_t>(), text);
  }
  add_added_tokens(tokenizer, vocabulary);
  for (const auto& [id, text] : unknowns) {
    vocabulary.set(id, text, TokenType::unknown, 0, kTokenizerFile);
  }
  metadata.set("tokenizer.ggml.model", GgufValue::text("llama"));
  metadata.set("tokenizer.ggml.pre", GgufValue::text("default"));
  const bool prefix = has_step(tokenizer.value("normalizer", json()), "Prepend") ||
                      has_step(tokenizer.value("pre_tokenizer", json()), "Metaspace");
  metadata.set("tokenizer.ggml.add_space_prefix", GgufValue::boolean(prefix));
}

void add_pieces(const std::string& bytes, TokenList& vocabulary, GgufMetadata& metadata) {
  const SentencePieceModel model = read_sentencepiece_model(bytes, kModelFile);
  require(model.kind == SentencePieceModel::Kind::bpe, kModelFile,
          "is no byte-pair encoding, which cannot be said in GGUF files of this kind");
  std::optional<size_t> bos, eos, unknown;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const bool control = model.types[id] == PieceType::kControl;
    if (control && model.pieces[id] == model.bos_piece) bos = id;
    if (control && model.pieces[id] == model.eos_piece) eos = id;
    if (model.types[id] == PieceType::kUnknown) unknown = id;
    vocabulary.set(static_cast<int64_t>(id), model.pieces[id],
                   static_cast<TokenType>(model.types[id]), model.scores[id], kModelFile);
  }
  metadata.set("tokenizer.ggml.model", GgufValue::text("llama"));
  metadata.set("tokenizer.ggml.pre", GgufValue::text("default"));
  metadata.set("tokenizer.ggml.add_space_prefix", GgufValue::boolean(model.add_dummy_prefix));
  for (const auto& [id, name] : {std::pair{bos, "bos"}, {eos, "eos"}, {unknown, "unknown"}}) {
    if (!id) continue;
    metadata.set(fmt::format("tokenizer.ggml.{}_token_id", name),
                 GgufValue::u32(static_cast<uint32_t>(*id)));
  }
}

// Tokens have the ids and names that the tokenizer of these files gives them. That of two line ends
// ends a turn there.
void add_world(const Tokenizer::Files& files, const json& config, TokenList& vocabulary,
               GgufMetadata& metadata) {
  const SideFiles side{.config = config,
                       .special_map = parsed(files, "special_tokens_map.json"),
                       .added = parsed(files, "added_tokens.json")};
  const auto tokenizer = make_world_tokenizer(
      read_world_vocabulary(files.at(kWorldFile), kWorldFile), side, kWorldFile, files);
  for (int64_t i = 0; i < tokenizer->vocab_size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const std::string bytes = tokenizer->token_bytes(id, true);
    if (tokenizer->is_added(id)) {
      const bool special = tokenizer->is_special(id);
      vocabulary.set(i, bytes, special ? TokenType::control : TokenType::user_defined, 0,
                     kWorldFile);
    } else if (!bytes.empty()) {
      vocabulary.set(i, escape_world_token(bytes), TokenType::normal, 0, kWorldFile);
    }
  }
  metadata.set("tokenizer.ggml.model", GgufValue::text("rwkv"));
  const auto set = [&](const char* name, int32_t id) {
    metadata.set(fmt::format("tokenizer.ggml.{}_token_id", name),
                 GgufValue::u32(static_cast<uint32_t>(id)));
  };
  set("bos", tokenizer->bos().value_or(0));
  set("eos", tokenizer->eos().value_or(0));
  if (const auto turn = tokenizer->find_token("\n\n")) set("eot", *turn);
  for (const char* key : {"add_bos_token", "add_eos_token"}) {
    metadata.set(fmt::format("tokenizer.ggml.{}", key),
                 GgufValue::boolean(member_or_null(config, key) == true));
  }
}

}  // namespace

void add_gguf_vocabulary(const Tokenizer::Files& files, int64_t vocab_size,
                         GgufMetadata& metadata) {
  const json config = parsed(files, kConfigFile);
  const json tokenizer = parsed(files, kTokenizerFile);
  const auto pieces = files.find(kModelFile);
  if (files.contains(kWorldFile) && !tokenizer.is_object()) {
    TokenList vocabulary(vocab_size, false);
    add_world(files, config, vocabulary, metadata);
    vocabulary.write(metadata);
  } else if (pieces != files.end()) {
    TokenList vocabulary(vocab_size, true);
    add_pieces(pieces->second, vocabulary, metadata);
    if (tokenizer.is_object()) add_added_tokens(tokenizer, vocabulary);
    add_special_tokens(tokenizer, config, vocabulary, metadata);
    vocabulary.write(metadata);
  } else {
    require(tokenizer.is_object() && tokenizer.contains("model") &&
                tokenizer.at("model").contains("merges"),
            "tokenizer", "GGUF files hold byte-pair encodings only, and this is none");
    const bool byte_level = has_step(tokenizer.value("pre_tokenizer", json()), "ByteLevel");
    TokenList vocabulary(vocab_size, !byte_level);
    if (byte_level) {
      add_byte_level(tokenizer, vocabulary, metadata);
      add_added_tokens(tokenizer, vocabulary);
    } else {
      add_merged_pieces(tokenizer, vocabulary, metadata);
    }
    add_special_tokens(tokenizer, config, vocabulary, metadata);
    vocabulary.write(metadata);
  }
}

}  // namespace pronghorn
