#include "model/transform.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/threads.h"
#include "model/transform_parts.h"

namespace pronghorn {
namespace {

constexpr std::string_view kWhere = kTransformWhere;

// How parts lie in a whole: one after another along an axis, in each of several groups; or, in a
// stack, along a new first axis.
struct Layout {
  size_t axis = 0;
  int64_t groups = 1;
  bool stack = false;

  // The whole of these parts.
  StoredShape united(const Shapes& parts) const {
    require(!parts.empty(), kWhere, "no parts");
    StoredShape whole = parts.front();
    if (stack) {
      for (const StoredShape& part : parts) require_alike(part, whole, parts.front());
      whole.insert(whole.begin(), static_cast<int64_t>(parts.size()));
      return whole;
    }
    check_axis(whole);
    whole[axis] = 0;
    for (const StoredShape& part : parts) {
      require(axis < part.size() && part[axis] % groups == 0, kWhere,
              "{} does not divide into {} groups", text(part), groups);
      StoredShape rest = part;
      rest[axis] = whole[axis];
      require_alike(rest, whole, part);
      whole[axis] += part[axis];
    }
    return whole;
  }

  // `count` equal parts of this whole.
  Shapes divided(const StoredShape& whole, int64_t count) const {
    StoredShape part = whole;
    if (stack) {
      require(!part.empty() && part.front() == count, kWhere, "{} is not a stack of {} tensors",
              text(whole), count);
      part.erase(part.begin());
    } else {
      check_axis(whole);
      require(count > 0 && part[axis] % (count * groups) == 0, kWhere,
              "{} does not divide into {} parts in {} groups", text(whole), count, groups);
      part[axis] /= count;
    }
    return Shapes(static_cast<size_t>(count), part);
  }

  StoredTensor unite(StoredTensors parts, const StoredShape& whole) const {
    // Parts of different dtypes can only meet in f32.
    const auto alike = [&](const StoredTensor& part) { return part.dtype == parts[0].dtype; };
    if (!std::ranges::all_of(parts, alike)) {
      for (StoredTensor& part : parts) part = mapped_f32(part, std::identity());
    }
    const int64_t count = pieces(whole);
    int64_t group = 0;
    for (const StoredTensor& part : parts) group += piece_bytes(part, count);
    auto [data, result] = new_tensor(parts[0].dtype, whole, group * count);
    std::byte* to = data;
    for (const StoredTensor& part : parts) {
      const int64_t piece = bytes_of(part) / count;
      copy_pieces(to, group, part.bytes.data(), piece, piece, count);
      to += piece;
    }
    return result;
  }

  StoredTensors divide(const StoredTensor& whole, const Shapes& parts) const {
    const int64_t count = pieces(whole.shape), group = piece_bytes(whole, count);
    const int64_t bytes_per_row = piece_bytes(whole, rows(whole.shape));
    StoredTensors result;
    int64_t begin = 0;  // of the part in a group
    for (const StoredShape& shape : parts) {
      const int64_t bytes = rows(shape) * bytes_per_row, piece = bytes / count;
      require(piece * count == bytes && begin + piece <= group, kWhere,
              "rows of {} are not whole in parts of {}", text(whole.shape), text(shape));
      const auto first = static_cast<size_t>(begin), size = static_cast<size_t>(piece);
      if (count == 1) {
        result.push_back({whole.dtype, shape, whole.bytes.subspan(first, size), whole.owner});
      } else {
        auto [data, part] = new_tensor(whole.dtype, shape, bytes);
        copy_pieces(data, piece, whole.bytes.data() + begin, group, piece, count);
        result.push_back(std::move(part));
      }
      begin += piece;
    }
    return result;
  }

 private:
  void check_axis(const StoredShape& shape) const {
    require(groups > 0 && axis < shape.size() && (axis + 1 < shape.size() || axis == 0), kWhere,
            "{} has no axis {} of whole rows", text(shape), axis);
  }

  static void require_alike(const StoredShape& rest, const StoredShape& whole,
                            const StoredShape& part) {
    require(rest == whole, kWhere, "{} does not fit beside the other parts", text(part));
  }

  // Pieces of each part: it has one in every group of every index of the axes before.
  int64_t pieces(const StoredShape& whole) const {
    return stack ? 1 : elements(std::span(whole).first(axis)) * groups;
  }

  // Of all axes but the last; elements of a vector.
  int64_t rows(const StoredShape& shape) const {
    // A stack of vectors has them as rows.
    if (shape.size() <= 1) return stack ? 1 : elements(shape);
    return elements(std::span(shape).first(shape.size() - 1));
  }

  static void copy_pieces(std::byte* to, int64_t to_stride, const std::byte* from,
                          int64_t from_stride, int64_t bytes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * to_stride, from + i * from_stride, static_cast<size_t>(bytes));
    }
  }
};

Transform from_whole(const Layout& layout) {
  return Transform(
      {[=](const Shapes& ours, size_t) { return Shapes{layout.united(ours)}; },
       [=](const StoredTensors& from, const Shapes& to) { return layout.divide(from.at(0), to); },
       [=](const StoredTensors& from, const Shapes& to) {
         return StoredTensors{layout.unite(from, to.at(0))};
       }});
}

Transform from_parts(const Layout& layout) {
  return Transform(
      {[=](const Shapes& ours, size_t count) {
         require(ours.size() == 1, kWhere, "joins into one tensor, not {}", ours.size());
         return layout.divided(ours[0], static_cast<int64_t>(count));
       },
       [=](const StoredTensors& from, const Shapes& to) {
         return StoredTensors{layout.unite(from, to.at(0))};
       },
       [=](const StoredTensors& from, const Shapes& to) { return layout.divide(from.at(0), to); }});
}

StoredTensors transposed(const StoredTensors& tensors, const Shapes& to, size_t every) {
  StoredTensors result;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i % every != 0) {
      result.push_back(tensors[i]);
      continue;
    }
    // Columns of blocks are no blocks: their numbers are, in f32.
    const bool blocks = safetensors_dtype_bytes(tensors[i].dtype) <= 0;
    const StoredTensor from = blocks ? mapped_f32(tensors[i], std::identity()) : tensors[i];
    const int64_t element = safetensors_dtype_bytes(from.dtype);
    const int64_t rows = to[i].back(), columns = from.shape.back();
    auto [data, out] = new_tensor(from.dtype, to[i], bytes_of(from));
    constexpr int64_t kGrain = 64;
    parallel_for(elements(to[i]) / rows, kGrain, [&, data = data](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t matrix = row / columns * columns * rows;
        const std::byte* in = from.bytes.data() + (matrix + row % columns) * element;
        std::byte* at = data + row * rows * element;
        for (int64_t k = 0; k < rows; ++k) {
          std::memcpy(at + k * element, in + k * columns * element, static_cast<size_t>(element));
        }
      }
    });
    result.push_back(std::move(out));
  }
  return result;
}

// The row of a published head that is row `row` of ours.
int64_t paired_row(int64_t row, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  return row < rotary_dim ? row % half * 2 + row / half : row;
}

StoredTensors move_pairs(const StoredTensors& tensors, int64_t heads, int64_t rotary_dim,
                         bool to_ours) {
  StoredTensors result;
  for (const StoredTensor& from : tensors) {
    const int64_t rows = from.shape.at(0), head_dim = rows / heads;
    const int64_t rotary = rotary_dim == 0 ? head_dim : rotary_dim;
    const int64_t bytes = piece_bytes(from, rows);
    auto [data, to] = new_tensor(from.dtype, from.shape, bytes_of(from));
    for (int64_t ours = 0; ours < rows; ++ours) {
      const int64_t channel = ours % head_dim;
      const int64_t published = ours - channel + paired_row(channel, rotary);
      std::memcpy(data + (to_ours ? ours : published) * bytes,
                  from.bytes.data() + (to_ours ? published : ours) * bytes,
                  static_cast<size_t>(bytes));
    }
    result.push_back(std::move(to));
  }
  return result;
}

StoredTensors with_halves_swapped(const StoredTensors& tensors, const Shapes& to) {
  StoredTensors result;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensor& from = tensors[i];
    const int64_t halves = 2 * elements(to[i]) / to[i].back();
    const Encoding* encoding = find_encoding(from.dtype);
    require(encoding == nullptr || to[i].back() / 2 % encoding->block == 0, kWhere,
            "half a row of {} is not whole blocks of {}", text(to[i]), from.dtype);
    const int64_t bytes = piece_bytes(from, halves);
    auto [data, swapped] = new_tensor(from.dtype, to[i], bytes_of(from));
    for (int64_t half = 0; half < halves; ++half) {
      std::memcpy(data + (half ^ 1) * bytes, from.bytes.data() + half * bytes,
                  static_cast<size_t>(bytes));
    }
    result.push_back(std::move(swapped));
  }
  return result;
}

StoredTensors reshaped(StoredTensors tensors, const Shapes& to) {
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].shape = to.at(i);
  return tensors;
}

}  // namespace

namespace transforms {

Transform squeeze(size_t axis) {
  return Transform({[axis](Shapes shapes, size_t) {
                      for (StoredShape& shape : shapes) {
                        require(axis <= shape.size(), kWhere, "{} has no place for an axis {}",
                                text(shape), axis);
                        shape.insert(shape.begin() + static_cast<std::ptrdiff_t>(axis), 1);
                      }
                      return shapes;
                    },
                    reshaped, reshaped});
}

Transform fold(int64_t n) {
  return Transform({[n](Shapes shapes, size_t) {
                      for (StoredShape& shape : shapes) {
                        require(n > 0 && !shape.empty() && shape[0] % n == 0, kWhere,
                                "{} does not fold out into {}", text(shape), n);
                        shape[0] /= n;
                        shape.insert(shape.begin(), n);
                      }
                      return shapes;
                    },
                    reshaped, reshaped});
}

Transform unfold(int64_t n) {
  return Transform({[n](Shapes shapes, size_t) {
                      for (StoredShape& shape : shapes) {
                        require(shape.size() >= 2 && shape[0] == n, kWhere, "{} is not {} of them",
                                text(shape), n);
                        shape[1] *= n;
                        shape.erase(shape.begin());
                      }
                      return shapes;
                    },
                    reshaped, reshaped});
}

Transform repeated() {
  return Transform(
      {[](const Shapes& ours, size_t count) {
         require(ours.size() == 1, kWhere, "repeats one tensor, not {}", ours.size());
         return Shapes(count, ours.front());
       },
       [](const StoredTensors& from, const Shapes&) { return StoredTensors{from.at(0)}; },
       [](const StoredTensors& from, const Shapes& to) {
         return StoredTensors(to.size(), from.at(0));
       }});
}

Transform transpose(size_t every) {
  const auto move = [every](const StoredTensors& tensors, const Shapes& to) {
    return transposed(tensors, to, every);
  };
  return Transform({[every](Shapes shapes, size_t) {
                      for (size_t i = 0; i < shapes.size(); i += every) {
                        StoredShape& shape = shapes[i];
                        require(shape.size() >= 2, kWhere, "{} cannot be transposed", text(shape));
                        std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
                      }
                      return shapes;
                    },
                    move, move});
}

Transform swap_halves() {
  return Transform({[](const Shapes& shapes, size_t) {
                      for (const StoredShape& shape : shapes) {
                        require(!shape.empty() && shape.back() > 0 && shape.back() % 2 == 0, kWhere,
                                "the rows of {} have no halves", text(shape));
                      }
                      return shapes;
                    },
                    with_halves_swapped, with_halves_swapped});
}

Transform split(size_t axis, int64_t groups) { return from_whole({axis, groups}); }
Transform join(size_t axis, int64_t groups) { return from_parts({axis, groups}); }
Transform unstack() { return from_whole({0, 1, true}); }
Transform stack() { return from_parts({0, 1, true}); }

Transform rope_pairs(int64_t heads, int64_t rotary_dim) {
  return Transform({[=](const Shapes& ours, size_t) {
                      for (const StoredShape& shape : ours) {
                        require(heads > 0 && !shape.empty() && shape[0] % heads == 0, kWhere,
                                "the rows of {} are not {} heads", text(shape), heads);
                        const int64_t head_dim = shape[0] / heads;
                        const int64_t rotary = rotary_dim == 0 ? head_dim : rotary_dim;
                        require(rotary > 0 && rotary % 2 == 0 && rotary <= head_dim, kWhere,
                                "{} rotary channels in heads of {}", rotary, head_dim);
                      }
                      return ours;
                    },
                    [=](const StoredTensors& from, const Shapes&) {
                      return move_pairs(from, heads, rotary_dim, true);
                    },
                    [=](const StoredTensors& from, const Shapes&) {
                      return move_pairs(from, heads, rotary_dim, false);
                    }});
}

}  // namespace transforms

Transform Transform::then(const Transform& next) const {
  Transform all = *this;
  all.steps_.insert(all.steps_.end(), next.steps_.begin(), next.steps_.end());
  return all;
}

bool Transform::moves_columns() const { return std::ranges::any_of(steps_, &Step::columns); }

std::vector<Shapes> Transform::stages(const Shapes& ours, size_t count) const {
  std::vector<Shapes> shapes(steps_.size() + 1);
  shapes.back() = ours;
  for (size_t i = steps_.size(); i-- > 0;) {
    shapes[i] = steps_[i].published_shapes(shapes[i + 1], count);
  }
  require(shapes.front().size() == count, kWhere,
          "{} tensors of ours come from {} published ones, not from {}", ours.size(),
          shapes.front().size(), count);
  return shapes;
}

Shapes Transform::published_shapes(const Shapes& ours, size_t count) const {
  return stages(ours, count).front();
}

StoredTensors Transform::forward(StoredTensors published, const Shapes& ours) const {
  const std::vector<Shapes> shapes = stages(ours, published.size());
  for (size_t i = 0; i < steps_.size(); ++i)
    published = steps_[i].forward(published, shapes[i + 1]);
  return published;
}

StoredTensors Transform::inverse(StoredTensors ours, size_t count) const {
  Shapes own;
  for (const StoredTensor& tensor : ours) own.push_back(tensor.shape);
  const std::vector<Shapes> shapes = stages(own, count);
  for (size_t i = steps_.size(); i-- > 0;) ours = steps_[i].inverse(ours, shapes[i]);
  return ours;
}

}  // namespace pronghorn
