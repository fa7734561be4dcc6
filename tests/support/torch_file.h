// Files as torch.save writes them, made by hand: pickles and archives, right or wrong.
#pragma once

#include <fmt/format.h>
#include <zlib.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn::testing_support {

// The bytes of a number, little endian.
template <typename T>
std::string raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::string pickled(std::string_view text) {
  return "X" + raw(static_cast<uint32_t>(text.size())) + std::string(text);
}
inline std::string pickled(int64_t number) {
  const auto narrow = static_cast<int32_t>(number);
  return narrow == number ? "J" + raw(narrow) : "\x8a\x08" + raw(number);
}
inline std::string pickled(const std::vector<int64_t>& numbers) {
  std::string text = "(";
  for (const int64_t number : numbers) text += pickled(number);
  return text + "t";
}

struct TorchTensor {
  std::string name;
  std::string storage;  // "FloatStorage"
  std::string key;
  int64_t elements = 0;  // of the storage
  int64_t offset = 0;
  std::vector<int64_t> shape, strides;
};

inline const std::string kEmptyOrderedDict = "ccollections\nOrderedDict\n)R";

// One tensor, as torch's own _rebuild_tensor_v2 is called.
inline std::string pickled(const TorchTensor& tensor) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + pickled("storage") + "ctorch\n" +
         tensor.storage + "\n" + pickled(tensor.key) + pickled("cpu") + pickled(tensor.elements) +
         "tQ" + pickled(tensor.offset) + pickled(tensor.shape) + pickled(tensor.strides) + "\x89" +
         kEmptyOrderedDict + "tR";
}

// A state dictionary of protocol 2, with its _metadata.
inline std::string torch_pickle(const std::vector<TorchTensor>& tensors) {
  std::string text = "\x80\x02" + kEmptyOrderedDict + "q\x01(";
  for (const TorchTensor& tensor : tensors) text += pickled(tensor.name) + pickled(tensor);
  return text + "u}" + pickled("_metadata") + kEmptyOrderedDict + "sb.";
}

struct ZipPart {
  std::string name;
  std::string bytes;
  bool deflated = false;
};

inline std::string zipped(const std::vector<ZipPart>& parts) {
  std::string file, directory;
  for (const ZipPart& part : parts) {
    std::string stored = part.bytes;
    if (part.deflated) {
      z_stream stream{};
      deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
      stored.resize(deflateBound(&stream, part.bytes.size()));
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(part.bytes.data()));
      stream.avail_in = static_cast<uInt>(part.bytes.size());
      stream.next_out = reinterpret_cast<Bytef*>(stored.data());
      stream.avail_out = static_cast<uInt>(stored.size());
      deflate(&stream, Z_FINISH);
      stored.resize(stream.total_out);
      deflateEnd(&stream);
    }
    const auto checksum = static_cast<uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef*>(part.bytes.data()), part.bytes.size()));
    const auto u16 = [](size_t value) { return raw(static_cast<uint16_t>(value)); };
    const auto u32 = [](size_t value) { return raw(static_cast<uint32_t>(value)); };
    const std::string common = u16(20) + u16(0) + u16(part.deflated ? 8 : 0) + u32(0) +
                               raw(checksum) + u32(stored.size()) + u32(part.bytes.size()) +
                               u16(part.name.size()) + u16(0);
    directory += raw(uint32_t{0x02014b50}) + u16(20) + common + u16(0) + u16(0) + u16(0) + u32(0) +
                 u32(file.size()) + part.name;
    file += raw(uint32_t{0x04034b50}) + common + part.name + stored;
  }
  const auto place = static_cast<uint32_t>(file.size());
  const auto count = static_cast<uint16_t>(parts.size());
  return file + directory + raw(uint32_t{0x06054b50}) + raw(uint32_t{0}) + raw(count) + raw(count) +
         raw(static_cast<uint32_t>(directory.size())) + raw(place) + raw(uint16_t{0});
}

}  // namespace pronghorn::testing_support
