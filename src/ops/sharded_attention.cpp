#include "ops/sharded_attention.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/attention_operands.h"
#include "ops/attention_units.h"
#include "ops/exchange.h"
#include "ops/kept_states.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "attention";

// ---- heads across ranks ----

AttentionResult by_heads(const Context& context, const AttentionInputs& in,
                         const AttentionOptions& options, const SequenceShards& shards,
                         JournalSlot slot, bool sums) {
  const AttentionShape shape = attention_shape(options);
  const HeadShares shares(shards, options.heads, options.kv_heads, kWhere);
  const SharedColumns parts[] = {{in.q, shares.of_heads(shape.key_dim)},
                                 {in.k, shares.of_shared(shape.key_dim)},
                                 {in.v, shares.of_shared(shape.value_dim)}};
  const std::vector<Tensor> whole = to_heads(context, shards, parts);
  AttentionOptions own = options;
  own.heads = shares.heads();
  own.kv_heads = shares.shared_heads();
  const Tensor sinks = shares.own(in.sinks);
  const std::vector<Columns> columns = shares.of_heads(shape.value_dim);
  if (!sums) {
    const Tensor output =
        attention(context, whole[0], whole[1], whole[2], own, shards.whole(), slot, sinks);
    return {to_rows(context, shards, output, columns), {}};
  }
  const AttentionResult result =
      partial_attention(context, whole[0], whole[1], whole[2], own, shards.whole(), slot, sinks);
  return {to_rows(context, shards, result.output, columns),
          to_rows(context, shards, result.log_sum_exp, shares.of_heads(1))};
}

// ---- keys and values around the ranks ----

// The sink of a part that rows may see nothing of: its weight is 0 beside any that they see.
constexpr float kNothing = -1e30f;

// What goes around, and whose it is at each step.
class Ring {
 public:
  Ring(const SequenceShards& shards, int64_t width)
      : shards_(shards),
        me_(shards.ranks().rank()),
        count_(shards.ranks().count()),
        width_(width) {}

  int64_t steps() const { return count_; }
  // The rank whose rows are here at a step.
  int64_t source(int64_t step) const { return (me_ + count_ - step % count_) % count_; }
  int64_t rows(int64_t step) const { return std::ssize(*shards_.rows(source(step))); }

  // Gives `numbers` of step - 1, which has `parts` matrices of `width`, to the next rank, and takes
  // those of `step` from the one before.
  void turn(int64_t step, int64_t parts, PooledVector<float>& numbers) const {
    PooledVector<float> received(static_cast<size_t>(parts * rows(step) * width_));
    std::vector<std::span<const std::byte>> to(static_cast<size_t>(count_));
    std::vector<std::span<std::byte>> from(static_cast<size_t>(count_));
    to[static_cast<size_t>((me_ + 1) % count_)] = std::as_bytes(std::span(numbers));
    from[static_cast<size_t>((me_ + count_ - 1) % count_)] =
        std::as_writable_bytes(std::span(received));
    shards_.ranks().exchange_as(kSentKeys, to, from);
    numbers = std::move(received);
  }

 private:
  const SequenceShards& shards_;
  int64_t me_, count_, width_;
};

// How many of ascending keys are at positions before `position`.
int64_t keys_before(int64_t position, std::span<const int32_t> keys,
                    std::span<const int32_t> positions) {
  const auto end = std::ranges::partition_point(
      keys, [&](int32_t key) { return positions[static_cast<size_t>(key)] < position; });
  return end - keys.begin();
}

// Which of ascending keys are in the reach of a row, of those that come before it or are its own.
KeyRange seen_keys(const AttentionOptions& options, const AttentionLimits& limits, int32_t row,
                   std::span<const int32_t> keys, std::span<const int32_t> positions) {
  const int64_t position = positions[static_cast<size_t>(row)];
  const int64_t segment =
      options.segment > 0 ? position / options.segment * options.segment : 0;  // its first position
  int64_t end = std::ranges::upper_bound(keys, row) - keys.begin();
  if (options.earlier) end = std::min(end, keys_before(segment, keys, positions));
  int64_t first = 0;  // position that the row sees
  if (limits.window > 0) first = std::max(first, position - limits.window + 1);
  if (limits.segment > 0) first = std::max(first, segment);
  const int64_t begin = first > 0 ? keys_before(first, keys, positions) : 0;
  return {std::min(begin, end), end, 0};
}

// What the rows of this rank see of the keys that `source` has. entries: its rows [key | value].
AttentionUnits units_over(const SequenceShards& shards, const AttentionOptions& options,
                          int64_t source, const Tensor& entries) {
  const int64_t me = shards.ranks().rank();
  const AttentionLimits limits = limits_of(options, {});
  const std::span<const int32_t> positions = shards.whole().positions();
  // Rows of a sequence lie together on each rank, in their order.
  const auto rows_of = [&](int64_t rank, int64_t sequence) {
    const SequenceShards::Piece& first = shards.piece(sequence, shards.number_of(rank, 0));
    const SequenceShards::Piece& second = shards.piece(sequence, shards.number_of(rank, 1));
    return std::pair(first.local_row, first.length + second.length);
  };
  AttentionUnits units(options);
  std::vector<KeyRange> visible;
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    const auto [first_row, rows] = rows_of(me, sequence);
    const auto [first_key, key_count] = rows_of(source, sequence);
    const auto keys = std::span(*shards.rows(source))
                          .subspan(static_cast<size_t>(first_key), static_cast<size_t>(key_count));
    visible.clear();
    for (int64_t i = first_row; i < first_row + rows; ++i) {
      const int32_t row = (*shards.rows(me))[static_cast<size_t>(i)];
      visible.push_back(seen_keys(options, limits, row, keys, positions));
    }
    units.add_entries(first_row, visible, entries, first_key, key_count);
  }
  return units;
}

// ln(exp(a) + exp(b)), element by element.
Tensor sum_of_exponentials(const Tensor& a, const Tensor& b) {
  PooledVector<float> sums = a.read();
  const PooledVector<float> others = b.read();
  for (size_t i = 0; i < sums.size(); ++i) {
    const double high = std::max(sums[i], others[i]), low = std::min(sums[i], others[i]);
    sums[i] = static_cast<float>(high + std::log1p(std::exp(low - high)));
  }
  return Tensor::from(sums, a.shape());
}

// Attention to what two parts attended to.
AttentionResult merged(const AttentionShape& shape, const Tensor& q, const AttentionResult& a,
                       const AttentionResult& b) {
  const AttentionPart parts[] = {{input_matrix(a.output), a.log_sum_exp.data()},
                                 {input_matrix(b.output), b.log_sum_exp.data()}};
  AttentionMerge arguments;
  arguments.shape = shape;
  arguments.shape.kv_heads = shape.heads;
  arguments.rows = q.rows();
  arguments.q = input_matrix(q);
  arguments.parts = parts;
  const Tensor output = Tensor::empty(a.output.shape());
  backend().attention().merge(arguments, output_matrix(output));
  return {output, sum_of_exponentials(a.log_sum_exp, b.log_sum_exp)};
}

// The tensors of a ring attention, as its backward pass needs them.
struct RingOperands {
  AttentionOptions options;
  AttentionShape shape;
  Tensor q, k, v, sinks;
  Tensor entries;  // [key | value] of this rank's rows
  Tensor output, log_sum_exp;

  int64_t key_width() const { return shape.kv_heads * shape.key_dim; }
};

void record_backward(const Context& context, const RingOperands& in, const SequenceShards& shards) {
  context.tape->record([in, &shards] {
    // Other ranks wait for this one's keys, even if nothing here has a gradient.
    const Tensor grad_output =
        in.output.has_grad() ? in.output.grad() : Tensor::zeros(in.output.shape());
    const Tensor grad_sums = in.log_sum_exp.has_grad() ? in.log_sum_exp.grad() : Tensor();
    const int64_t width = in.entries.columns(), keys = in.key_width();
    const Ring ring(shards, width);
    Matrix grad_q = input_gradient(in.q);
    // Rows of a rank, and then their gradients.
    PooledVector<float> numbers = in.entries.read();
    numbers.resize(2 * numbers.size());
    for (int64_t step = 0; step < ring.steps(); ++step) {
      if (step > 0) ring.turn(step, 2, numbers);
      const Shape shape{ring.rows(step), width};
      const auto half = static_cast<int64_t>(numbers.size() / 2);
      const Tensor entries = Tensor::from({numbers.data(), numbers.size() / 2}, shape);
      const Tensor gradient = Tensor::from({numbers.data() + half, numbers.size() / 2}, shape);
      AttentionUnits units = units_over(shards, in.options, ring.source(step), entries);
      AttentionOperands operands;
      operands.q = input_matrix(in.q);
      operands.o = output_matrix(in.output);
      operands.log_sum_exp = in.log_sum_exp.data();
      AttentionGradients gradients;
      gradients.o = input_matrix(grad_output);
      gradients.log_sum_exp = grad_sums.defined() ? grad_sums.data() : nullptr;
      gradients.q = grad_q;
      gradients.k = {gradient.data(), width, true};
      if (in.v.defined()) gradients.v = {gradient.data() + keys, width, true};
      if (step == 0 && in.sinks.defined()) {
        operands.sinks = in.sinks.data();
        gradients.sinks = vector_gradient(in.sinks);
      }
      backend().attention().backward(in.shape, units.units(), operands, gradients);
      grad_q.accumulate = true;
      const PooledVector<float> sums = gradient.read();
      std::copy(sums.begin(), sums.end(), numbers.begin() + half);
    }
    // The gradients go the last step home.
    numbers.erase(numbers.begin(), numbers.begin() + static_cast<int64_t>(numbers.size() / 2));
    if (ring.steps() > 1) ring.turn(ring.steps(), 1, numbers);
    const Tensor own = Tensor::from(numbers, in.entries.shape());
    if (in.k.requires_grad()) in.k.give_grad(own.column_slice(0, keys));
    if (in.v.requires_grad()) in.v.give_grad(own.column_slice(keys, width - keys));
  });
}

AttentionResult around(const Context& context, const AttentionInputs& in,
                       const AttentionOptions& options, const SequenceShards& shards) {
  RingOperands operands{options, attention_shape(options), in.q, in.k, in.v, in.sinks, {}, {}, {}};
  const AttentionShape& shape = operands.shape;
  const int64_t rows = shards.local().rows();
  require(options.heads > 0 && options.kv_heads > 0 && options.heads % options.kv_heads == 0 &&
              in.q.rows() == rows && in.q.columns() == shape.heads * shape.key_dim &&
              in.k.rows() == rows && in.k.columns() == operands.key_width() &&
              in.v.defined() != options.value_in_key,
          kWhere, "q {} and k {} for {} rows of {} heads and {} key-value heads of {}",
          in.q.shape(), in.k.shape(), rows, options.heads, options.kv_heads, options.head_dim);
  require(!in.v.defined() ||
              (in.v.rows() == rows && in.v.columns() == shape.kv_heads * shape.value_dim),
          kWhere, "v is {} for {} rows of {} heads of {}", in.v.shape(), rows, options.kv_heads,
          shape.value_dim);
  const Tensor both[] = {in.k.detach(), in.v.defined() ? in.v.detach() : Tensor()};
  operands.entries = in.v.defined() ? concatenate_columns({}, both) : in.k.clone();
  const int64_t width = operands.entries.columns();
  const Ring ring(shards, width);
  const Tensor nothing = Tensor::full({shape.heads}, kNothing);
  PooledVector<float> numbers = operands.entries.read();
  AttentionResult sum;
  for (int64_t step = 0; step < ring.steps(); ++step) {
    if (step > 0) ring.turn(step, 1, numbers);
    const Tensor entries =
        step == 0 ? operands.entries : Tensor::from(numbers, {ring.rows(step), width});
    AttentionUnits units = units_over(shards, options, ring.source(step), entries);
    const AttentionResult part{Tensor::empty({rows, shape.heads * shape.value_dim}),
                               Tensor::empty({rows, shape.heads})};
    AttentionOperands some;
    some.q = input_matrix(in.q);
    some.o = output_matrix(part.output);
    some.log_sum_exp = part.log_sum_exp.data();
    // A row sees itself, so that the first part is never empty; or earlier segments alone, with a
    // sink.
    const Tensor& sinks = step == 0 ? in.sinks : nothing;
    if (sinks.defined()) some.sinks = sinks.data();
    backend().attention().forward(shape, units.units(), some);
    sum = step == 0 ? part : merged(shape, in.q, sum, part);
  }
  if (context.tape == nullptr) return sum;
  sum.output.set_requires_grad(true);
  sum.log_sum_exp.set_requires_grad(true);
  operands.output = sum.output;
  operands.log_sum_exp = sum.log_sum_exp;
  record_backward(context, operands, shards);
  return sum;
}

}  // namespace

AttentionResult sharded_attention(const Context& context, const AttentionInputs& in,
                                  const AttentionOptions& options, const SequenceShards& shards,
                                  JournalSlot slot, const BlockLists& lists, bool sums) {
  if (lists.lists > 0) require_whole(shards.local(), "attention to listed keys");
  if (options.keys != KeyOwner::borrowed && !options.earlier) {
    const Tensor rows[] = {in.k, in.v};
    keep_rows(shards, slot, rows);
  }
  if (shards.kind() == SequenceParallel::ulysses) {
    return by_heads(context, in, options, shards, slot, sums);
  }
  if (options.block > 0) {
    require_whole(shards.local(), "attention to blocks that rows choose", true);
  }
  return around(context, in, options, shards);
}

}  // namespace pronghorn
