#include <sentencepiece_trainer.h>

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/files.h"
#include "formats/sentencepiece_model.h"
#include "formats/sentencepiece_tokenizer.h"
#include "formats/utf8.h"

// Exported by the library, declared in none of its public headers.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace pronghorn {
namespace {

using nlohmann::json;

void silence_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    constexpr int kNothing = 100;
    sentencepiece::logging::SetMinLogLevel(kNothing);
  });
}

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
    const auto pieces = static_cast<int>(read_sentencepiece_model(model, kTrainWhere).types.size());
    if (pieces >= vocab_size) return vocab_size;
    vocab_size = pieces;
  }
  return 0;
}

}  // namespace

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
  write_file(directory / "tokenizer.model", model);
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
