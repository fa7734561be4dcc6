// Transforms that give heads another order.
#include <cstring>
#include <utility>

#include "model/transform_parts.h"
#include "tensor/encoding.h"

namespace pronghorn::transforms {
namespace {

// `runs` times groups x pieces of so many bytes, each group in turn, become pieces x groups.
void deal_pieces(const std::byte* from, std::byte* to, int64_t bytes, int64_t runs, int64_t groups,
                 int64_t pieces) {
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = run * groups * pieces;
    for (int64_t i = 0; i < groups * pieces; ++i) {
      const int64_t published = i % groups * pieces + i / groups;
      std::memcpy(to + (first + i) * bytes, from + (first + published) * bytes,
                  static_cast<size_t>(bytes));
    }
  }
}

// The same of a whole tensor.
StoredTensor dealt(const StoredTensor& from, int64_t runs, int64_t groups, int64_t pieces) {
  auto [data, to] = new_tensor(from.dtype, from.shape, bytes_of(from));
  deal_pieces(from.bytes.data(), data, bytes_of(from) / (runs * groups * pieces), runs, groups,
              pieces);
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

Transform rope_halves(int64_t heads, int64_t width, int64_t first) {
  const auto move = [=](const StoredTensors& tensors, int64_t groups, int64_t pieces) {
    StoredTensors moved;
    for (const StoredTensor& from : tensors) {
      const int64_t row = piece_bytes(from, from.shape.front());
      auto [data, to] = new_tensor(from.dtype, from.shape, bytes_of(from));
      std::memcpy(data, from.bytes.data(), from.bytes.size());
      deal_pieces(from.bytes.data() + first * row, data + first * row, row, heads, groups, pieces);
      moved.push_back(std::move(to));
    }
    return moved;
  };
  return Transform(
      {[=](const Shapes& ours, size_t) {
         for (const StoredShape& shape : ours) {
           require(width % 2 == 0 && !shape.empty() && first + heads * width <= shape.front(),
                   kTransformWhere, "{} has no {} heads of {} rows, in halves, from row {} on",
                   text(shape), heads, width, first);
         }
         return ours;
       },
       [=](const StoredTensors& from, const Shapes&) { return move(from, 2, width / 2); },
       [=](const StoredTensors& from, const Shapes&) { return move(from, width / 2, 2); }});
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
