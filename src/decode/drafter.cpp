#include "decode/drafter.h"

#include <algorithm>

#include "base/error.h"

namespace pronghorn {

std::vector<int32_t> DraftShape::depths() const {
  std::vector<int32_t> result(size());
  for (size_t i = 0; i < size(); ++i) {
    result[i] = parents[i] < 0 ? 1 : result[static_cast<size_t>(parents[i])] + 1;
  }
  return result;
}

int64_t DraftShape::depth() const {
  const std::vector<int32_t> all = depths();
  return all.empty() ? 0 : *std::max_element(all.begin(), all.end());
}

bool DraftShape::is_chain() const {
  for (size_t i = 0; i < size(); ++i) {
    if (parents[i] != static_cast<int32_t>(i) - 1) return false;
  }
  return true;
}

DraftShape DraftShape::up_to_depth(int64_t limit) const {
  DraftShape result;
  const std::vector<int32_t> all = depths();
  std::vector<int32_t> moved(size(), -1);
  for (size_t i = 0; i < size(); ++i) {
    if (all[i] > limit) continue;
    moved[i] = static_cast<int32_t>(result.size());
    result.parents.push_back(parents[i] < 0 ? -1 : moved[static_cast<size_t>(parents[i])]);
    result.ranks.push_back(ranks[i]);
  }
  return result;
}

DraftShape DraftShape::chain(int64_t length) {
  DraftShape shape;
  for (int64_t i = 0; i < length; ++i) shape.parents.push_back(static_cast<int32_t>(i) - 1);
  shape.ranks.assign(static_cast<size_t>(std::max<int64_t>(0, length)), 0);
  return shape;
}

int32_t Draft::add(int32_t token, int32_t parent, int32_t rank) {
  shape.parents.push_back(parent);
  shape.ranks.push_back(rank);
  tokens.push_back(token);
  return static_cast<int32_t>(tokens.size()) - 1;
}

void check_draft(const Draft& draft, int64_t vocab_size) {
  const size_t nodes = draft.tokens.size();
  require(nodes <= static_cast<size_t>(kMaxDraft) && draft.shape.parents.size() == nodes &&
              draft.shape.ranks.size() == nodes,
          "draft", "{} tokens with {} parents and {} ranks (at most {})", nodes,
          draft.shape.parents.size(), draft.shape.ranks.size(), kMaxDraft);
  require(draft.distributions.empty() ||
              (draft.distributions.size() == nodes && draft.shape.is_chain()),
          "draft", "{} distributions for {} tokens of a chain", draft.distributions.size(), nodes);
  for (size_t i = 0; i < nodes; ++i) {
    const int32_t parent = draft.shape.parents[i], token = draft.tokens[i];
    require(parent >= -1 && parent < static_cast<int32_t>(i), "draft", "node {} has parent {}", i,
            parent);
    require(token >= 0 && token < vocab_size, "draft", "token {} of a vocabulary of {}", token,
            vocab_size);
    for (size_t j = 0; j < i; ++j) {
      require(draft.shape.parents[j] != parent || draft.tokens[j] != token, "draft",
              "nodes {} and {} are the same guess", j, i);
    }
  }
}

namespace {

void keep_nodes(const GrammarState& grammar, Draft& draft) {
  std::vector<std::optional<GrammarState>> states;  // behind each node
  std::vector<int32_t> moved;                       // its index in what is kept; -1: none
  Draft kept;
  kept.kind = draft.kind;
  for (size_t i = 0; i < draft.tokens.size(); ++i) {
    const int32_t parent = draft.shape.parents[i];
    std::optional<GrammarState> state(grammar);
    if (parent >= 0) state = states[static_cast<size_t>(parent)];
    if (state && !state->take(draft.tokens[i])) state.reset();
    states.push_back(state);
    moved.push_back(-1);
    if (!state) continue;
    moved.back() = kept.add(draft.tokens[i], parent < 0 ? -1 : moved[static_cast<size_t>(parent)],
                            draft.shape.ranks[i]);
    if (!draft.distributions.empty()) kept.distributions.push_back(draft.distributions[i]);
  }
  draft = std::move(kept);
}

}  // namespace

void keep_to(const GrammarState& grammar, Draft& draft) {
  try {
    keep_nodes(grammar, draft);
  } catch (const Error&) {
    draft = {};  // the text itself will say what is wrong
  }
}

std::optional<TokenMask> allowed_after(const GrammarState& grammar, std::span<const int32_t> path) {
  try {
    GrammarState state = grammar;
    for (const int32_t token : path) {
      if (!state.take(token)) return {};
    }
    if (state.ended()) return {};
    return state.allowed();
  } catch (const Error&) {
    return {};
  }
}

void Drafter::observe(size_t, const Tensor&) {}

}  // namespace pronghorn
