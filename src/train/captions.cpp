#include "train/captions.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "base/lines.h"
#include "base/quote.h"
#include "base/threads.h"
#include "tensor/pool.h"
#include "train/listed_file.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFile = "captions.tsv";
constexpr int64_t kMostBytes = int64_t{1} << 28;

ImageSet read_captions(const fs::path& folder) {
  const fs::path list = folder / kFile;
  if (!fs::exists(list)) {
    throw Error(list.string(), "is missing", "it needs a line FILE<TAB>CAPTION for each image");
  }
  const std::string text = read_file(list, kMostBytes);
  ImageSet set;
  std::map<std::string, int32_t, std::less<>> known;
  std::string_view rest = text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = take_line(rest);
    if (line.empty()) continue;
    const std::string where = fmt::format("{}: line {}", list.string(), number);
    const size_t tab = line.find('\t');
    require(tab != line.npos && tab > 0 && tab + 1 < line.size(), where, "is not FILE<TAB>CAPTION");
    const auto [caption, fresh] = known.try_emplace(std::string(line.substr(tab + 1)),
                                                    static_cast<int32_t>(set.classes.size()));
    if (fresh) set.classes.push_back(caption->first);
    add_image_file(set, listed_file(folder, line.substr(0, tab), where), caption->second);
  }
  require(!set.labels.empty(), list.string(), "names no images");
  return set;
}

}  // namespace

std::string CaptionFolder::identity() const {
  return fmt::format("captions {:016x} {:016x}", train.hash(), test.hash());
}

CaptionFolder read_caption_folder(const fs::path& folder) {
  return {read_captions(folder / "train"), read_captions(folder / "test")};
}

CaptionSource::CaptionSource(const ImageConfig& vision, const CaptionFolder& captions,
                             const Tokenizer& tokenizer, int64_t shift, uint64_t seed)
    : vision_(vision),
      order_(vision, captions.train, captions.test, shift, seed),
      images_(captions.test.size()),
      vocab_size_(tokenizer.vocab_size()),
      length_(vision.rows()),
      train_(texts_of(captions.train.classes, tokenizer)),
      test_(texts_of(captions.test.classes, tokenizer)) {}

// The last token of a text is asked for, but not read.
CaptionSource::Texts CaptionSource::texts_of(const std::vector<std::string>& captions,
                                             const Tokenizer& tokenizer) {
  Texts texts;
  for (const std::string& caption : captions) {
    std::vector<int32_t> text =
        tokenizer.encode(tokenizer.eos() ? caption : caption + "\n", {.parse_special = false});
    if (tokenizer.eos()) text.push_back(*tokenizer.eos());
    require(!text.empty(), "captions", "{} has no tokens", quote(caption));
    length_ = std::max(length_, vision_.rows() + std::ssize(text) - 1);
    texts.push_back(std::move(text));
  }
  return texts;
}

void CaptionSource::fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) {
  const ImageOrder::Choice choice = order_.choose(index);
  const std::vector<int32_t>& text =
      (choice.held_out ? test_ : train_)[static_cast<size_t>(choice.label)];
  const auto rows = static_cast<size_t>(vision_.rows());
  std::fill(tokens.begin(), tokens.end(), 0);
  std::fill(targets.begin(), targets.end(), -1);
  std::fill_n(tokens.begin(), rows, choice.number);
  std::copy(text.begin(), text.end() - 1, tokens.begin() + static_cast<int64_t>(rows));
  std::copy(text.begin(), text.end(), targets.begin() + static_cast<int64_t>(rows) - 1);
}

Batch CaptionSource::batch(std::span<const int32_t> tokens) const {
  const int64_t count = std::ssize(tokens) / length(), rows = vision_.rows();
  const int64_t image = rows * vision_.features();
  Batch batch = fresh_segments(tokens, length());
  PooledVector<float> pixels(static_cast<size_t>(count * image));
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto first = batch.tokens.begin() + i * length();
      order_.write(*first, pixels.data() + i * image);
      std::fill_n(first, rows, kPatch);
    }
  });
  batch.patches = Tensor::from(pixels, {count * rows, vision_.features()});
  return batch;
}

}  // namespace pronghorn
