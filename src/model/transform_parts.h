// What transforms are written with.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "formats/safetensors.h"
#include "model/transform.h"
#include "tensor/encoding.h"
#include "tensor/storage.h"

namespace pronghorn {

constexpr std::string_view kTransformWhere = "transform";

inline int64_t elements(std::span<const int64_t> shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

inline std::string text(const StoredShape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

inline int64_t bytes_of(const StoredTensor& tensor) {
  return static_cast<int64_t>(tensor.bytes.size());
}

// A tensor whose bytes are yet to be written, at .first.
inline std::pair<std::byte*, StoredTensor> new_tensor(std::string dtype, StoredShape shape,
                                                      int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  auto memory = std::make_shared<Storage>(std::max<size_t>(1, size), Lifetime::model);
  std::byte* data = memory->data();
  const std::span<const std::byte> all(data, size);
  return {data, {std::move(dtype), std::move(shape), all, std::move(memory)}};
}

// f(float) of every number, in f32.
template <typename Function>
StoredTensor mapped_f32(const StoredTensor& from, Function&& f) {
  const int64_t count = elements(from.shape);
  auto [data, to] = new_tensor("F32", from.shape, count * static_cast<int64_t>(sizeof(float)));
  auto* out = reinterpret_cast<float*>(data);
  const Encoding* encoding = find_encoding(from.dtype);
  if (encoding != nullptr && encoding->block > 1) {
    encoding->decode(from.bytes.data(), count, out);
  } else {
    to_f32({from.dtype, from.shape, from.bytes, nullptr}, out, kTransformWhere);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = f(out[i]);
  return to;
}

// The bytes of one of `count` equal pieces, each of whole rows or, of a vector, whole elements.
inline int64_t piece_bytes(const StoredTensor& tensor, int64_t count) {
  const bool divides = count > 0 && bytes_of(tensor) % count == 0;
  require(divides && (tensor.shape.size() > 1 || safetensors_dtype_bytes(tensor.dtype) > 0),
          kTransformWhere, "a tensor {} {} cannot be cut into {} equal pieces", tensor.dtype,
          text(tensor.shape), count);
  return bytes_of(tensor) / count;
}

}  // namespace pronghorn
