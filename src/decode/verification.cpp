#include "decode/verification.h"

#include <algorithm>

#include "base/error.h"

namespace pronghorn {
namespace {

// max(scale p - q, 0) for each token of p, and its sum. q with no tokens: all of it is at `only`.
struct Residual {
  std::vector<double> masses;
  double total = 0;
};

Residual residual(const TokenDistribution& p, double scale, const TokenDistribution* q,
                  int32_t only) {
  Residual result;
  for (size_t i = 0; i < p.tokens.size(); ++i) {
    const double drafted =
        q != nullptr ? q->probability(p.tokens[i]) : (p.tokens[i] == only ? 1 : 0);
    result.masses.push_back(std::max(scale * p.probabilities[i] - drafted, 0.0));
    result.total += result.masses.back();
  }
  return result;
}

}  // namespace

std::vector<int32_t> take_matching(const Draft& draft,
                                   const std::function<int32_t(int32_t node)>& choose,
                                   const std::function<bool(int32_t token)>& take) {
  std::vector<int32_t> path;
  int32_t node = -1;
  while (true) {
    const int32_t token = choose(node);
    if (!take(token)) return path;
    int32_t child = node + 1;
    const auto nodes = static_cast<int32_t>(draft.tokens.size());
    while (child < nodes && (draft.shape.parents[static_cast<size_t>(child)] != node ||
                             draft.tokens[static_cast<size_t>(child)] != token)) {
      ++child;
    }
    if (child == nodes) return path;
    path.push_back(child);
    node = child;
  }
}

BlockVerdict verify_block(const Draft& draft, std::span<const TokenDistribution> distributions,
                          const std::function<double(size_t i)>& uniform) {
  const size_t guesses = draft.tokens.size();
  require(distributions.size() == guesses + 1 && draft.shape.is_chain(), "block verification",
          "{} distributions for a chain of {}", distributions.size(), guesses);
  const auto drafted = [&](size_t i) {
    return draft.distributions.empty() ? nullptr : &draft.distributions[i];
  };
  BlockVerdict verdict;
  double weight = 1, weight_there = 1;  // w_i of the paper, and that of the guesses accepted
  for (size_t i = 1; i <= guesses; ++i) {
    const int32_t token = draft.tokens[i - 1];
    const TokenDistribution* q = drafted(i - 1);
    const double drawn = q != nullptr ? q->probability(token) : 1;
    weight = std::min(1.0, weight * distributions[i - 1].probability(token) / drawn);
    double accept = weight;
    if (i < guesses) {
      const double rest = residual(distributions[i], weight, drafted(i), draft.tokens[i]).total;
      const double denominator = rest + 1 - weight;
      accept = denominator > 0 ? rest / denominator : 1;
    }
    if (uniform(i - 1) < accept) {
      verdict.accepted = i;
      weight_there = weight;
    }
  }
  const size_t t = verdict.accepted;
  const double u = uniform(guesses);
  if (t < guesses) {
    const Residual left = residual(distributions[t], weight_there, drafted(t), draft.tokens[t]);
    // If nothing is left the rejection was an artefact of rounding: then the model's distribution
    // it is.
    if (left.total > 0) {
      TokenDistribution distribution{distributions[t].tokens, left.masses};
      for (double& mass : distribution.probabilities) mass /= left.total;
      verdict.next = distribution.draw(u);
      return verdict;
    }
  }
  verdict.next = distributions[t].draw(u);
  return verdict;
}

}  // namespace pronghorn
