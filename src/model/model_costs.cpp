// What a model costs: work and memory of a token and of a sequence, by subsampled span.
#include <cmath>

#include "base/error.h"
#include "model/model.h"
#include "model/text_cost.h"

namespace pronghorn {

TokenCost Model::cost(double context) const {
  TokenCost total{2.0 * static_cast<double>(head_.size()), 0};
  for (const SpanCost& span : span_costs(context)) {
    total.matmul += span.cost.matmul;
    total.sequence += span.cost.sequence;
  }
  return total;
}

int64_t Model::predicted_state_bytes(int64_t context, const CacheOptions& cache) const {
  int64_t total = 0;
  for (const SpanCost& span : span_costs(static_cast<double>(context), {}, cache)) {
    total += span.state_bytes;
  }
  return total;
}

std::vector<double> Model::configured_shares() const {
  std::vector<double> shares;
  for (size_t span = 0; span < spans_.size(); ++span) {
    const int64_t parent = layout_->span_parents[span];
    const double before = parent < 0 ? 1 : shares[static_cast<size_t>(parent)];
    shares.push_back(before * config_.subsample.keep[span]);
  }
  return shares;
}

std::vector<double> Model::measured_shares(const SequenceState& state) const {
  std::vector<double> shares = configured_shares();
  for (size_t span = 0; span < shares.size(); ++span) {
    const std::optional<int64_t> rows = state.rows(static_cast<int64_t>(span));
    if (!rows || state.length() == 0) continue;
    shares[span] = static_cast<double>(*rows) / static_cast<double>(state.length());
  }
  return shares;
}

std::vector<SpanCost> Model::span_costs(double context, std::span<const double> shares,
                                        const CacheOptions& cache) const {
  const std::vector<double> configured = configured_shares();
  if (shares.empty()) shares = configured;
  require(shares.size() == configured.size(), "model", "{} shares for {} subsampled spans",
          shares.size(), configured.size());
  std::vector<SpanCost> costs(1 + spans_.size());
  for (size_t span = 0; span < spans_.size(); ++span) {
    const auto around = static_cast<size_t>(1 + layout_->span_parents[span]);
    costs[1 + span].span = static_cast<int64_t>(span);
    costs[1 + span].depth = costs[around].depth + 1;
    costs[1 + span].share = shares[span];
    // What chooses rows works on those in front of the span.
    costs[around].cost.matmul += costs[around].share * spans_[span].cost();
  }
  const std::shared_ptr<const StateLayout> layout = this->layout(cache);
  // A sequence begins with its first token.
  const double whole = context > 0 ? context + static_cast<double>(config_.prefix_tokens) : 0;
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    SpanCost& span = costs[static_cast<size_t>(1 + layout_->span_of(layer))];
    const TokenCost cost = blocks_[layer]->cost(whole * span.share);
    span.blocks += 1;
    span.cost.matmul += span.share * cost.matmul;
    span.cost.sequence += span.share * cost.sequence;
    const auto rows = static_cast<int64_t>(std::llround(whole * span.share));
    for (const JournalShape& shape : layout->layers[layer]) {
      span.state_bytes += Journal::predicted_bytes(shape, rows);
    }
  }
  // Those of the ends of spans.
  for (size_t layer = blocks_.size(); layer < layout->layers.size(); ++layer) {
    SpanCost& around = costs[static_cast<size_t>(1 + layout->span_of(layer))];
    const auto rows = static_cast<int64_t>(std::llround(whole * around.share));
    for (const JournalShape& shape : layout->layers[layer]) {
      around.state_bytes += Journal::predicted_bytes(shape, rows);
    }
  }
  return costs;
}

TokenCost prefix_cost(const Model& model, double tokens) {
  const int64_t rows = model.config().prefix_tokens;
  if (rows == 0 || tokens <= 0) return {};
  TokenCost row = model.cost(0);
  row.matmul -= 2.0 * static_cast<double>(model.head().size());  // nobody wants their scores
  const double share = static_cast<double>(rows) / tokens;
  return {share * row.matmul, share * row.sequence};
}

TokenCost text_cost(const Model& model, double tokens) {
  const TokenCost token = model.cost(tokens / 2), prefix = prefix_cost(model, tokens);
  return {token.matmul + prefix.matmul, token.sequence + prefix.sequence};
}

}  // namespace pronghorn
