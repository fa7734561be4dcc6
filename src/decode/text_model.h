// A model with all that reading and writing texts with it needs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "formats/chat_format.h"
#include "formats/tokenizer.h"
#include "model/model.h"

namespace pronghorn {

struct TextModel {
  std::unique_ptr<Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  ChatFormat format;
};

// A checkpoint for inference, with the LoRA adapter in a directory; empty: none. The small files
// first, so that what is wrong with them is said at once. Throws Error for files that are missing,
// damaged or unsupported, for more tokens than the model has, and for a model of images or sound.
TextModel load_text_model(const std::filesystem::path& checkpoint,
                          const std::filesystem::path& adapter);

// Bytes of the weights in the files of a checkpoint, of which nothing else is read.
int64_t weight_file_bytes(const std::filesystem::path& checkpoint);

// The model alone.
std::unique_ptr<Model> load_model(const std::filesystem::path& checkpoint,
                                  const std::filesystem::path& adapter);

}  // namespace pronghorn
