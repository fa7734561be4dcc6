// A GGUF file in memory, to be changed and written again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/gguf.h"

namespace pronghorn::testing_support {

using Bytes = std::vector<std::byte>;

// A file's tensors and metadata, to be changed and written.
struct Contents {
  struct Tensor {
    const GgufTensorType* type;
    std::vector<int64_t> shape;
    Bytes bytes;
  };
  GgufMetadata metadata{"test"};
  std::map<std::string, Tensor> tensors;

  explicit Contents(const std::filesystem::path& path) {
    const GgufFile file(path);
    for (const auto& [key, value] : file.metadata().all()) {
      const Bytes bytes(value.bytes().begin(), value.bytes().end());
      const auto owner = std::make_shared<Bytes>(bytes);
      metadata.set(key, GgufValue(value.kind(), value.element(), value.count(), *owner, owner));
    }
    for (const GgufTensor& tensor : file.tensors()) {
      tensors[std::string(tensor.name)] = {
          tensor.type, tensor.shape(), {tensor.bytes.begin(), tensor.bytes.end()}};
    }
  }

  Tensor take(const std::string& name) {
    Tensor tensor = tensors.at(name);
    tensors.erase(name);
    return tensor;
  }

  void write(const std::filesystem::path& path) const {
    std::vector<GgufTensorToWrite> all;
    for (const auto& [name, tensor] : tensors) {
      const Bytes& bytes = tensor.bytes;
      all.push_back({name, tensor.type, tensor.shape, [&bytes] {
                       return GgufTensorToWrite::Bytes{bytes, nullptr};
                     }});
    }
    write_gguf(path, metadata, all);
  }
};

}  // namespace pronghorn::testing_support
