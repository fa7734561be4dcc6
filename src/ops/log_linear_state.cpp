#include "ops/log_linear_state.h"

#include <vector>

#include "base/error.h"
#include "ops/gates.h"
#include "ops/pointwise.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

// A log-decay that leaves nothing of a state.
constexpr float kForget = -104;

// How many rows of its sequence come before each row of the batch.
std::vector<int64_t> places_of(const CheckedBatch& batch, JournalSlot slot) {
  std::vector<int64_t> places(static_cast<size_t>(batch.rows()));
  if (batch.shards() != nullptr) {
    for (int64_t row = 0; row < batch.rows(); ++row) {
      places[static_cast<size_t>(row)] = batch.shards()->place(row);
    }
    return places;
  }
  const auto rows_before = [&](const Segment& segment) -> int64_t {
    if (segment.state != nullptr) return segment.state->journal(slot.layer, slot.index).length();
    if (segment.after < 0) return 0;
    const Segment& earlier = batch.segments()[static_cast<size_t>(segment.after)];
    return places[static_cast<size_t>(earlier.first_row + earlier.length - 1)] + 1;
  };
  for (const Segment& segment : batch.segments()) {
    const int64_t before = rows_before(segment);
    int64_t* place = places.data() + segment.first_row;
    for (int64_t i = 0; i < segment.length; ++i) {
      if (segment.parents.empty()) {
        place[i] = before + i;
      } else {
        const int32_t parent = segment.parents[static_cast<size_t>(i)];
        place[i] = parent < 0 ? before : place[parent] + 1;
      }
    }
  }
  return places;
}

// [rows, columns] with value(place) in each column of a row.
template <typename Value>
Tensor by_place(const std::vector<int64_t>& places, int64_t columns, const Value& value) {
  std::vector<float> values;
  values.reserve(places.size() * static_cast<size_t>(columns));
  for (const int64_t place : places) {
    values.insert(values.end(), static_cast<size_t>(columns), value(place));
  }
  return Tensor::from(values, {static_cast<int64_t>(places.size()), columns});
}

}  // namespace

std::vector<JournalShape> log_linear_state_journals(const LogLinearOptions& options) {
  return std::vector<JournalShape>(static_cast<size_t>(options.levels),
                                   outer_product_state_journal(options.state));
}

Tensor log_linear_state(const Context& context, const OuterProductStateInputs& inputs,
                        const Tensor& weights, const LogLinearOptions& options,
                        const CheckedBatch& batch, std::span<const JournalSlot> slots) {
  const char* where = "log_linear_state";
  const int64_t heads = options.state.value_heads, value_dim = options.state.value_dim;
  const int64_t last = options.levels - 1;
  require(last >= 1 && last < 48 && options.bucket >= 1 && options.bucket <= (1 << 14), where,
          "{} levels, buckets of {}", options.levels, options.bucket);
  require(std::ssize(slots) == options.levels, where, "{} journals", slots.size());
  require(!options.state.channel_decay && inputs.log_decay.defined() &&
              inputs.log_decay.dim(0) == batch.rows(),
          where, "needs a decay of each head and row");
  require(weights.dim(0) == batch.rows() && weights.dim(1) == options.levels * heads, where,
          "weights {} for {} levels of {} heads", weights.shape(), options.levels, heads);
  const std::vector<int64_t> places = places_of(batch, slots[0]);
  const auto weights_of = [&](int64_t level) { return weights.column_slice(level * heads, heads); };

  // All tokens, at the weight of the last level; then the other levels at the differences.
  OuterProductStateInputs all = inputs;
  all.skip = {};
  const Tensor oldest = weights_of(last), less = scale(context, oldest, -1);
  Tensor result = scale_groups(
      context,
      outer_product_state(context, all, options.state, batch, slots[static_cast<size_t>(last)]),
      oldest, value_dim);
  for (int64_t level = 0; level < last; ++level) {
    const int64_t half = level == 0 ? 0 : options.bucket << (level - 1);
    const int64_t block = level == 0 ? options.bucket : 2 * half;
    const Tensor keep =
        by_place(places, heads, [&](int64_t t) { return t % block == 0 ? 0.0f : 1.0f; });
    const Tensor forget =
        by_place(places, heads, [&](int64_t t) { return t % block == 0 ? kForget : 0.0f; });
    OuterProductStateInputs own = all;
    own.log_decay = add(context, multiply(context, inputs.log_decay, keep), forget);
    Tensor weight = add(context, weights_of(level), less);
    if (level > 0) {
      const Tensor first =
          by_place(places, heads, [&](int64_t t) { return t % block < half ? 1.0f : 0.0f; });
      const Tensor second =
          by_place(places, heads, [&](int64_t t) { return t % block < half ? 0.0f : 1.0f; });
      own.v = scale_groups(context, inputs.v, first, value_dim);
      weight = multiply(context, weight, second);
    }
    const Tensor part =
        outer_product_state(context, own, options.state, batch, slots[static_cast<size_t>(level)]);
    result = add(context, result, scale_groups(context, part, weight, value_dim));
  }
  if (!inputs.skip.defined()) return result;
  return add(context, result,
             scale_columns(context, inputs.v, repeat_each(context, inputs.skip, value_dim)));
}

}  // namespace pronghorn
