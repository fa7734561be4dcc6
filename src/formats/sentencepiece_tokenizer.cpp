#include "formats/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/files.h"
#include "formats/added_tokens.h"
#include "formats/bpe.h"
#include "formats/hf_tokenizer.h"
#include "formats/sentencepiece_model.h"
#include "formats/text_steps.h"
#include "formats/utf8.h"

// Exported by the library, declared in none of its public headers.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581 stands for a space in pieces
constexpr std::string_view kUnknownText = " \xE2\x81\x87 ";
constexpr const char* kModelFile = "tokenizer.model";
// Written by our trainer: the text's own U+2581 is encoded as bytes, since a piece of that name
// would decode to a space. Published models do without, as their reference does.
constexpr const char* kExactKey = "pronghorn_exact";

void silence_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    constexpr int kNothing = 100;
    sentencepiece::logging::SetMinLogLevel(kNothing);
  });
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const json& config, const std::string& where, Files files)
      : Tokenizer(std::move(files)), where_(where) {
    silence_library();
    const std::string& bytes = this->files().at(kModelFile);
    const SentencePieceModel model = check_sentencepiece_model(bytes, where);
    const auto status = processor_.LoadFromSerializedProto(bytes);
    require(status.ok(), where, "not a usable SentencePiece model: {}", status.ToString());
    require(static_cast<size_t>(processor_.GetPieceSize()) == model.types.size(), where,
            "{} pieces, of which {} are usable", model.types.size(), processor_.GetPieceSize());
    read_pieces(model);
    read_config(config);
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special && add_bos_) ids.push_back(processor_.bos_id());
    for (const TextPart& part : added_.split(text, options.parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else if (exact_) {
        encode_exact(part.text, ids);
      } else {
        encode_plain(part.text, ids);
      }
    }
    if (options.add_special && add_eos_) ids.push_back(processor_.eos_id());
    return ids;
  }

  std::string token_bytes(int32_t id, bool special) const override {
    require(id >= 0 && id < vocab_size(), where_, "id {} is not in the vocabulary of {}", id,
            vocab_size());
    const Token& token = tokens_[static_cast<size_t>(id)];
    return token.special && !special ? token.hidden : token.text;
  }

  bool adds_space() const override { return adds_space_; }
  bool is_special(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return false;
    const Token& token = tokens_[static_cast<size_t>(id)];
    return token.special && token.hidden.empty();
  }
  bool is_added(int32_t id) const override {
    return std::any_of(added_list_.begin(), added_list_.end(),
                       [&](const AddedToken& token) { return token.id == id; });
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos() const override { return valid(processor_.bos_id()); }
  std::optional<int32_t> eos() const override { return valid(processor_.eos_id()); }

 private:
  struct Token {
    std::string text;    // what it stands for
    bool special;        // control and unknown pieces
    std::string hidden;  // what a special one stands for where its text is not wanted
  };

  static std::optional<int32_t> valid(int id) {
    return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
  }

  void read_pieces(const SentencePieceModel& model) {
    byte_ids_.assign(256, -1);
    for (size_t id = 0; id < model.types.size(); ++id) {
      const std::string& piece = processor_.IdToPiece(static_cast<int>(id));
      Token token{piece, false, {}};
      switch (model.types[id]) {
        case PieceType::kByte: {
          const std::optional<unsigned char> byte = parse_byte_token(piece);
          require(byte.has_value(), where_, "byte piece '{}' names no byte", piece);
          byte_ids_[*byte] = static_cast<int32_t>(id);
          token.text = std::string(1, static_cast<char>(*byte));
          break;
        }
        case PieceType::kControl:
          token.special = true;
          added_list_.push_back({static_cast<int32_t>(id), piece, true});
          break;
        case PieceType::kUnknown:
          token.special = true;
          token.hidden = kUnknownText;
          break;
        default:
          token.text = replace_all(piece, kSpaceSymbol, " ");
      }
      tokens_.push_back(std::move(token));
    }
    std::vector<std::string> pieces;
    const auto status = processor_.Encode("x", &pieces);
    require(status.ok(), where_, "cannot encode: {}", status.ToString());
    newline_ = processor_.PieceToId("\n");
    tab_ = processor_.PieceToId("\t");
    words_apart_ = check_words_apart(model);
    adds_space_ = !pieces.empty() && pieces[0].starts_with(kSpaceSymbol);
  }

  void read_config(const json& config) {
    const auto flag = [&](const char* key, bool fallback) {
      const auto found = config.find(key);
      return found != config.end() && found->is_boolean() ? found->get<bool>() : fallback;
    };
    add_bos_ = flag("add_bos_token", true) && bos().has_value();
    add_eos_ = flag("add_eos_token", false) && eos().has_value();
    exact_ = flag(kExactKey, false) && *std::min_element(byte_ids_.begin(), byte_ids_.end()) >= 0;
    if (const auto found = config.find("added_tokens_decoder"); found != config.end()) {
      const std::string where = where_ + ": added_tokens_decoder";
      for (const AddedToken& token : read_added_tokens(*found, where, tokens_.size())) {
        const auto id = static_cast<size_t>(token.id);
        const bool known = id < tokens_.size();
        if (known && tokens_[id].special) continue;  // a control piece that is there already
        if (!known) tokens_.resize(id + 1, Token{{}, true, {}});
        tokens_[id] = {token.content, token.special, {}};
        added_list_.push_back(token);
      }
    }
    added_ = AddedTokenMatcher(added_list_);
  }

  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<int> part;
    const auto status = processor_.Encode({text.data(), text.size()}, &part);
    require(status.ok(), where_, "cannot encode: {}", status.ToString());
    ids.insert(ids.end(), part.begin(), part.end());
  }

  // Bytes that pieces cannot carry unchanged (U+2581, zero, invalid UTF-8) as byte tokens, line
  // ends and tabs as their own, and the rest word by word, each word once.
  void encode_exact(std::string_view text, std::vector<int32_t>& ids) const {
    std::unordered_map<std::string_view, std::vector<int32_t>> words;
    size_t begin = 0;
    const auto flush = [&](size_t end) {
      if (end == begin) return;
      const std::string_view word = text.substr(begin, end - begin);
      auto [found, fresh] = words.try_emplace(word);
      if (fresh) encode_plain(word, found->second);
      ids.insert(ids.end(), found->second.begin(), found->second.end());
      begin = end;
    };
    for (size_t at = 0; at < text.size();) {
      const std::string_view rest = text.substr(at, 4);
      const size_t length = utf8_character(rest);
      const bool own = words_apart_ && (rest[0] == '\n' || rest[0] == '\t');
      if (own || length == 0 || rest[0] == '\0' || rest.starts_with(kSpaceSymbol)) {
        flush(at);
        begin = at + std::max<size_t>(length, 1);
        if (own) ids.push_back(rest[0] == '\n' ? newline_ : tab_);
        for (; at < begin; ++at) {
          if (!own) ids.push_back(byte_ids_[static_cast<unsigned char>(text[at])]);
        }
        continue;
      }
      if (words_apart_ && rest[0] == ' ' && at > begin && text[at - 1] != ' ') flush(at);
      at += length;
    }
    flush(text.size());
  }

  // True if encoding words apart is encoding the whole: newline and tab are pieces of their own,
  // and no other piece continues after a word into the next one's space.
  bool check_words_apart(const SentencePieceModel& model) const {
    const auto own = [&](int32_t id) {
      return model.types[static_cast<size_t>(id)] == PieceType::kUserDefined;
    };
    if (!own(newline_) || !own(tab_)) return false;
    for (size_t id = 0; id < model.types.size(); ++id) {
      const std::string& text = tokens_[id].text;
      const auto type = model.types[id];
      if (type == PieceType::kUserDefined) {
        if (text.size() > 1) return false;
      } else if (type == PieceType::kNormal) {
        const size_t word = text.find_first_not_of(' ');
        if (word != text.npos && text.find(' ', word) != text.npos) return false;
      }
    }
    return true;
  }

  std::string where_;
  sentencepiece::SentencePieceProcessor processor_;
  std::vector<Token> tokens_;
  std::vector<int32_t> byte_ids_;  // -1 where the model has no such byte
  int32_t newline_ = 0, tab_ = 0;
  std::vector<AddedToken> added_list_;
  AddedTokenMatcher added_;
  bool add_bos_ = false, add_eos_ = false, exact_ = false, adds_space_ = false,
       words_apart_ = false;
};

using Characters = std::unordered_set<uint32_t>;

// The `most` commonest characters of the texts; of equally common ones, those with lower codes.
Characters common_characters(const std::vector<std::string>& texts, size_t most) {
  std::unordered_map<uint32_t, int64_t> counts;
  for (const std::string_view text : texts) {
    for (size_t at = 0; at < text.size();) {
      const size_t length = utf8_character(text.substr(at, 4));
      if (length != 0) ++counts[decode_utf8(text.substr(at, length))];
      at += std::max<size_t>(length, 1);
    }
  }
  // Tokens of their own (newline, tab), and what the library gives a meaning (zero, U+2581).
  for (const uint32_t code : {0x0Au, 0x09u, 0x00u, 0x2581u}) counts.erase(code);
  std::vector<std::pair<int64_t, uint32_t>> sorted;
  for (const auto& [code, count] : counts) sorted.emplace_back(-count, code);
  std::sort(sorted.begin(), sorted.end());
  if (sorted.size() > most) sorted.resize(most);
  Characters common;
  for (const auto& item : sorted) common.insert(item.second);
  return common;
}

// Hands texts to the trainer in runs of common characters: every other character ends a run, so
// that it takes no place in the vocabulary.
class Sentences final : public sentencepiece::SentenceIterator {
 public:
  Sentences(const std::vector<std::string>& texts, const Characters& common)
      : texts_(texts), common_(common) {
    Next();
  }

  bool done() const override { return done_; }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    sentence_.clear();
    while (text_ < texts_.size()) {
      const std::string_view rest = std::string_view(texts_[text_]).substr(at_);
      const size_t length = utf8_character(rest.substr(0, 4));
      const std::string_view character = rest.substr(0, length);
      const bool common = length != 0 && common_.contains(decode_utf8(character));
      // Runs that grow too long end before a space.
      const bool full =
          sentence_.size() >= kLongest || (sentence_.size() >= kLongest / 2 && character == " ");
      if (!sentence_.empty() && (!common || full)) return;
      if (common) sentence_ += character;
      at_ += std::max<size_t>(length, 1);
      if (at_ >= texts_[text_].size()) {
        ++text_;
        at_ = 0;
        if (!sentence_.empty()) return;
      }
    }
    done_ = true;
  }

  static constexpr size_t kLongest = 16384;

 private:
  const std::vector<std::string>& texts_;
  const Characters& common_;
  size_t text_ = 0, at_ = 0;
  std::string sentence_;
  bool done_ = false;
};

constexpr const char* kTrainWhere = "tokenizer training";
constexpr int kFixedPieces = 3 + 256 + 2;  // unknown, bos, eos; bytes; newline, tab

// A trained model, or an empty string if the text is too small for the vocabulary. exact: make
// vocab_size pieces; otherwise make fewer if there is no more to merge.
std::string train_model(const std::vector<std::string>& texts, int vocab_size, bool exact) {
  // At most half of what is not fixed goes to single characters, the rest to merges.
  const Characters common =
      common_characters(texts, static_cast<size_t>(vocab_size - kFixedPieces) / 2);
  Sentences sentences(texts, common);
  if (sentences.done()) throw Error(kTrainWhere, "no text to train on", "give it some text");
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocab_size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"user_defined_symbols", "\n,\t"},
      {"character_coverage", "1"},
      {"num_threads", "1"},
      {"hard_vocab_limit", exact ? "true" : "false"},
      {"minloglevel", "100"}};
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &model);
  return status.ok() ? model : std::string();
}

// The largest vocabulary that the text fills, or 0. Fewer pieces mean fewer characters among them,
// and so fewer merges: the search steps down until a size holds.
int largest_vocabulary(const std::vector<std::string>& texts, int vocab_size) {
  while (vocab_size >= kMinSentencePieceVocab) {
    const std::string model = train_model(texts, vocab_size, false);
    if (model.empty()) return 0;
    const auto pieces =
        static_cast<int>(check_sentencepiece_model(model, kTrainWhere).types.size());
    if (pieces >= vocab_size) return vocab_size;
    vocab_size = pieces;
  }
  return 0;
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const json& config,
                                                        const std::string& where,
                                                        Tokenizer::Files files) {
  return std::make_unique<SentencePieceTokenizer>(config, where, std::move(files));
}

void train_sentencepiece(const std::vector<std::string>& texts, int vocab_size,
                         const std::filesystem::path& directory) {
  constexpr int kMaxVocab = 1 << 20;
  if (vocab_size < kMinSentencePieceVocab || vocab_size > kMaxVocab) {
    throw Error(kTrainWhere, fmt::format("a vocabulary of {}", vocab_size),
                fmt::format("choose from {} to {}", kMinSentencePieceVocab, kMaxVocab));
  }
  silence_library();
  const std::string model = train_model(texts, vocab_size, true);
  if (model.empty()) {
    const int largest = largest_vocabulary(texts, vocab_size);
    throw Error(kTrainWhere,
                fmt::format("the text is too small for a vocabulary of {}", vocab_size),
                largest > 0 ? fmt::format("choose at most {}, or give more text", largest)
                            : "give more text");
  }
  pronghorn::make_directories(directory);
  write_file(directory / kModelFile, model);
  json config = {{"tokenizer_class", "LlamaTokenizer"},
                 {"legacy", false},
                 {"add_bos_token", false},
                 {"add_eos_token", false},
                 {"add_prefix_space", false},
                 {"bos_token", "<s>"},
                 {"eos_token", "</s>"},
                 {"unk_token", "<unk>"},
                 {kExactKey, true}};
  write_file(directory / "tokenizer_config.json", config.dump(2) + "\n");
}

}  // namespace pronghorn
