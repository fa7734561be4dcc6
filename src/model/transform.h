// Transforms between the tensors of a published checkpoint and ours. Each can be turned round, so
// that one description serves reading and writing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace pronghorn {

using StoredShape = std::vector<int64_t>;

// A tensor as it is stored: bytes in some dtype that nobody has converted.
struct StoredTensor {
  std::string dtype;  // as formats/safetensors.h names them
  StoredShape shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  // keeps the bytes alive; null: the caller does
};

using Shapes = std::vector<StoredShape>;
using StoredTensors = std::vector<StoredTensor>;

// Steps that lead from published tensors to ours, one after another; none: a renaming. Rows and
// elements are moved as bytes, whatever their dtype; bytes that need not move are not copied.
class Transform {
 public:
  struct Step {
    // The shapes that become `ours` in this step; count: of the published tensors of the whole
    // transform. Throws Error if there are none.
    std::function<Shapes(const Shapes& ours, size_t count)> published_shapes;
    // From the published side to ours and back; `to` are the shapes of the result.
    std::function<StoredTensors(const StoredTensors&from, const Shapes&to)> forward, inverse;
    bool columns = false;  // whether columns, and nothing else, change places
  };

  Transform() = default;
  explicit Transform(Step step) : steps_{std::move(step)} {}

  // This transform, and then `next`, which is nearer to ours.
  Transform then(const Transform& next) const;

  // Whether columns change places.
  bool moves_columns() const;

  // All throw Error("transform", ...) for tensors that do not fit.

  // The shapes of the `count` published tensors that become ours.
  Shapes published_shapes(const Shapes& ours, size_t count) const;

  // Published tensors, of the shapes that published_shapes() gives, to ours.
  StoredTensors forward(StoredTensors published, const Shapes& ours) const;
  // Ours to `count` published tensors.
  StoredTensors inverse(StoredTensors ours, size_t count) const;

 private:
  // The shapes before the first step, between the steps, and after the last.
  std::vector<Shapes> stages(const Shapes& ours, size_t count) const;

  std::vector<Step> steps_;
};

// Named for what is done to the published tensors. The inverse needs no name of its own.
namespace transforms {

// Every tensor [.., 1, ..] -> [.., ..]: the axis of size 1 is dropped.
Transform squeeze(size_t axis);

// Every tensor [n, a, ..] -> [n a, ..].
Transform fold(int64_t n);

// The opposite: every tensor [n a, ..] -> [n, a, ..].
Transform unfold(int64_t n);

// Several equal tensors -> one: the first is read, all are written.
Transform repeated();

// Every tensor [.., a, b] -> [.., b, a], or the first of each `every` tensors. Those in blocks
// become f32, for columns of blocks are no blocks.
Transform transpose(size_t every = 1);

// Every tensor [.., 2 a]: the second half of each row comes before the first.
Transform swap_halves();

// One tensor [a + b + .., ..] -> [a, ..], [b, ..], .. along an axis of whole rows. With groups, the
// axis is that many equal groups, each of which has its share of the first tensor, then its share
// of the second, and so on: heads that hold their query, key and value.
Transform split(size_t axis = 0, int64_t groups = 1);

// The opposite of split() for parts of equal size: several tensors -> one, interleaved in groups.
Transform join(size_t axis = 0, int64_t groups = 1);

// One tensor [n, ..] -> n tensors [..].
Transform unstack();

// n tensors [..] -> one [n, ..].
Transform stack();

// Rows (or elements, of a bias) of each of `heads` heads: the two channels that one rotary angle
// turns are neighbours where they are published, and rotary_dim / 2 apart in ours. rotary_dim 0:
// the whole head. So rows that alternate between two matrices become one and then the other.
Transform rope_pairs(int64_t heads, int64_t rotary_dim = 0);

// The opposite in heads of `width` rows, `heads` of them from row `first` on: the two channels are
// width / 2 apart where they are published, and neighbours in ours. Other rows stay where they are.
Transform rope_halves(int64_t heads, int64_t width, int64_t first = 0);

// Every number w -> w + value, in f32. Exact there and back for sums from value / 2 to 2 value,
// otherwise up to rounding.
Transform plus(float value);

// Every number a <= 0 -> log(-a), in f32: decays of state spaces, which some formats hold as
// -exp(A_log). There and back again a number may change in its last bits: -16 and its neighbours
// have one logarithm. Throws Error for other numbers.
Transform log_of_negated();

// Every number w -> w / factor, in f32; one factor for all, or one for each row. Back: w factor.
Transform unscale(const std::vector<double>& factors);

// An axis of groups x pieces equal pieces, published group by group -> the first piece of every
// group, then the second of every group, and so on. Of rows (or elements of a vector) of all
// tensors but the first `first`; of columns. Where columns of ours are not whole blocks, they are
// published in f32, and of published ones it throws Error.
Transform deal(int64_t groups, int64_t pieces, size_t first = 0);
Transform deal_columns(int64_t groups, int64_t pieces);

}  // namespace transforms

}  // namespace pronghorn
