// PyTorch's own files (torch.save; pytorch_model.bin): tensors in a pickle. Nothing of it is
// executed: of the pickle machine there is only what tensors in dictionaries need, and all else is
// refused by name. https://docs.python.org/3/library/pickletools.html, torch/serialization.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "formats/safetensors.h"
#include "formats/zip.h"

namespace pronghorn {

// A mapped file of torch.save, as an archive (since PyTorch 1.6) or in the form before. Tensors
// that are laid out without gaps are parts of the file; others are copied. Dtypes are named as in
// safetensors.
class TorchFile {
 public:
  // Throws Error naming the file, the place in the pickle and the opcode or name that was refused,
  // and for tensors that leave their storage.
  explicit TorchFile(const std::filesystem::path& path);

  // Tensors of the outermost dictionary, or of that under "state_dict", "model_state_dict", "model"
  // or "module" if the outermost has none. In the order of the alphabet.
  const std::map<std::string, SafetensorsEntry, std::less<>>& entries() const { return entries_; }

 private:
  std::map<std::string, SafetensorsEntry, std::less<>> entries_;
};

}  // namespace pronghorn
