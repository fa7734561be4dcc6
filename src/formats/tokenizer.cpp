#include "formats/tokenizer.h"

#include <xxhash.h>

#include "base/error.h"
#include "base/files.h"
#include "formats/checkpoint_reader.h"
#include "formats/component.h"
#include "formats/gguf_tokenizer.h"
#include "formats/hf_tokenizer.h"
#include "formats/json.h"
#include "formats/sentencepiece_tokenizer.h"
#include "formats/utf8.h"
#include "formats/world_tokenizer.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMaxTokenizerFile = uint64_t{1} << 28;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr std::string_view kByteClass = "PronghornByteTokenizer";
constexpr const char* kConfigFile = "tokenizer_config.json";

class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(Files files) : Tokenizer(std::move(files)) {}

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }

  std::string token_bytes(int32_t id, bool) const override {
    require(id >= 0, "tokenizer", "id {} is not in the vocabulary of 256", id);
    return id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
  }

  int64_t vocab_size() const override { return 256; }
};

}  // namespace

std::string Tokenizer::next_bytes(int32_t id, DecodeState& state, bool special) const {
  std::string bytes = token_bytes(id, special);
  // Special tokens that are omitted leave no trace in the text.
  if (!special && is_special(id)) return bytes;
  if (state.at_start && adds_space() && bytes.starts_with(' ')) bytes.erase(0, 1);
  state.at_start = false;
  state.previous = id;
  return bytes;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool special) const {
  std::string text;
  DecodeState state;
  for (const int32_t id : ids) text += next_bytes(id, state, special);
  return text;
}

void Tokenizer::save(const std::filesystem::path& directory) const {
  pronghorn::make_directories(directory);
  for (const auto& [name, bytes] : files_) write_file(directory / name, bytes);
}

uint64_t Tokenizer::fingerprint() const {
  uint64_t hash = 0;
  for (const auto& [name, bytes] : files_) {
    hash = XXH64(name.data(), name.size(), hash);
    hash = XXH64(bytes.data(), bytes.size(), hash);
  }
  return hash;
}

std::string TextStream::push(int32_t id) {
  std::string& pending = state_.pending;
  pending += tokenizer_.next_bytes(id, state_, special_);

  std::string whole;
  size_t at = 0;
  while (at < pending.size()) {
    const std::string_view rest = std::string_view(pending).substr(at);
    const size_t length = utf8_character(rest);
    if (length == 0 && utf8_incomplete(rest)) break;
    whole += length == 0 ? kReplacement : rest.substr(0, length);
    at += length == 0 ? 1 : length;
  }
  pending.erase(0, at);
  return whole;
}

std::string TextStream::finish() {
  std::string rest;
  for (size_t i = 0; i < state_.pending.size(); ++i) rest += kReplacement;
  state_.pending.clear();
  return rest;
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() {
  return std::make_unique<ByteTokenizer>(Tokenizer::Files{
      {kConfigFile, fmt::format("{{\n  \"tokenizer_class\": \"{}\"\n}}\n", kByteClass)}});
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory) {
  if (const auto gguf = find_gguf(directory)) {
    const GgufFile file(*gguf);
    return make_gguf_tokenizer(read_gguf_vocabulary(file.metadata()), gguf->string());
  }
  if (is_torch_model(directory)) {
    return load_tokenizer(std::filesystem::absolute(directory).parent_path());
  }
  require(std::filesystem::is_directory(directory), directory.string(), "not a directory");
  Tokenizer::Files files;
  const auto read = [&](const char* name) {
    if (std::filesystem::exists(directory / name)) {
      files[name] = read_file(directory / name, kMaxTokenizerFile);
    }
  };
  // An empty object if there is no such file, or one that says nothing.
  const auto read_object = [&](const char* name) {
    read(name);
    const auto found = files.find(name);
    if (found == files.end()) return nlohmann::json();
    const std::string where = (directory / name).string();
    nlohmann::json parsed = parse_json(found->second, where);
    require(parsed.is_object(), where, "must be an object");
    return parsed;
  };
  SideFiles side{.config = read_object(kConfigFile), .special_map = {}, .added = {}};
  if (member_or_null(side.config, "tokenizer_class") == kByteClass) {
    return std::make_unique<ByteTokenizer>(std::move(files));
  }
  side.special_map = read_object("special_tokens_map.json");
  side.added = read_object("added_tokens.json");
  read("tokenizer.json");
  if (const auto found = files.find("tokenizer.json"); found != files.end()) {
    const std::string where = (directory / found->first).string();
    const nlohmann::json parsed = parse_json(found->second, where);
    return make_hf_tokenizer(parsed, side, where, std::move(files));
  }
  for (const char* name : {"tokenizer.model", "spiece.model"}) {
    read(name);
    if (!files.contains(name)) continue;
    const std::string where = (directory / name).string();
    SentencePieceModel model = read_sentencepiece_model(files.at(name), where);
    return make_sentencepiece_tokenizer(std::move(model), side, where, std::move(files));
  }
  read(kWorldFile);
  if (const auto found = files.find(kWorldFile); found != files.end()) {
    const std::string where = (directory / found->first).string();
    WorldTokens tokens = read_world_vocabulary(found->second, where);
    return make_world_tokenizer(std::move(tokens), side, where, std::move(files));
  }
  throw Error(directory.string(),
              "no tokenizer.json, no tokenizer.model, no rwkv_vocab_v20230424.txt, and no byte "
              "tokenizer",
              "name the directory of a checkpoint with its tokenizer");
}

}  // namespace pronghorn
