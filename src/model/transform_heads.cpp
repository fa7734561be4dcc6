// Transforms that give heads another order.
#include <cstring>
#include <utility>

#include "model/transform_parts.h"
#include "tensor/encoding.h"

namespace pronghorn::transforms {
namespace {

// `runs` times groups x pieces of equal size, each group in turn, become pieces x groups.
StoredTensor dealt(const StoredTensor& from, int64_t runs, int64_t groups, int64_t pieces) {
  const int64_t bytes = bytes_of(from) / (runs * groups * pieces);
  auto [data, to] = new_tensor(from.dtype, from.shape, bytes_of(from));
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = run * groups * pieces;
    for (int64_t i = 0; i < groups * pieces; ++i) {
      const int64_t published = i % groups * pieces + i / groups;
      std::memcpy(data + (first + i) * bytes, from.bytes.data() + (first + published) * bytes,
                  static_cast<size_t>(bytes));
    }
  }
  return to;
}

bool are_blocks(const StoredTensor& tensor, int64_t columns) {
  const Encoding* encoding = find_encoding(tensor.dtype);
  return encoding == nullptr || columns % encoding->block == 0;
}

StoredTensor dealt_columns(const StoredTensor& from, int64_t groups, int64_t pieces) {
  return dealt(from, elements(from.shape) / from.shape.back(), groups, pieces);
}

void check(const StoredShape& shape, int64_t axis, int64_t groups, int64_t pieces) {
  const bool fits = groups > 0 && pieces > 0 && axis % (groups * pieces) == 0;
  require(fits, kTransformWhere, "{} does not divide into {} groups of {}", text(shape), groups,
          pieces);
}

}  // namespace

Transform deal(int64_t groups, int64_t pieces, size_t first) {
  const auto move = [first](const StoredTensors& from, int64_t g, int64_t p) {
    StoredTensors to = from;
    for (size_t i = first; i < to.size(); ++i) {
      piece_bytes(to[i], g * p);
      to[i] = dealt(to[i], 1, g, p);
    }
    return to;
  };
  return Transform(
      {[=](const Shapes& ours, size_t) {
         for (size_t i = first; i < ours.size(); ++i) {
           check(ours[i], ours[i].empty() ? 1 : ours[i].front(), groups, pieces);
         }
         return ours;
       },
       [=](const StoredTensors& from, const Shapes&) { return move(from, groups, pieces); },
       [=](const StoredTensors& from, const Shapes&) { return move(from, pieces, groups); }});
}

Transform deal_columns(int64_t groups, int64_t pieces) {
  const int64_t count = groups * pieces;
  Transform::Step step;
  step.columns = true;
  step.published_shapes = [=](const Shapes& ours, size_t) {
    for (const StoredShape& shape : ours) {
      check(shape, shape.empty() ? 1 : shape.back(), groups, pieces);
    }
    return ours;
  };
  step.forward = [=](const StoredTensors& from, const Shapes&) {
    StoredTensors to;
    for (const StoredTensor& tensor : from) {
      const int64_t columns = tensor.shape.back() / count;
      require(are_blocks(tensor, columns), kTransformWhere,
              "heads of {} columns are not whole blocks of {}", columns, tensor.dtype);
      to.push_back(dealt_columns(tensor, groups, pieces));
    }
    return to;
  };
  step.inverse = [=](const StoredTensors& from, const Shapes&) {
    StoredTensors to;
    for (const StoredTensor& tensor : from) {
      const bool blocks = are_blocks(tensor, tensor.shape.back() / count);
      to.push_back(
          dealt_columns(blocks ? tensor : mapped_f32(tensor, std::identity()), pieces, groups));
    }
    return to;
  };
  return Transform(std::move(step));
}

}  // namespace pronghorn::transforms
