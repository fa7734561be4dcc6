#include "ops/judged_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/attention_operands.h"
#include "ops/attention_units.h"
#include "ops/journal_rows.h"

namespace pronghorn {
namespace {

// What all queries kept have given to the rows that are held: the kept ones, then those from
// first_row() on.
std::vector<float> weigh(const Journal& journal, const AttentionOptions& options) {
  const AttentionShape shape = attention_shape(options);
  const Journal& queries = journal.queries();
  const int64_t count = queries.length(), width = queries.shape().row_width;
  require(count == journal.shape().eviction.observed && width == shape.heads * (shape.key_dim + 1),
          "attention", "{} queries of {} numbers where {} of {} heads of {} are to weigh keys",
          count, width, journal.shape().eviction.observed, shape.heads, shape.key_dim);
  AttentionUnits units(options);
  units.add_last(journal, count);
  const AttentionUnit& unit = units.units().front();
  std::vector<float> tiles(unit.tiles.size() * static_cast<size_t>(kAttentionTile));
  // They lie on one page.
  const float* rows = queries.row(0);
  backend().attention().weigh_keys(shape, unit, {rows, width},
                                   {rows + shape.heads * shape.key_dim, width}, tiles.data());

  std::vector<float> weights;
  for (int64_t i = 0; i < journal.kept(); ++i) weights.push_back(tiles[static_cast<size_t>(i)]);
  const int64_t first_tile = unit.prefix_tiles * kAttentionTile;
  for (int64_t i = journal.first_row(); i < journal.length(); ++i) {
    weights.push_back(tiles[static_cast<size_t>(first_tile + i - journal.first_row())]);
  }
  // Those of rows that were there before.
  for (size_t i = 0; i < journal.weights().size(); ++i) weights[i] += journal.weights()[i];
  return weights;
}

// The largest of those at most pool / 2 away, of each of the first `count`.
std::vector<float> pooled(const std::vector<float>& weights, int64_t count, int64_t pool) {
  std::vector<float> result;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = std::max<int64_t>(0, i - pool / 2);
    const int64_t end = std::min(count, i + pool / 2 + 1);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t j = begin; j < end; ++j) {
      const float weight = weights[static_cast<size_t>(j)];
      if (weight > largest) largest = weight;  // what is no number weighs nothing
    }
    result.push_back(largest);
  }
  return result;
}

// The places of those that stay, ascending; the first one of equal ones.
std::vector<int64_t> heaviest(std::vector<float> weights, const Eviction& eviction) {
  std::fill_n(weights.begin(), std::min<int64_t>(eviction.always, std::ssize(weights)),
              std::numeric_limits<float>::infinity());
  std::vector<int64_t> places(weights.size());
  std::iota(places.begin(), places.end(), int64_t{0});
  std::ranges::stable_sort(places, [&](int64_t a, int64_t b) {
    return weights[static_cast<size_t>(a)] > weights[static_cast<size_t>(b)];
  });
  places.resize(static_cast<size_t>(eviction.keep));
  std::ranges::sort(places);
  return places;
}

}  // namespace

std::vector<std::vector<Segment>> judged_rounds(const CheckedBatch& batch, JournalSlot slot) {
  std::vector<std::vector<Segment>> rounds(1);
  for (const Segment& segment : batch.segments()) {
    const Journal* journal = nullptr;
    if (segment.state != nullptr && segment.length > 0) {
      journal = &segment.state->journal(slot.layer, slot.index);
    }
    if (journal == nullptr || !journal->shape().eviction.is_on()) {
      rounds.front().push_back(segment);
      continue;
    }
    require(segment.mask == Mask::causal && segment.parents.empty(), "attention",
            "a token tree or rows that see later ones, where keys are dropped by their weight");
    const int64_t before = journal->length(), end = before + segment.length;
    Segment part = segment;
    for (int64_t row = before, round = 0; row < end; row += part.length, ++round) {
      part.first_row = segment.first_row + row - before;
      part.length = std::min(end, journal->shape().eviction.next(row)) - row;
      if (round == std::ssize(rounds)) rounds.emplace_back();
      rounds[static_cast<size_t>(round)].push_back(part);
    }
  }
  return rounds;
}

void judge_keys(Journal& journal, const AttentionOptions& options) {
  const Eviction& eviction = journal.shape().eviction;
  const int64_t end = journal.length();
  if (!eviction.is_on() || end % eviction.interval != 0) return;
  if (!eviction.judges(end) || journal.judged() == end) return;
  std::vector<float> weights = weigh(journal, options);
  std::vector<int64_t> rows;
  int64_t first = journal.first_row();
  if (eviction.drops(end)) {
    const int64_t kept = journal.kept(), recent = end - eviction.recent;
    const int64_t candidates = kept + recent - first;
    std::vector<float> stay;
    for (const int64_t place : heaviest(pooled(weights, candidates, eviction.pool), eviction)) {
      rows.push_back(place < kept ? place : first + place - kept);
      stay.push_back(weights[static_cast<size_t>(place)]);
    }
    stay.insert(stay.end(), weights.begin() + candidates, weights.end());
    weights = std::move(stay);
    first = recent;
  }
  if (!eviction.accumulates) weights.clear();
  journal.judge(rows, first, std::move(weights));
}

void keep_queries(const CheckedBatch& batch, const std::vector<Segment>& round, const Tensor& q,
                  const Tensor& log_sum_exp, JournalSlot slot) {
  for (const Segment& segment : round) {
    if (segment.state == nullptr || segment.length == 0) continue;
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    if (!journal.shape().eviction.is_on()) continue;
    Segment last = segment;
    last.length = journal.expected_queries(journal.length()) - journal.queries().length();
    last.first_row = segment.first_row + segment.length - last.length;
    const Tensor parts[] = {q, log_sum_exp};
    append_rows(batch, last, parts, journal.queries());
  }
}

}  // namespace pronghorn
