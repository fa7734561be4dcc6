#include "train/corpus.h"

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "formats/json.h"
#include "formats/sentencepiece_tokenizer.h"
#include "train/text_source.h"

namespace pronghorn {
namespace {

constexpr const char* kSourceFile = "tokenizer_source.json";

// Enough text for vocabularies of tens of thousands.
constexpr int64_t kTokenizerBytes = 16 << 20;

// The ends of texts, which are held out, have no say in the vocabulary.
constexpr double kTokenizerShare = 0.9;

nlohmann::json describe_sources(const std::vector<std::filesystem::path>& paths,
                                int64_t vocab_size) {
  return {{"vocab_size", vocab_size}, {"texts", fmt::format("{:016x}", hash_of_texts(paths))}};
}

int64_t share_to_drop(int64_t bytes) {
  return static_cast<int64_t>(static_cast<double>(bytes) * (1 - kTokenizerShare));
}

// Shortens a text by that many bytes, or fewer, to whole characters.
void drop_end(std::string& text, int64_t bytes) {
  size_t end = text.size() - static_cast<size_t>(bytes);
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
  text.resize(end);
}

void train_tokenizer(const std::vector<std::filesystem::path>& paths, int64_t vocab_size,
                     const std::filesystem::path& directory) {
  std::vector<std::string> texts = read_documents(paths, kTokenizerBytes);
  int64_t bytes = 0;
  for (const std::string& text : texts) bytes += static_cast<int64_t>(text.size());
  if (std::ssize(texts) < kManyDocuments) {
    for (std::string& text : texts) drop_end(text, share_to_drop(std::ssize(text)));
    std::erase(texts, std::string());
  } else {
    int64_t drop = share_to_drop(bytes);
    while (!texts.empty() && drop >= std::ssize(texts.back())) {
      drop -= std::ssize(texts.back());
      texts.pop_back();
    }
    if (!texts.empty()) drop_end(texts.back(), drop);
  }
  spdlog::info("training a vocabulary of {} on {} of text", vocab_size,
               format_bytes(static_cast<double>(bytes)));
  train_sentencepiece(texts, static_cast<int>(vocab_size), directory);
}

}  // namespace

std::string Corpus::identity() const {
  return fmt::format("{:016x} {} {} {:016x}", tokenizer->fingerprint(), files.train_tokens,
                     files.train_bytes, files.hash);
}

Corpus prepare_corpus(const std::vector<std::filesystem::path>& paths, int64_t vocab_size,
                      const std::filesystem::path& directory, double held_out_fraction) {
  require(vocab_size == 0 || (vocab_size >= kMinSentencePieceVocab && vocab_size <= (1 << 20)),
          "vocabulary size", "{} is out of range (0 for bytes, or {} and more)", vocab_size,
          kMinSentencePieceVocab);
  make_directories(directory);
  Corpus corpus;
  if (vocab_size == 0) {
    corpus.tokenizer = make_byte_tokenizer();
    corpus.tokenizer_name = "bytes";
  } else {
    const nlohmann::json source = describe_sources(paths, vocab_size);
    const std::filesystem::path source_file = directory / kSourceFile;
    if (!std::filesystem::exists(source_file) || read_file(source_file) != source.dump()) {
      train_tokenizer(paths, vocab_size, directory);
      write_file(source_file, source.dump());
    }
    corpus.tokenizer = load_tokenizer(directory);
    corpus.tokenizer_name = fmt::format("sentencepiece bpe {}", vocab_size);
  }
  corpus.files = prepare_tokens(paths, *corpus.tokenizer, directory, held_out_fraction);
  return corpus;
}

Corpus prepare_corpus_with(std::unique_ptr<Tokenizer> tokenizer,
                           const std::vector<std::filesystem::path>& paths,
                           const std::filesystem::path& directory, double held_out_fraction) {
  make_directories(directory);
  Corpus corpus;
  corpus.tokenizer_name = fmt::format("given, {} tokens", tokenizer->vocab_size());
  corpus.tokenizer = std::move(tokenizer);
  corpus.files = prepare_tokens(paths, *corpus.tokenizer, directory, held_out_fraction);
  return corpus;
}

}  // namespace pronghorn
