#include "layers/scans.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"
#include "layers/both_ways.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "mixer in both directions";

constexpr ScanPass kPasses[] = {{"", false, false},
                                {"backward", false, true},
                                {"columns", true, false},
                                {"columns_backward", true, true}};

bool has_blocks(const Segment& segment) {
  return segment.mask == Mask::blocks || segment.mask == Mask::two_copies;
}

// Rows of a segment that a pass goes over as a sequence, or as one that goes on from another.
struct Stretch {
  int64_t first_row = 0, length = 0;
  int64_t after = -1;  // which stretch of the segment; -1: it is a sequence
};

std::vector<Stretch> stretches_of(const CheckedBatch& batch, const Segment& segment,
                                  const ScanPass& pass) {
  const bool copies = segment.mask == Mask::two_copies;
  if (pass.backward ? !has_blocks(segment) : !copies) {
    return {Stretch{segment.first_row, segment.length}};
  }
  const std::span<const int32_t> positions = batch.positions(segment);
  const int64_t half = copies ? segment.length / 2 : segment.length;
  std::vector<Stretch> stretches;
  for (int64_t i = 0; i < segment.length; ++i) {
    const auto at = static_cast<size_t>(i);
    const bool begins =
        i == 0 || i == half || positions[at] / segment.block != positions[at - 1] / segment.block;
    if (begins) stretches.push_back({segment.first_row + i, 0});
    ++stretches.back().length;
  }
  if (pass.backward) return stretches;
  const int64_t blocks = std::ssize(stretches) / 2;
  for (int64_t i = 0; i < 2 * blocks; ++i) stretches[static_cast<size_t>(i)].after = i % blocks - 1;
  return stretches;
}

// The rows of each segment in the order of a pass; empty if that is their own.
std::vector<int32_t> rows_of(const CheckedBatch& batch, const ScanPass& pass) {
  if (!pass.columns && !pass.backward) return {};
  require(!pass.columns || batch.coordinate_count() == 2 || batch.rows() == 0, kWhere,
          "goes along columns, but rows have {} coordinates in place of 2",
          batch.coordinate_count());
  std::vector<int32_t> rows(static_cast<size_t>(batch.rows()));
  std::iota(rows.begin(), rows.end(), 0);
  const auto place = [&](int32_t row) {
    const int32_t* at = batch.coordinates().data() + 2 * int64_t{row};
    return std::pair(at[1], at[0]);
  };
  for (const Segment& segment : batch.segments()) {
    for (const Stretch& stretch : stretches_of(batch, segment, pass)) {
      const auto begin = rows.begin() + stretch.first_row, end = begin + stretch.length;
      if (pass.columns) {
        std::stable_sort(begin, end, [&](int32_t a, int32_t b) { return place(a) < place(b); });
      }
      if (pass.backward) std::reverse(begin, end);
    }
  }
  return rows;
}

// The batch that a mixer is given that sees earlier rows only.
Batch one_way(const CheckedBatch& batch, const ScanPass& pass, std::span<const int32_t> rows) {
  Batch result;
  result.positions.assign(batch.positions().begin(), batch.positions().end());
  const std::span<const int32_t> coordinates = batch.coordinates();
  result.coordinates.assign(coordinates.begin(), coordinates.end());
  const int64_t count = batch.coordinate_count();
  for (size_t i = 0; i < rows.size() && count > 0; ++i) {
    std::copy_n(coordinates.begin() + rows[i] * count, count,
                result.coordinates.begin() + static_cast<int64_t>(i) * count);
  }
  for (const Segment& segment : batch.segments()) {
    require(segment.state == nullptr || segment.mask == Mask::blocks, kWhere,
            "keeps no state of a sequence");
    const int64_t first = std::ssize(result.segments);
    for (const Stretch& stretch : stretches_of(batch, segment, pass)) {
      Segment& to = result.segments.emplace_back();
      to.first_row = stretch.first_row;
      to.length = stretch.length;
      if (!pass.backward) to.state = segment.state;
      if (stretch.after >= 0) to.after = first + stretch.after;
      if (!pass.backward || !has_blocks(segment)) continue;
      const auto positions = result.positions.begin() + to.first_row;
      std::iota(positions, positions + to.length, 0);
    }
  }
  return result;
}

std::vector<int32_t> inverse_of(std::span<const int32_t> rows) {
  std::vector<int32_t> places(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    places[static_cast<size_t>(rows[i])] = static_cast<int32_t>(i);
  }
  return places;
}

class Scanned final : public Mixer, public SeesBothWays {
 public:
  Scanned(Scan scan, std::vector<std::unique_ptr<Mixer>> mixers)
      : passes_(scan_passes(scan)), mixers_(std::move(mixers)) {
    require(mixers_.size() == 1 || mixers_.size() == passes_.size(), kWhere, "{} for {} passes",
            mixers_.size(), passes_.size());
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    Tensor sum;
    for (size_t i = 0; i < passes_.size(); ++i) {
      const Mixer& mixer = *mixers_[mixers_.size() == 1 ? 0 : i];
      const ScannedRows rows(input.batch, passes_[i]);
      const Tensor y = i == 0 ? mixer.forward({input.context, rows.batch(), input.carry}, x)
                              : carried(input, passes_[i], rows, mixer, x);
      sum = sum.defined() ? add(input.context, sum, y) : y;
    }
    return sum;
  }

  double sequence_cost(double context) const override {
    return static_cast<double>(passes_.size()) * mixers_.front()->sequence_cost(context);
  }
  int64_t context_limit() const override { return mixers_.front()->context_limit(); }
  bool sees_both_ways() const override { return true; }
  bool keeps_keys() const override { return false; }

 private:
  // A pass other than the first, with what is carried along it.
  static Tensor carried(const LayerInput& input, const ScanPass& pass, const ScannedRows& rows,
                        const Mixer& mixer, const Tensor& x) {
    const std::string mark = std::string(pass.name) + ".";
    Carry carry(input.batch.rows(), input.carry.wanted());
    for (const Carry::Entry& entry : input.carry.entries()) {
      if (!entry.name.starts_with(mark)) continue;
      carry.set(entry.name.substr(mark.size()), entry.tensor);
    }
    const Tensor y =
        mixer.forward({input.context, rows.batch(), carry}, rows.enter(input.context, x));
    for (const Carry::Entry& entry : carry.entries()) {
      input.carry.set(mark + entry.name, entry.tensor);
    }
    input.carry.take(carry);
    return rows.leave(input.context, y);
  }

  std::span<const ScanPass> passes_;
  std::vector<std::unique_ptr<Mixer>> mixers_;
};

}  // namespace

std::span<const ScanPass> scan_passes(Scan scan) {
  switch (scan) {
    case Scan::none:
      break;
    case Scan::raster:
      return std::span(kPasses).first(1);
    case Scan::both:
      return std::span(kPasses).first(2);
    case Scan::cross:
      return kPasses;
  }
  return {};
}

ScannedRows::ScannedRows(const CheckedBatch& batch, const ScanPass& pass)
    : rows_(rows_of(batch, pass)),
      places_(inverse_of(rows_)),
      batch_(one_way(batch, pass, rows_)) {}

Tensor ScannedRows::enter(const Context& context, const Tensor& x) const {
  return rows_.empty() ? x : embedding(context, x, rows_);
}

Tensor ScannedRows::leave(const Context& context, const Tensor& y) const {
  return rows_.empty() ? y : embedding(context, y, places_);
}

std::unique_ptr<Mixer> scanned(Scan scan, std::vector<std::unique_ptr<Mixer>> mixers) {
  return std::make_unique<Scanned>(scan, std::move(mixers));
}

bool sees_both_ways(const Mixer& mixer) {
  const auto* able = dynamic_cast<const SeesBothWays*>(&mixer);
  return able != nullptr && able->sees_both_ways();
}

bool sees_whole_texts(const Mixer& mixer) {
  const auto* able = dynamic_cast<const SeesBothWays*>(&mixer);
  return able != nullptr && able->sees_both_ways() && !able->keeps_keys();
}

bool runs_both_ways(const Mixer& mixer) { return dynamic_cast<const Scanned*>(&mixer) != nullptr; }

}  // namespace pronghorn
