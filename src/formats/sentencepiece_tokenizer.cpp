#include "formats/sentencepiece_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "formats/added_tokens.h"
#include "formats/byte_alphabet.h"
#include "formats/component.h"
#include "formats/normalizer.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581 stands for a space in pieces
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(SentencePieceModel model, const SentencePieceOptions& options,
                         const std::string& where, Files files)
      : Tokenizer(std::move(files)),
        where_(where),
        model_(std::move(model)),
        options_(options),
        encoder_(model_, where) {
    for (size_t id = 0; id < model_.pieces.size(); ++id) {
      const std::string& piece = model_.pieces[id];
      Token token{piece, model_.types[id] == PieceType::kControl, false, {}};
      if (model_.types[id] == PieceType::kByte) {
        token.text = std::string(1, static_cast<char>(parse_byte_token(piece).value()));
      } else if (model_.types[id] == PieceType::kUnknown) {
        token.special = true;
        token.hidden = model_.unknown_surface;
      } else if (!token.special) {
        token.text = replace_all(piece, kSpaceSymbol, " ");
      }
      tokens_.push_back(std::move(token));
    }
    for (const AddedToken& token : options_.added) add(token);
    added_ = AddedTokenMatcher(options_.added);
    options_.exact = options_.exact &&
                     *std::min_element(encoder_.byte_ids().begin(), encoder_.byte_ids().end()) >= 0;
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special && options_.add_bos && options_.bos) ids.push_back(*options_.bos);
    std::string spaced;
    After after = options.after;
    if (!options_.legacy && !options_.exact) {
      // The space is put before the text rather than each part, unless a special token comes first.
      spaced = replace_all(text, kSpaceSymbol, " ");
      text = spaced;
    }
    for (const TextPart& part : added_.split(text, options.parse_special)) {
      if (part.id >= 0) {
        if (!options_.legacy && !options_.exact && after == After::nothing &&
            !is_special(part.id)) {
          encode_part({}, after, ids);
        }
        ids.push_back(part.id);
        after = After::added_token;
        continue;
      }
      encode_part(part.text, after, ids);
      after = After::text;
    }
    if (options.add_special && options_.add_eos && options_.eos) ids.push_back(*options_.eos);
    return ids;
  }

  std::string token_bytes(int32_t id, bool special) const override {
    require(id >= 0, where_, "id {} is not in the vocabulary of {}", id, vocab_size());
    if (id >= vocab_size()) return {};  // of a padded model
    const Token& token = tokens_[static_cast<size_t>(id)];
    return token.special && !special ? token.hidden : token.text;
  }

  std::string next_bytes(int32_t id, DecodeState& state, bool special) const override {
    std::string bytes = token_bytes(id, special);
    if (is_special(id) && !special) return bytes;
    if (state.at_start && id < static_cast<int64_t>(model_.pieces.size())) {
      const bool strips = options_.legacy ? model_.add_dummy_prefix || model_.remove_extra_spaces
                                          : options_.prefix_space;
      const bool space = strips && bytes.starts_with(' ') &&
                         model_.types[static_cast<size_t>(id)] != PieceType::kByte &&
                         model_.types[static_cast<size_t>(id)] != PieceType::kUnknown;
      if (space) bytes.erase(0, 1);
      // All spaces go where extra ones do.
      state.at_start = space && bytes.empty() && model_.remove_extra_spaces;
    } else {
      state.at_start = false;
    }
    state.previous = id;
    return bytes;
  }

  std::string decode(std::span<const int32_t> ids, bool special) const override {
    const std::string bytes = Tokenizer::decode(ids, special);
    if (options_.exact || find_invalid_utf8(bytes) == bytes.npos) return bytes;
    std::string text;
    for (size_t at = 0; at < bytes.size();) {
      const size_t length = utf8_character(std::string_view(bytes).substr(at, 4));
      text += length == 0 ? kReplacement : std::string_view(bytes).substr(at, length);
      at += std::max<size_t>(length, 1);
    }
    return text;
  }

  bool is_special(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return false;
    const Token& token = tokens_[static_cast<size_t>(id)];
    return token.special && token.hidden.empty();
  }
  bool is_added(int32_t id) const override {
    return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].added;
  }
  std::optional<int32_t> find_token(std::string_view text) const override {
    for (const AddedToken& token : options_.added) {
      if (token.content == text) return token.id;
    }
    const int32_t id = encoder_.find(text);
    return id < 0 ? std::nullopt : std::optional<int32_t>(id);
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos() const override { return options_.bos; }
  std::optional<int32_t> eos() const override { return options_.eos; }

 private:
  struct Token {
    std::string text;    // what it stands for
    bool special;        // control and unknown pieces
    bool added;          // matched as a whole
    std::string hidden;  // what a special one stands for where its text is not wanted
  };

  void add(const AddedToken& added) {
    const auto id = static_cast<size_t>(added.id);
    if (id >= tokens_.size()) tokens_.resize(id + 1, Token{{}, false, false, {}});
    Token& token = tokens_[id];
    token.added = true;
    if (id >= model_.pieces.size() || model_.types[id] != PieceType::kUnknown) {
      token.special = token.special || added.special;
      token.text = added.content;
    }
  }

  void encode_part(std::string_view text, After after, std::vector<int32_t>& ids) const {
    if (options_.exact) return encode_exact(text, ids);
    if (options_.legacy) {
      const bool begins = after != After::text;
      return encoder_.encode_normalized(encoder_.normalize(text, begins, begins), ids);
    }
    // As LlamaTokenizer does without legacy: the model puts no space before a text, and one that
    // begins with a space keeps it.
    std::string spaced;
    if (after == After::nothing && options_.prefix_space) {
      spaced = std::string(kSpaceSymbol).append(text);
      text = spaced;
    }
    const bool begins =
        after != After::text && !text.starts_with(' ') && !text.starts_with(kSpaceSymbol);
    encoder_.encode_normalized(encoder_.normalize(text, begins, false), ids);
  }

  // Bytes that pieces cannot carry unchanged (U+2581, zero, invalid UTF-8) as byte tokens.
  void encode_exact(std::string_view text, std::vector<int32_t>& ids) const {
    size_t begin = 0;
    const auto flush = [&](size_t end) {
      const std::string_view part = text.substr(begin, end - begin);
      if (!part.empty()) encoder_.encode_normalized(encoder_.normalize(part, false, false), ids);
    };
    for (size_t at = 0; at < text.size();) {
      const std::string_view rest = text.substr(at, 4);
      const size_t length = utf8_character(rest);
      if (length == 0 || rest[0] == '\0' || rest.starts_with(kSpaceSymbol)) {
        flush(at);
        for (begin = at + std::max<size_t>(length, 1); at < begin; ++at) {
          ids.push_back(encoder_.byte_ids()[static_cast<unsigned char>(text[at])]);
        }
        continue;
      }
      at += length;
    }
    flush(text.size());
  }

  std::string where_;
  SentencePieceModel model_;
  SentencePieceOptions options_;
  SentencePieceEncoder encoder_;
  std::vector<Token> tokens_;
  AddedTokenMatcher added_;
};

// Reads what stands beside a model file.
SentencePieceOptions read_options(const SentencePieceModel& model, const SideFiles& side,
                                  const std::string& where) {
  SentencePieceOptions options;
  const auto flag = [&](const char* key, bool fallback) {
    const json& value = member_or_null(side.config, key);
    return value.is_boolean() ? value.get<bool>() : fallback;
  };
  size_t size = model.pieces.size();
  const auto find_piece = [&](std::string_view text) -> std::optional<int32_t> {
    const auto found = std::find(model.pieces.begin(), model.pieces.end(), text);
    if (found == model.pieces.end()) return {};
    return static_cast<int32_t>(found - model.pieces.begin());
  };
  const auto find = [&](std::string_view text) -> std::optional<int32_t> {
    for (const AddedToken& token : options.added) {
      if (token.content == text) return token.id;
    }
    return find_piece(text);
  };
  const auto add = [&](AddedToken token) {
    if (const auto known = find(token.content)) token.id = *known;
    if (token.id < 0) token.id = static_cast<int32_t>(size);
    size = std::max(size, static_cast<size_t>(token.id) + 1);
    const auto same = std::find_if(options.added.begin(), options.added.end(),
                                   [&](const AddedToken& added) { return added.id == token.id; });
    if (same == options.added.end()) {
      options.added.push_back(std::move(token));
    } else {
      *same = std::move(token);
    }
  };
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.types[id] != PieceType::kControl) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = model.pieces[id];
    token.special = true;
    options.added.push_back(std::move(token));
  }
  SideTokens named =
      read_side_tokens(side.config, side.special_map, side.added, where, model.pieces.size());
  for (AddedToken& token : named.by_id) add(std::move(token));
  for (AddedToken& token : named.named) {
    const bool known =
        std::any_of(options.added.begin(), options.added.end(),
                    [&](const AddedToken& added) { return added.content == token.content; });
    if (!known) add(std::move(token));
  }
  const auto end_of = [&](const std::string& name, const std::string& piece) {
    const std::optional<int32_t> given = name.empty() ? std::nullopt : find(name);
    if (given) return given;
    const auto id = find_piece(piece);
    const bool control = id && model.types[static_cast<size_t>(*id)] == PieceType::kControl;
    return control ? id : std::nullopt;
  };
  options.bos = end_of(named.bos, model.bos_piece);
  options.eos = end_of(named.eos, model.eos_piece);
  const json& name = member_or_null(side.config, "tokenizer_class");
  const bool encoder_decoder =
      name.is_string() && name.get_ref<const std::string&>().starts_with("T5");
  options.add_bos = flag("add_bos_token", !encoder_decoder);
  options.add_eos = flag("add_eos_token", encoder_decoder);
  options.legacy = flag("legacy", true);
  options.prefix_space = flag("add_prefix_space", true);
  options.exact = flag(kExactKey, false);
  return options;
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                        const SideFiles& side,
                                                        const std::string& where,
                                                        Tokenizer::Files files) {
  SentencePieceOptions options = read_options(model, side, where);
  return make_sentencepiece_tokenizer(std::move(model), std::move(options), where,
                                      std::move(files));
}

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                        SentencePieceOptions options,
                                                        const std::string& where,
                                                        Tokenizer::Files files) {
  return std::make_unique<SentencePieceTokenizer>(std::move(model), options, where,
                                                  std::move(files));
}

}  // namespace pronghorn
