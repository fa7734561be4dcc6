// Values in and out of a byte string, every read checked. Little-endian, as all supported machines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace pronghorn {

template <typename T>
void put(std::string& out, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

inline void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<uint32_t>(text.size()));
  out.append(text);
}

// The take functions remove what they read from the front of `in`; they throw Error(where, ...) if
// there is not enough.
inline void take_bytes(std::span<const std::byte>& in, void* to, size_t count,
                       std::string_view where) {
  require(count <= in.size(), where, "ends too early: {} more bytes expected, {} left", count,
          in.size());
  if (count > 0) std::memcpy(to, in.data(), count);
  in = in.subspan(count);
}

template <typename T>
T take(std::span<const std::byte>& in, std::string_view where) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  take_bytes(in, &value, sizeof(T), where);
  return value;
}

inline std::string take_string(std::span<const std::byte>& in, std::string_view where) {
  const auto size = take<uint32_t>(in, where);
  require(size <= in.size(), where, "ends inside a string of {} bytes", size);
  std::string text(size, '\0');
  take_bytes(in, text.data(), size, where);
  return text;
}

}  // namespace pronghorn
