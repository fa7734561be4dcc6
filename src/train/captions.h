// Images with a text each: folders of them, and examples for a model of texts that sees images.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer.h"
#include "train/images.h"

namespace pronghorn {

// Where tasks are named, this one stands for images with captions.
inline bool is_captions_task(std::string_view name) { return name == "captions"; }

// The two parts of FOLDER: train/captions.tsv and test/captions.tsv, with a line "FILE<TAB>CAPTION"
// for each image, FILE beside them. The classes of a set are its captions, each once.
// Throws Error for lines without a caption, names that lead out of the folder, and unless all
// images have one size.
struct CaptionFolder {
  ImageSet train, test;
  std::string identity() const;  // guards resumption
};
CaptionFolder read_caption_folder(const std::filesystem::path& folder);

// Examples of an image, in an ImageOrder, and its caption, which ends with the tokenizer's end
// token, or a new line if there is none. From the last row of the image on each is asked for the
// next token of the caption; all examples are as long as the longest.
class CaptionSource final : public DataSource {
 public:
  // captions must outlive it. Throws Error if the images are not of this size.
  CaptionSource(const ImageConfig& vision, const CaptionFolder& captions,
                const Tokenizer& tokenizer, int64_t shift, uint64_t seed);

  int64_t length() const override { return length_; }
  int64_t vocab_size() const override { return vocab_size_; }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override;
  Batch batch(std::span<const int32_t> tokens) const override;
  int64_t held_out_examples() const override { return images_; }

 private:
  using Texts = std::vector<std::vector<int32_t>>;

  Texts texts_of(const std::vector<std::string>& captions, const Tokenizer& tokenizer);

  ImageConfig vision_;
  ImageOrder order_;
  int64_t images_, vocab_size_, length_;
  Texts train_, test_;  // of each caption
};

}  // namespace pronghorn
