#include "model/families/four_per_byte.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "formats/safetensors.h"
#include "tensor/encoding.h"

namespace pronghorn {
namespace {

constexpr int64_t kNumbersPerByte = 4;

// Bits of -1, 0 and 1 as 0, 1 and 2: byte r of a column has rows r, r + rows / 4, and so on.
std::vector<float> unpacked(const StoredTensor& packed, float factor, int64_t rows) {
  const int64_t stride = packed.shape[0], columns = packed.shape[1];
  const auto* bytes = reinterpret_cast<const uint8_t*>(packed.bytes.data());
  std::vector<float> numbers(static_cast<size_t>(rows * columns));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t shift = 2 * (row / stride);
    const uint8_t* from = bytes + row % stride * columns;
    float* to = numbers.data() + row * columns;
    for (int64_t c = 0; c < columns; ++c) {
      to[c] = factor * static_cast<float>(((from[c] >> shift) & 3) - 1);
    }
  }
  return numbers;
}

StoredTensor tensor_of(const Encoding& encoding, StoredShape shape,
                       const std::vector<float>& numbers) {
  const auto count = static_cast<int64_t>(numbers.size());
  const auto bytes =
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(encoding.bytes(count)));
  encoding.encode(numbers.data(), count, bytes->data());
  return {std::string(encoding.file_dtype), std::move(shape), *bytes, bytes};
}

std::vector<float> floats_of(const StoredTensor& tensor) {
  const SafetensorsEntry entry{tensor.dtype, tensor.shape, tensor.bytes, nullptr};
  std::vector<float> numbers(static_cast<size_t>(entry.elements()));
  to_f32(entry, numbers.data(), "ternary matrix");
  return numbers;
}

StoredTensors pack(const StoredTensors& from, const Shapes& shapes) {
  const std::vector<float> numbers = floats_of(from.at(0));
  float factor = 0;
  for (const float number : numbers) factor = std::max(factor, std::abs(number));
  const int64_t stride = shapes[0][0], columns = shapes[0][1], rows = from[0].shape[0];
  const auto bytes =
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(stride * columns));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < columns; ++c) {
      const float number = numbers[static_cast<size_t>(row * columns + c)];
      require(number == 0 || std::abs(number) == factor, "ternary matrix",
              "holds {} beside {}: more than three numbers", number, factor);
      const int code = number == 0 ? 1 : number > 0 ? 2 : 0;
      (*bytes)[static_cast<size_t>(row % stride * columns + c)] |=
          static_cast<std::byte>(code << (2 * (row / stride)));
    }
  }
  const Encoding* encoding = find_encoding(from[0].dtype);
  return {{"U8", shapes[0], *bytes, bytes},
          tensor_of(encoding == nullptr ? encodings::f32 : *encoding, {1}, {factor})};
}

}  // namespace

Transform four_per_byte() {
  return Transform(
      {[](const Shapes& ours, size_t) {
         require(ours.size() == 1 && ours[0].size() == 2 && ours[0][0] % kNumbersPerByte == 0,
                 "ternary matrix", "rows of a multiple of {} are needed", kNumbersPerByte);
         return Shapes{{ours[0][0] / kNumbersPerByte, ours[0][1]}, {1}};
       },
       [](const StoredTensors& from, const Shapes& to) {
         require(from[0].dtype == "U8", "ternary matrix", "is {} where U8 was expected",
                 from[0].dtype);
         const float factor = floats_of(from[1]).front();
         const Encoding* encoding = find_encoding(from[1].dtype);
         return StoredTensors{tensor_of(encoding == nullptr ? encodings::f32 : *encoding, to[0],
                                        unpacked(from[0], factor, to[0][0]))};
       },
       [](const StoredTensors& from, const Shapes& to) { return pack(from, to); }});
}

}  // namespace pronghorn
