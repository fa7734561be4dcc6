// Checkpoint directories: a config.json and the weights of a model, in the format of a family.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "model/families.h"
#include "model/model.h"

namespace pronghorn {

// Gives the model the numbers of the checkpoint in `directory`, which is of this family and of the
// very configuration of `model`. A model for inference keeps the file mapped. Throws Error for
// missing, extra or misshapen tensors.
void load_weights(Model& model, const std::filesystem::path& directory, const Family& family);

// How a model is written.
struct SaveOptions {
  // What matrices are written in, and in a directory everything else too; null: what they are in,
  // but numbers in blocks, which safetensors files do not hold, as f32. Numbers that a family packs
  // into bytes (BitNet) stay as they are: "u8" to on_tensor.
  const Encoding* encoding = nullptr;
  // Of a GGUF file that would be larger: parts of at most so many bytes (write_split_gguf).
  uint64_t part_bytes = UINT64_MAX;
  // Called for each tensor before it is written: its name, what it will be in, and its size.
  std::function<void(std::string_view name, const Encoding& in, int64_t numbers)> on_tensor;
};

// Writes config.json and model.safetensors, each file atomically. metadata: kept in the header of
// the latter. Throws Error if the family cannot express the model.
void save_checkpoint(const Model& model, const std::filesystem::path& directory,
                     const Family& family, const std::map<std::string, std::string>& metadata = {},
                     const SaveOptions& options = {});

// Writes a GGUF file, tensor by tensor: one is in memory at a time. extra: keys besides those of
// the architecture, such as the vocabulary's. Where rows are not whole blocks of the encoding asked
// for, a matrix is in Q8_0 or, failing that, F16; under encodings of 4 bits the head is in Q6_K or
// Q8_0. What is not a matrix is in F32. Returns the files, one or its parts. Throws Error if no
// GGUF architecture can express the model.
std::vector<std::filesystem::path> save_gguf(const Model& model, const std::filesystem::path& path,
                                             const GgufMetadata& extra,
                                             const SaveOptions& options = {});

}  // namespace pronghorn
