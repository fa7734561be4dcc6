// The tensors of a checkpoint directory, in whichever format and number of files they are, or of
// one file of torch.save.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"

namespace pronghorn {

// The file of a directory that holds the tensors or lists the files that do: of model.safetensors,
// model.safetensors.index.json, pytorch_model.bin and pytorch_model.bin.index.json the first that
// is there, in small letters or others.
std::optional<std::filesystem::path> find_weights(const std::filesystem::path& directory);

// Whether a path is a model in one file of torch.save that has no directory of its own: a file that
// ends in .pth. Its tokenizer, if there is one, lies beside it.
bool is_torch_model(const std::filesystem::path& path);

// All tensors of the files that find_weights() leads to. Shards must lie in the directory itself.
// What an index says counts where two shards hold a tensor of the same name; tensors that it does
// not list are there all the same. Tensors with scales beside them are one
// (formats/scaled_tensors.h).
class CheckpointReader {
 public:
  // directory: or a path of which is_torch_model() holds, for the tensors of that file. Throws
  // Error if there are no such files, or one is malformed or missing.
  explicit CheckpointReader(const std::filesystem::path& directory);

  // In the order of the alphabet.
  std::vector<std::string> names() const;
  // Null if there is no such tensor.
  const SafetensorsEntry* find(std::string_view name) const;
  // Throws Error, with the nearest name, if there is no such tensor.
  const SafetensorsEntry& at(std::string_view name) const;
  // The path that it was made for.
  const std::filesystem::path& directory() const { return directory_; }

 private:
  using Entries = std::map<std::string, SafetensorsEntry, std::less<>>;

  static Entries read(const std::filesystem::path& file);
  void read_shards(const std::filesystem::path& index);

  std::filesystem::path directory_;
  Entries entries_;
  // Tensors that the index lists for a file that does not hold them.
  std::map<std::string, std::string, std::less<>> absent_;
};

}  // namespace pronghorn
