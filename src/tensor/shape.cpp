#include "tensor/shape.h"

#include "base/error.h"

namespace pronghorn {

Shape::Shape(std::span<const int64_t> extents) : rank_(extents.size()) {
  require(extents.size() <= kMaxRank, "tensor", "{} dimensions, at most {} are supported",
          extents.size(), kMaxRank);
  std::copy(extents.begin(), extents.end(), extents_.begin());
}

}  // namespace pronghorn

fmt::format_context::iterator fmt::formatter<pronghorn::Shape>::format(
    const pronghorn::Shape& shape, fmt::format_context& context) const {
  return fmt::format_to(context.out(), "[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}
