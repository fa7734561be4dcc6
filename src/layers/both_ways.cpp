#include "layers/both_ways.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "mixer in both directions";
constexpr std::string_view kBackward = "backward.";  // before names of what is carried that way

// The batch that a mixer is given that sees earlier rows only. The same for both directions, but
// for the order of rows.
Batch one_way(const CheckedBatch& batch) {
  Batch result;
  result.positions.assign(batch.positions().begin(), batch.positions().end());
  for (Segment segment : batch.segments()) {
    require(segment.state == nullptr, kWhere, "keeps no state of a sequence");
    segment.mask = Mask::causal;
    result.segments.push_back(std::move(segment));
  }
  return result;
}

// The rows of each segment from its last to its first.
std::vector<int32_t> reversed_rows(const CheckedBatch& batch) {
  std::vector<int32_t> rows(static_cast<size_t>(batch.rows()));
  std::iota(rows.begin(), rows.end(), 0);
  for (const Segment& segment : batch.segments()) {
    const auto begin = rows.begin() + segment.first_row;
    std::reverse(begin, begin + segment.length);
  }
  return rows;
}

std::vector<int32_t> reversed(std::span<const int32_t> numbers, int64_t width,
                              std::span<const int32_t> rows) {
  std::vector<int32_t> result;
  for (const int32_t row : rows) {
    const auto from = numbers.begin() + row * width;
    result.insert(result.end(), from, from + width);
  }
  return result;
}

class BothWays final : public Mixer, public SeesBothWays {
 public:
  BothWays(std::unique_ptr<Mixer> forward, std::unique_ptr<Mixer> backward)
      : forward_(std::move(forward)), backward_(std::move(backward)) {}

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const std::span<const int32_t> coordinates = input.batch.coordinates();
    Batch ahead = one_way(input.batch);
    ahead.coordinates.assign(coordinates.begin(), coordinates.end());
    const CheckedBatch ahead_batch(std::move(ahead));
    const Tensor there = forward_->forward({context, ahead_batch, input.carry}, x);

    const std::vector<int32_t> rows = reversed_rows(input.batch);
    Batch behind = one_way(input.batch);
    if (!coordinates.empty()) {
      behind.coordinates = reversed(coordinates, input.batch.coordinate_count(), rows);
    }
    const CheckedBatch behind_batch(std::move(behind));
    Carry carry(input.batch.rows(),
                {.losses = input.carry.wants_losses(), .loads = input.carry.wants_loads()});
    for (const Carry::Entry& entry : input.carry.entries()) {
      if (!entry.name.starts_with(kBackward)) continue;
      carry.set(entry.name.substr(kBackward.size()), entry.tensor);
    }
    const Mixer& back = backward_ == nullptr ? *forward_ : *backward_;
    const Tensor returned =
        back.forward({context, behind_batch, carry}, embedding(context, x, rows));
    for (const Carry::Entry& entry : carry.entries()) {
      input.carry.set(std::string(kBackward) + entry.name, entry.tensor);
    }
    input.carry.take(carry);
    return add(context, there, embedding(context, returned, rows));
  }

  double sequence_cost(double context) const override {
    return 2 * forward_->sequence_cost(context);
  }
  int64_t context_limit() const override { return forward_->context_limit(); }
  bool sees_both_ways() const override { return true; }

 private:
  std::unique_ptr<Mixer> forward_, backward_;
};

}  // namespace

bool sees_both_ways(const Mixer& mixer) {
  const auto* able = dynamic_cast<const SeesBothWays*>(&mixer);
  return able != nullptr && able->sees_both_ways();
}

bool runs_both_ways(const Mixer& mixer) { return dynamic_cast<const BothWays*>(&mixer) != nullptr; }

std::unique_ptr<Mixer> both_ways(std::unique_ptr<Mixer> forward, std::unique_ptr<Mixer> backward) {
  return std::make_unique<BothWays>(std::move(forward), std::move(backward));
}

}  // namespace pronghorn
