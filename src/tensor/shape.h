// Shape: the extents of a tensor, held in place so that handles to tensors are copied without
// allocating memory.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace pronghorn {

class Shape {
 public:
  static constexpr size_t kMaxRank = 6;

  Shape() = default;
  // Throws Error for more than kMaxRank extents.
  Shape(std::initializer_list<int64_t> extents)
      : Shape(std::span(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const int64_t> extents);

  size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  const int64_t* begin() const { return extents_.data(); }
  const int64_t* end() const { return extents_.data() + rank_; }
  int64_t operator[](size_t index) const { return extents_[index]; }
  int64_t front() const { return extents_[0]; }
  int64_t back() const { return extents_[rank_ - 1]; }

  std::vector<int64_t> to_vector() const { return {begin(), end()}; }

  bool operator==(const Shape& other) const {
    return std::equal(begin(), end(), other.begin(), other.end());
  }

 private:
  std::array<int64_t, kMaxRank> extents_{};
  size_t rank_ = 0;
};

}  // namespace pronghorn

// "[3, 4]"
template <>
struct fmt::formatter<pronghorn::Shape> : fmt::formatter<std::string_view> {
  fmt::format_context::iterator format(const pronghorn::Shape& shape,
                                       fmt::format_context& context) const;
};
