#include "decode/scoring_drafter.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/random.h"

namespace pronghorn {
namespace {

constexpr uint64_t kDraftStream = stream_id("draft");

// A draft that grows into the shape that was asked for.
struct Growing {
  DraftRequest* request;
  std::vector<int32_t> depths;  // of the shape's nodes
  std::vector<int32_t> made;    // the shape's nodes in the draft; -1: not (yet) made

  int32_t in_draft(int32_t shape_node) const {
    return shape_node < 0 ? -1 : made[static_cast<size_t>(shape_node)];
  }

  // The shape's nodes of depth `level` (-1 for 0) that exist and are to have children.
  std::vector<int32_t> parents_at(int64_t level) const {
    std::vector<int32_t> result;
    for (size_t i = 0; i < depths.size(); ++i) {
      const int32_t parent = request->shape.parents[i];
      if (depths[i] != level + 1 || (parent >= 0 && in_draft(parent) < 0)) continue;
      if (result.empty() || result.back() != parent) result.push_back(parent);
    }
    std::sort(result.begin(), result.end());
    result.erase(std::unique(result.begin(), result.end()), result.end());
    return result;
  }

  // Guesses the children of a node of the shape.
  void add_children(int32_t shape_node, std::span<const float> scores,
                    std::span<const int32_t> path) {
    const DraftShape& shape = request->shape;
    std::vector<size_t> children;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape.parents[i] == shape_node) children.push_back(i);
    }
    const SamplingOptions& sampling = *request->sampling;
    std::vector<int32_t> text;
    std::span<const int32_t> recent = request->recent;
    if (sampling.looks_back()) {
      text.assign(recent.begin(), recent.end());
      text.insert(text.end(), path.begin(), path.end());
      recent = text;
    }
    std::optional<TokenMask> mask;
    if (request->grammar != nullptr) {
      mask = allowed_after(*request->grammar, path);
      if (!mask) return;
    }
    const TokenMask* allowed = mask ? &*mask : nullptr;
    Draft& draft = request->draft;
    const auto ahead = static_cast<int64_t>(path.size());
    if (request->draw) {
      // Noise of its own for every round: what a rejected guess was drawn with must not come again.
      const uint64_t counter = static_cast<uint64_t>(request->position) << 8 | path.size();
      TokenDistribution distribution =
          token_distribution(scores, sampling, recent, request->position + ahead, allowed);
      if (distribution.tokens.empty()) return;
      const int32_t token =
          distribution.draw(unit_interval(philox(sampling.seed, counter, kDraftStream)));
      made[children.front()] = draft.add(token, in_draft(shape_node), 0);
      draft.distributions.push_back(std::move(distribution));
      return;
    }
    const std::vector<int32_t> tokens =
        sample_ranked(scores, sampling, recent, request->position + ahead,
                      static_cast<int64_t>(children.size()), allowed);
    for (size_t i = 0; i < tokens.size(); ++i) {
      made[children[i]] = draft.add(tokens[i], in_draft(shape_node), static_cast<int32_t>(i));
    }
  }
};

}  // namespace

std::vector<int32_t> ScoringDrafter::path_to(const Draft& draft, int32_t node) {
  std::vector<int32_t> path;
  for (; node >= 0; node = draft.shape.parents[static_cast<size_t>(node)]) {
    path.push_back(draft.tokens[static_cast<size_t>(node)]);
  }
  std::reverse(path.begin(), path.end());
  return path;
}

void ScoringDrafter::draft(const Context& context, std::span<DraftRequest> requests) {
  std::vector<Growing> all;
  for (DraftRequest& request : requests) {
    request.draft = {};
    if (request.shape.empty()) continue;
    all.push_back(
        {&request, request.shape.depths(), std::vector<int32_t>(request.shape.size(), -1)});
  }
  for (int64_t level = 0; level < kMaxDraft; ++level) {
    std::vector<Asked> asked;
    std::vector<std::pair<Growing*, std::vector<int32_t>>> growing;  // and the shape's nodes
    for (Growing& one : all) {
      std::vector<int32_t> parents = one.parents_at(level);
      if (parents.empty()) continue;
      Asked ask{one.request, {}};
      for (const int32_t parent : parents) ask.nodes.push_back(one.in_draft(parent));
      asked.push_back(std::move(ask));
      growing.emplace_back(&one, std::move(parents));
    }
    if (asked.empty()) break;
    const Tensor rows = scores(context, level, asked);
    int64_t row = 0;
    for (size_t i = 0; i < asked.size(); ++i) {
      for (size_t j = 0; j < asked[i].nodes.size(); ++j, ++row) {
        const std::vector<int32_t> path = path_to(asked[i].request->draft, asked[i].nodes[j]);
        growing[i].first->add_children(growing[i].second[j],
                                       {rows.row(row), static_cast<size_t>(rows.columns())}, path);
      }
    }
  }
  finish(requests);
}

}  // namespace pronghorn
