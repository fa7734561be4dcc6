#include "formats/unigram_model.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "formats/byte_alphabet.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr double kUnknownPenalty = 10;  // below the lowest score

double lowest(const std::vector<double>& scores) {
  return scores.empty() ? 0 : *std::min_element(scores.begin(), scores.end());
}

std::vector<std::pair<std::string_view, int32_t>> texts_of(const Vocabulary& vocabulary) {
  std::vector<std::pair<std::string_view, int32_t>> texts;
  for (size_t id = 0; id < vocabulary.size(); ++id) {
    texts.emplace_back(vocabulary.token(id), static_cast<int32_t>(id));
  }
  return texts;
}

// The best way to cut a text up to some place: its sum, and the last piece.
constexpr uint32_t kUnreached = ~uint32_t{0};
template <typename Sum>
struct BestCut {
  Sum sum = 0;
  int32_t id = -1;
  uint32_t begin = kUnreached;
};

}  // namespace

UnigramCutter::UnigramCutter(std::vector<std::pair<std::string_view, int32_t>> texts,
                             std::vector<double> scores, int32_t unknown, double unknown_score,
                             bool in_float)
    : trie_(std::move(texts)),
      scores_(std::move(scores)),
      preferred_(scores_.size(), false),
      unknown_(unknown),
      unknown_score_(unknown_score),
      in_float_(in_float) {}

void UnigramCutter::prefer(int32_t id, float highest) {
  preferred_[static_cast<size_t>(id)] = true;
  highest_ = highest;
}

template <typename Sum>
std::vector<UnigramPiece> UnigramCutter::cut_by(std::string_view text,
                                                const std::string& where) const {
  require(text.size() < kUnreached, where, "a piece of {} bytes is too long", text.size());
  std::vector<BestCut<Sum>> best(text.size() + 1);
  const auto offer = [&best](size_t begin, size_t end, int32_t id, double sum) {
    BestCut<Sum>& node = best[end];
    if (node.begin == kUnreached || sum > static_cast<double>(node.sum)) {
      node.sum = static_cast<Sum>(sum);
      node.id = id;
      node.begin = static_cast<uint32_t>(begin);
    }
  };
  for (size_t at = 0; at < text.size();) {
    const size_t character = std::max<size_t>(utf8_character(text.substr(at, 4)), 1);
    const Sum here = best[at].sum;
    bool covered = false;
    trie_.for_each_prefix(text.substr(at), [&](size_t length, int32_t id) {
      const auto index = static_cast<size_t>(id);
      const double score = preferred_[index]
                               ? static_cast<double>(static_cast<float>(length) * highest_) - 0.1
                               : scores_[index];
      offer(at, at + length, id, score + static_cast<double>(here));
      covered = covered || length == character;
    });
    if (!covered) {
      require(unknown_ >= 0, where, "{} is not in the vocabulary, and no token stands for that",
              quote(text.substr(at, character)));
      const Sum sum = static_cast<Sum>(unknown_score_) + here;
      offer(at, at + character, unknown_, static_cast<double>(sum));
    }
    at += character;
  }
  std::vector<UnigramPiece> pieces;
  for (size_t end = text.size(); end > 0; end = best[end].begin) {
    const size_t begin = best[end].begin;
    pieces.push_back({text.substr(begin, end - begin), best[end].id});
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<UnigramPiece> UnigramCutter::cut(std::string_view text,
                                             const std::string& where) const {
  return in_float_ ? cut_by<float>(text, where) : cut_by<double>(text, where);
}

UnigramModel::UnigramModel(Vocabulary vocabulary, std::vector<double> scores, int32_t unknown,
                           bool byte_fallback, const std::string& where)
    : SubwordModel(std::move(vocabulary)),
      where_(where),
      unknown_(unknown),
      byte_fallback_(byte_fallback),
      cutter_(texts_of(vocabulary_), scores, unknown, lowest(scores) - kUnknownPenalty, false) {
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
}

void UnigramModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto add = [&](std::string_view text) {
    if (const auto id = vocabulary_.find(text)) {
      ids.push_back(*id);
      return;
    }
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; };
    if (byte_fallback_ && std::all_of(text.begin(), text.end(), has_byte)) {
      for (const char c : text) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      return;
    }
    ids.push_back(unknown_);
  };
  // A run of unknown pieces is one, and may itself be a token.
  std::string_view run;
  for (const UnigramPiece& part : cutter_.cut(piece, where_)) {
    if (part.id == unknown_) {
      run = run.empty() ? part.text : std::string_view(run.data(), run.size() + part.text.size());
      continue;
    }
    if (!run.empty()) add(run);
    run = {};
    ids.push_back(part.id);
  }
  if (!run.empty()) add(run);
}

std::unique_ptr<SubwordModel> make_unigram_model(const Component& model) {
  const json& list = model.list("vocab");
  if (list.empty()) model.refuse("'vocab' of a Unigram model has no tokens");
  std::vector<std::string> tokens;
  std::vector<double> scores;
  for (const json& entry : list) {
    const bool pair =
        entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_number();
    require(pair, model.where(), "vocab[{}] must be [token, score]", tokens.size());
    tokens.push_back(entry[0].get<std::string>());
    scores.push_back(entry[1].get<double>());
    require(std::isfinite(scores.back()), model.where(), "vocab[{}]: score {}", tokens.size() - 1,
            scores.back());
    require(tokens.back().size() <= kLongestUnigram, model.where(), "vocab[{}] has {} bytes",
            tokens.size() - 1, tokens.back().size());
  }
  int32_t unknown = -1;
  if (!model.member("unk_id").is_null()) {
    const uint64_t id = model.count("unk_id", 0);
    require(id < tokens.size(), model.where(), "unk_id {} is not in the vocabulary of {}", id,
            tokens.size());
    unknown = static_cast<int32_t>(id);
  }
  return std::make_unique<UnigramModel>(Vocabulary(std::move(tokens)), std::move(scores), unknown,
                                        model.flag("byte_fallback", false), model.where());
}

}  // namespace pronghorn
