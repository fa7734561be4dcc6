#include "formats/hf_tokenizer.h"

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/quote.h"
#include "formats/component.h"
#include "formats/utf8.h"
#include "formats/word_cache.h"

namespace pronghorn {
namespace {

using nlohmann::json;

class AssembledTokenizer final : public Tokenizer {
 public:
  AssembledTokenizer(TokenizerParts parts, Files files)
      : Tokenizer(std::move(files)), parts_(std::move(parts)) {
    const Vocabulary& vocabulary = parts_.model->vocabulary();
    for (size_t id = 0; id < vocabulary.size(); ++id) tokens_.push_back({vocabulary.token(id)});
    std::unordered_set<std::string> special;
    std::map<int32_t, const AddedToken*> by_id;  // of one id the last counts
    for (const AddedToken& token : parts_.added) {
      const auto id = static_cast<size_t>(token.id);
      if (id >= tokens_.size()) tokens_.resize(id + 1);
      tokens_[id] = {token.content, false, true};
      by_id[token.id] = &token;
      named_[token.content] = token.id;
      if (token.special) special.insert(token.content);
    }
    for (Token& token : tokens_) token.special = special.contains(token.text);
    std::vector<AddedToken> plain, normalized;
    for (const auto& [id, token] : by_id) {
      AddedToken match = *token;
      match.special = special.contains(match.content);
      if (match.normalized) match.content = parts_.normalizer.apply(match.content, true);
      (match.normalized ? normalized : plain).push_back(std::move(match));
    }
    plain_added_ = AddedTokenMatcher(std::move(plain));
    normalized_added_ = AddedTokenMatcher(std::move(normalized));
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    const size_t invalid = find_invalid_utf8(text);
    require(invalid == text.npos, "text", "not UTF-8 at byte {}", invalid);
    std::vector<int32_t> ids;
    if (options.add_special) ids = parts_.prefix;
    Work work;
    work.caches.resize(parts_.pre_tokenizer.steps() + 1);
    for (const TextPart& part : plain_added_.split(text, options.parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const bool begins = part.text.data() == text.data();
      const After after = begins ? options.after : After::added_token;
      std::string_view normal = part.text;
      if (!parts_.normalizer.empty()) {
        normal = work.store.emplace_back(parts_.normalizer.apply(part.text, after != After::text));
      }
      encode_normalized(normal, options.parse_special, after, work, ids);
    }
    if (options.add_special) ids.insert(ids.end(), parts_.suffix.begin(), parts_.suffix.end());
    return ids;
  }

  std::string token_bytes(int32_t id, bool special) const override {
    const Token* token = find(id, special);
    return token == nullptr ? std::string() : piece(*token, false, nullptr);
  }

  std::string next_bytes(int32_t id, DecodeState& state, bool special) const override {
    const Token* token = find(id, special);
    if (token == nullptr) return {};
    const bool known = state.previous >= 0 && state.previous < vocab_size();
    std::string bytes = piece(*token, state.at_start,
                              known ? &tokens_[static_cast<size_t>(state.previous)].text : nullptr);
    state.at_start = false;
    state.previous = id;
    return bytes;
  }

  std::string decode(std::span<const int32_t> ids, bool special) const override {
    std::vector<std::string> texts;
    texts.reserve(ids.size());
    for (const int32_t id : ids) {
      if (const Token* token = find(id, special)) texts.push_back(token->text);
    }
    return parts_.decoder.decode(std::move(texts));
  }

  bool is_special(int32_t id) const override {
    return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].special;
  }
  bool is_added(int32_t id) const override {
    return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].added;
  }
  std::optional<int32_t> find_token(std::string_view text) const override {
    const auto found = named_.find(std::string(text));
    return found == named_.end() ? parts_.model->vocabulary().find(text) : found->second;
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos() const override { return parts_.bos; }
  std::optional<int32_t> eos() const override { return parts_.eos; }

 private:
  struct Token {
    std::string text;
    bool special = false, added = false;
  };
  struct Work {
    std::vector<WordCache> caches;  // by step of the pre-tokenizer
    std::deque<std::string> store;  // texts that pieces view
  };

  // Null for what decoding leaves out: ids that are not in the vocabulary too, which a model may
  // choose when its own vocabulary is padded.
  const Token* find(int32_t id, bool special) const {
    require(id >= 0, parts_.where, "id {} is not in the vocabulary of {}", id, vocab_size());
    if (id >= vocab_size()) return nullptr;
    const Token& token = tokens_[static_cast<size_t>(id)];
    return token.text.empty() || (token.special && !special) ? nullptr : &token;
  }

  std::string piece(const Token& token, bool first, const std::string* previous) const {
    return parts_.decoder.piece(token.text, first, previous);
  }

  void encode_normalized(std::string_view text, bool special, After after, Work& work,
                         std::vector<int32_t>& ids) const {
    for (const TextPart& part : normalized_added_.split(text, special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const After behind = part.text.data() == text.data() ? after : After::added_token;
      encode_from(0, part.text, behind, work, ids);
    }
  }

  // Takes a piece through the steps of the pre-tokenizer from `step` on, and the model. What comes
  // of a short one is remembered, as soon as it depends on the piece alone.
  void encode_from(size_t step, std::string_view piece, After after, Work& work,
                   std::vector<int32_t>& ids) const {
    const bool last = step == parts_.pre_tokenizer.steps();
    if (last) {
      if (const size_t length = parts_.model->independent_part(piece); length < piece.size()) {
        for (std::string_view rest = piece; !rest.empty();) {
          const std::string_view part = rest.substr(0, parts_.model->independent_part(rest));
          encode_remembered(step, part, work, ids);
          rest.remove_prefix(part.size());
        }
        return;
      }
    }
    if (piece.size() <= WordCache::kLongest && (step > 0 || last) &&
        step >= parts_.pre_tokenizer.first_pure()) {
      return encode_remembered(step, piece, work, ids);
    }
    encode_afresh(step, piece, after, work, ids);
  }

  void encode_remembered(size_t step, std::string_view piece, Work& work,
                         std::vector<int32_t>& ids) const {
    WordCache& cache = work.caches[step];
    if (!cache.append(piece, ids)) {
      const size_t begin = ids.size();
      encode_afresh(step, piece, After::added_token, work, ids);
      cache.add(piece, std::span(ids).subspan(begin));
    }
  }

  void encode_afresh(size_t step, std::string_view piece, After after, Work& work,
                     std::vector<int32_t>& ids) const {
    if (step == parts_.pre_tokenizer.steps()) return parts_.model->encode(piece, ids);
    PreTokenizer::Pieces pieces;
    parts_.pre_tokenizer.apply(step, piece, after, work.store, pieces);
    for (size_t i = 0; i < pieces.size(); ++i) {
      encode_from(step + 1, pieces[i], i == 0 ? after : After::added_token, work, ids);
    }
  }

  TokenizerParts parts_;
  std::vector<Token> tokens_;
  std::unordered_map<std::string, int32_t> named_;  // added tokens by their text
  AddedTokenMatcher plain_added_, normalized_added_;
};

// Puts a tokenizer together from its files.
class Assembly {
 public:
  Assembly(const json& parsed, const SideFiles& side, const std::string& where)
      : side_(side),
        parts_{.where = where,
               .normalizer = Normalizer(member_or_null(parsed, "normalizer"), where),
               .pre_tokenizer = PreTokenizer(member_or_null(parsed, "pre_tokenizer"), where,
                                             prefix_space(side.config)),
               .model = make_subword_model(member_or_null(parsed, "model"), where),
               .decoder = TokenDecoder(member_or_null(parsed, "decoder"), where),
               .added = {},
               .prefix = {},
               .suffix = {},
               .bos = {},
               .eos = {}} {
    size_ = parts_.model->vocabulary().size();
    read_added(member_or_null(parsed, "added_tokens"));
    for (const Component& step : steps_of(member_or_null(parsed, "post_processor"), "processors",
                                          where + ": post_processor")) {
      read_post_processor(step);
    }
    name_ends();
  }

  TokenizerParts finish() { return std::move(parts_); }

 private:
  // Classes with a pre-tokenizer of their own take this from the configuration; for the others the
  // tokenizer.json decides.
  static std::optional<bool> prefix_space(const json& config) {
    const json& name = member_or_null(config, "tokenizer_class");
    const json& flag = member_or_null(config, "add_prefix_space");
    if (!name.is_string() || !flag.is_boolean()) return {};
    const auto& text = name.get_ref<const std::string&>();
    if (text.starts_with("PreTrainedTokenizer") || text == "TokenizersBackend") return {};
    return flag.get<bool>();
  }

  std::optional<int32_t> find(const std::string& text) const {
    const auto found = std::find_if(parts_.added.rbegin(), parts_.added.rend(),
                                    [&](const AddedToken& token) { return token.content == text; });
    if (found != parts_.added.rend()) return found->id;
    return parts_.model->vocabulary().find(text);
  }

  // A token that is in the vocabulary keeps its id, whatever a file says.
  void add(AddedToken token) {
    if (const auto known = find(token.content)) token.id = *known;
    if (token.id < 0) token.id = static_cast<int32_t>(size_);
    size_ = std::max(size_, static_cast<size_t>(token.id) + 1);
    parts_.added.push_back(std::move(token));
  }

  void read_added(const json& list) {
    const size_t vocabulary = size_;
    if (!list.is_null()) {
      for (AddedToken& token :
           read_added_tokens(list, parts_.where + ": added_tokens", vocabulary)) {
        add(std::move(token));
      }
    }
    SideTokens named =
        read_side_tokens(side_.config, side_.special_map, side_.added, parts_.where, vocabulary);
    for (AddedToken& token : named.by_id) add(std::move(token));
    for (AddedToken& token : named.named) {
      const bool known =
          std::any_of(parts_.added.begin(), parts_.added.end(),
                      [&](const AddedToken& added) { return added.content == token.content; });
      if (!known) add(std::move(token));
    }
    bos_ = named.bos;
    eos_ = named.eos;
  }

  void name_ends() {
    if (!bos_.empty()) parts_.bos = find(bos_);
    if (!eos_.empty()) parts_.eos = find(eos_);
    // With one of these in the configuration, they say what is put around a text.
    const json& add_bos = member_or_null(side_.config, "add_bos_token");
    const json& add_eos = member_or_null(side_.config, "add_eos_token");
    if (add_bos.is_boolean() || add_eos.is_boolean()) {
      parts_.prefix.clear();
      parts_.suffix.clear();
      if (add_bos == true && parts_.bos) parts_.prefix = {*parts_.bos};
      if (add_eos == true && parts_.eos) parts_.suffix = {*parts_.eos};
    }
    if (!parts_.bos && !parts_.prefix.empty()) parts_.bos = parts_.prefix.front();
  }

  int32_t checked_id(const json& id, const std::string& where) const {
    require(id.is_number_unsigned() && id.get<uint64_t>() < size_, where,
            "id {} is not in the vocabulary of {}", quote(id.dump()), size_);
    return id.get<int32_t>();
  }

  // Each step puts its tokens around what the steps before have made.
  void read_post_processor(const Component& step) {
    std::vector<int32_t> prefix, suffix;
    if (step.type() == "ByteLevel") return;  // trims offsets only
    if (step.type() == "RobertaProcessing" || step.type() == "BertProcessing") {
      for (const char* key : {"cls", "sep"}) {
        const json& pair = step.member(key);
        require(pair.is_array() && pair.size() == 2, step.where(), "'{}' must be [token, id]", key);
        (*key == 'c' ? prefix : suffix).push_back(checked_id(pair[1], step.where()));
      }
    } else if (step.type() == "TemplateProcessing") {
      bool after_text = false;
      for (const json& part : step.list("single")) {
        if (part.is_object() && part.contains("Sequence")) {
          after_text = true;
          continue;
        }
        const json& name = member_or_null(member_or_null(part, "SpecialToken"), "id");
        require(name.is_string(), step.where(), "a part of 'single' is neither text nor a token");
        const auto& text = name.get_ref<const std::string&>();
        const json& ids =
            member_or_null(member_or_null(step.member("special_tokens"), text), "ids");
        require(ids.is_array(), step.where(), "no ids of the token {}", quote(text));
        for (const json& id : ids) {
          (after_text ? suffix : prefix).push_back(checked_id(id, step.where()));
        }
      }
    } else {
      step.refuse_type();
    }
    parts_.prefix.insert(parts_.prefix.begin(), prefix.begin(), prefix.end());
    parts_.suffix.insert(parts_.suffix.end(), suffix.begin(), suffix.end());
  }

  const SideFiles& side_;
  TokenizerParts parts_;
  size_t size_ = 0;  // ids so far
  std::string bos_, eos_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts, Tokenizer::Files files) {
  return std::make_unique<AssembledTokenizer>(std::move(parts), std::move(files));
}

std::unique_ptr<Tokenizer> make_hf_tokenizer(const json& parsed, const SideFiles& side,
                                             const std::string& where, Tokenizer::Files files) {
  require(parsed.is_object(), where, "must be an object");
  return make_tokenizer(Assembly(parsed, side, where).finish(), std::move(files));
}

}  // namespace pronghorn
