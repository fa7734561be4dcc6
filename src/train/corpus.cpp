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

// The end of the text, which is held out, has no say in the vocabulary.
constexpr double kTokenizerShare = 0.9;

nlohmann::json describe_sources(const std::vector<std::filesystem::path>& paths,
                                int64_t vocab_size) {
  return {{"vocab_size", vocab_size}, {"texts", fmt::format("{:016x}", hash_of_texts(paths))}};
}

void train_tokenizer(const std::vector<std::filesystem::path>& paths, int64_t vocab_size,
                     const std::filesystem::path& directory) {
  std::vector<std::string> texts = read_documents(paths, kTokenizerBytes);
  int64_t bytes = 0;
  for (const std::string& text : texts) bytes += static_cast<int64_t>(text.size());
  auto drop = static_cast<int64_t>(static_cast<double>(bytes) * (1 - kTokenizerShare));
  while (!texts.empty() && drop >= static_cast<int64_t>(texts.back().size())) {
    drop -= static_cast<int64_t>(texts.back().size());
    texts.pop_back();
  }
  if (!texts.empty()) {
    std::string& last = texts.back();
    size_t end = last.size() - static_cast<size_t>(drop);
    while (end < last.size() && (static_cast<unsigned char>(last[end]) & 0xC0) == 0x80) ++end;
    last.resize(end);
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
