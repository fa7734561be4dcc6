#include "decode/controller.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/log.h"

namespace pronghorn {
namespace {

// A round must promise this much more than a plain one: times scatter by about as much.
constexpr double kMargin = 1.05;
// Share of the time of plain rounds that may be spent on trying whether guesses have become better.
constexpr double kProbeShare = 0.01;
// Guesses of a trial.
constexpr int64_t kProbeGuesses = 2;
// Weight of the newest step in what is known of the cost of its width, and of all widths.
constexpr double kCostWeight = 0.15, kScaleWeight = 0.02;
// After that many rounds with guesses comes one without: what is gained is only known from both.
constexpr int kPlainEvery = 48;
// A step that took longer than this share of what was expected was interrupted by something else.
constexpr double kOutlier = 2;
// Tries after which an old one counts 1/e.
constexpr double kMemory = 50;
// Free guesses: the most that they save up, what they may lose at first and after a pause, in plain
// rounds; the rounds of the shortest and of the longest pause.
constexpr double kMostSaved = 8, kFirstAllowance = 1, kAllowance = 0.25;
constexpr int kShortPause = 4, kLongPause = 32;
// A lookup that took longer than this share of a plain round also read a prompt.
constexpr double kMostLookup = 0.1;
// Before anything is known: a share of the first guesses that come true, and how many tries that
// counts as.
constexpr double kPrior = 0.6, kPriorTries = 2;

// Seconds of a step of `width` tokens for each of several sequences: the least of a few after the
// first, since nothing makes a step faster than it is.
double time_step(const Model& model, const Context& context, int64_t sequences, int64_t width) {
  constexpr int kRepeats = 3;
  std::vector<SequenceState> states(static_cast<size_t>(sequences), model.new_state());
  const std::vector<int32_t> tokens(static_cast<size_t>(width), 0);
  double best = INFINITY;
  for (int i = 0; i < kRepeats; ++i) {
    Batch batch;
    for (SequenceState& state : states) add_segment(batch, state, tokens);
    const double start = now_seconds();
    model.logits(context, model.forward(context, batch));
    // The first guess is wrong: going back and picking up from there is part of the cost.
    for (SequenceState& state : states) state.truncate(state.length() - width + 1);
    const double seconds = now_seconds() - start;
    if (i > 0) best = std::min(best, seconds);
  }
  return best;
}

// A node that might be added to the trees of a round.
struct Node {
  double worth;  // probability that it comes true
  int32_t depth;
  size_t tree, index;

  bool operator<(const Node& other) const {
    return worth != other.worth ? worth > other.worth : depth < other.depth;
  }
};

}  // namespace

StepCost::StepCost(const Model& model, const Context& context, int64_t sequences) {
  time_step(model, context, sequences, 1);  // packs weights, fills caches
  for (const int64_t width : {1, 2, 4, 8, 16}) {
    points_[width * sequences] = {time_step(model, context, sequences, width), 1};
  }
}

StepCost::StepCost(std::map<int64_t, double> seconds) {
  for (const auto& [rows, time] : seconds) points_[rows] = {time, 1};
}

void StepCost::merge(const StepCost& other) {
  points_.insert(other.points_.begin(), other.points_.end());
}

double StepCost::seconds(int64_t rows) const {
  require(!points_.empty(), "step cost", "nothing was measured");
  auto above = points_.lower_bound(rows);
  const auto at = [this](const auto& point) {
    return point.second.measured * point.second.correction * scale_;
  };
  const bool beyond = above == points_.end();
  if (beyond) above = std::prev(above);
  if (above->first == rows || above == points_.begin()) return at(*above);
  const auto below = std::prev(above);
  if (beyond && at(*above) < at(*below)) return at(*above);
  const double share =
      static_cast<double>(rows - below->first) / static_cast<double>(above->first - below->first);
  return at(*below) + share * (at(*above) - at(*below));
}

void StepCost::update(int64_t rows, double seconds) {
  const double ratio = std::clamp(seconds / this->seconds(rows), 1 / kOutlier, kOutlier);
  scale_ *= std::pow(ratio, kScaleWeight);
  auto near = points_.lower_bound(rows);
  if (near == points_.end()) near = std::prev(near);
  const auto below = near == points_.begin() ? near : std::prev(near);
  // Between two widths the nearer one learns.
  if (rows - below->first < near->first - rows) near = below;
  if (rows >= points_.begin()->first) near->second.correction *= std::pow(ratio, kCostWeight);
}

double Acceptance::estimate(int64_t depth, int64_t rank) const {
  const Share& share = shares_[static_cast<size_t>(depth - 1)][static_cast<size_t>(rank)];
  double prior = kPrior;
  if (rank > 0) {
    // Half of what the guesses before it left, and less for each further one.
    prior = 0.3 * (1 - estimate(depth, 0)) * std::pow(0.5, static_cast<double>(rank - 1));
  } else if (depth > 1) {
    prior = estimate(depth - 1, 0);
  }
  return (share.hits + kPriorTries * prior) / (share.tries + kPriorTries);
}

void Acceptance::observe(const Draft& draft, std::span<const int32_t> tokens) {
  int32_t node = -1;
  for (size_t depth = 0; depth < tokens.size() && depth < shares_.size(); ++depth) {
    int32_t right = -1;
    bool tried = false;
    for (size_t i = static_cast<size_t>(node + 1); i < draft.tokens.size(); ++i) {
      if (draft.shape.parents[i] != node) continue;
      const auto rank = static_cast<size_t>(draft.shape.ranks[i]);
      if (rank >= kRanks) continue;
      Share& share = shares_[depth][rank];
      const bool hit = draft.tokens[i] == tokens[depth];
      share.hits += (hit ? 1 : 0) - share.hits / kMemory;
      share.tries += 1 - share.tries / kMemory;
      if (hit) right = static_cast<int32_t>(i);
      tried = true;
    }
    if (!tried || right < 0) return;
    node = right;
  }
}

Controller::Controller(int kinds, int costly_kind, const ControllerOptions& options)
    : options_(options),
      costly_kind_(costly_kind),
      has_free_kinds_(kinds > (costly_kind < 0 ? 0 : 1)),
      acceptance_(static_cast<size_t>(std::max(1, kinds))),
      account_(kFirstAllowance),
      pause_(kShortPause) {
  require(options.draft_tokens >= 0 && options.draft_tokens <= kMaxDraft, "draft tokens",
          "{} is out of range (0 to {})", options.draft_tokens, kMaxDraft);
  require(options.branches >= 1 && options.branches <= static_cast<int64_t>(Acceptance::kRanks),
          "draft tree", "{} is out of range (1 to {})", options.branches, Acceptance::kRanks);
}

void Controller::set_costs(int64_t sequences, StepCost step, double draft_level_seconds) {
  sequences_ = sequences;
  step_ = std::move(step);
  level_seconds_ = draft_level_seconds;
}

bool Controller::plain_is_due() const {
  return options_.draft_tokens == 0 && rounds_with_guesses_ >= kPlainEvery;
}

bool Controller::probe(int64_t guesses) {
  const double loss = step_.seconds(sequences_ * (1 + guesses)) - plain_seconds() +
                      level_seconds_ * static_cast<double>(guesses);
  if (credit_ < loss) return false;
  probing_ = true;
  return true;
}

bool Controller::asks_for_free_guesses() {
  if (!has_free_kinds_) return false;
  if (paused_ == 0 || options_.draft_tokens > 0) return true;
  --paused_;
  return false;
}

// gain: plain rounds that a round with free guesses, or with none found, saved.
void Controller::account_for_free_guesses(double gain) {
  account_ = std::min(account_ + gain, kMostSaved);
  if (account_ >= kFirstAllowance) pause_ = kShortPause;
  if (account_ > 0) return;
  account_ = kAllowance;
  paused_ = pause_;
  pause_ = std::min(2 * pause_, kLongPause);
}

std::optional<DraftShape> Controller::plan(int64_t limit) {
  asked_ = false;
  if (plain_is_due()) return std::nullopt;
  DraftShape costly = plan_costly(limit);
  asked_ = asks_for_free_guesses() || !costly.empty();
  if (!asked_) return std::nullopt;
  return costly;
}

DraftShape Controller::plan_costly(int64_t limit) {
  limit = std::min(limit, kMaxDraft);
  if (options_.draft_tokens > 0) limit = std::min(limit, options_.draft_tokens);
  if (costly_kind_ < 0 || limit <= 0) return {};
  const Acceptance& acceptance = acceptance_[static_cast<size_t>(costly_kind_)];
  // The tree of n nodes that is worth most consists of the n nodes worth most: a node is never
  // worth more than its parent. `shape` grows by the best child that any of its nodes could still
  // have.
  struct Child {
    double worth;
    int32_t parent, rank, depth;
    bool operator<(const Child& other) const { return worth < other.worth; }
  };
  std::vector<Child> heap;
  const auto offer = [&](double parent_worth, int32_t parent, int32_t rank, int32_t depth) {
    if (rank >= options_.branches || depth > kMaxDraft) return;
    heap.push_back({parent_worth * acceptance.estimate(depth, rank), parent, rank, depth});
    std::push_heap(heap.begin(), heap.end());
  };
  DraftShape shape, best;
  std::vector<double> worths;
  double expected = 1, best_rate = kMargin / plain_seconds();
  int32_t deepest = 0;
  offer(1, -1, 0, 1);
  while (static_cast<int64_t>(shape.size()) < limit && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Child child = heap.back();
    heap.pop_back();
    const double parent_worth = child.parent < 0 ? 1 : worths[static_cast<size_t>(child.parent)];
    shape.parents.push_back(child.parent);
    shape.ranks.push_back(child.rank);
    worths.push_back(child.worth);
    offer(parent_worth, child.parent, child.rank + 1, child.depth);
    offer(child.worth, static_cast<int32_t>(shape.size()) - 1, 0, child.depth + 1);
    expected += child.worth;
    deepest = std::max(deepest, child.depth);
    const auto rows = sequences_ * static_cast<int64_t>(1 + shape.size());
    const double rate =
        expected / (step_.seconds(rows) + level_seconds_ * static_cast<double>(deepest));
    if (rate > best_rate) {
      best_rate = rate;
      best = shape;
    }
  }
  if (options_.draft_tokens > 0) return shape;
  if (best.empty() && probe(std::min(limit, kProbeGuesses))) {
    return DraftShape::chain(std::min(limit, kProbeGuesses));
  }
  return best;
}

void Controller::trim(std::span<Draft> drafts) {
  std::vector<Node> nodes;
  int64_t fixed = 0;  // rows that are checked in any case
  for (size_t t = 0; t < drafts.size(); ++t) {
    const Draft& draft = drafts[t];
    // Costly guesses have been paid for as planned; the others are weighed.
    if (draft.empty() || draft.kind == costly_kind_ || !draft.distributions.empty()) {
      fixed += 1 + static_cast<int64_t>(draft.tokens.size());
      continue;
    }
    ++fixed;
    const Acceptance& acceptance = acceptance_[static_cast<size_t>(draft.kind)];
    const std::vector<int32_t> depths = draft.shape.depths();
    std::vector<double> worth(draft.tokens.size());
    for (size_t i = 0; i < worth.size(); ++i) {
      const int32_t parent = draft.shape.parents[i];
      worth[i] = (parent < 0 ? 1 : worth[static_cast<size_t>(parent)]) *
                 acceptance.estimate(
                     depths[i], std::min<int32_t>(draft.shape.ranks[i], Acceptance::kRanks - 1));
      nodes.push_back({worth[i], depths[i], t, i});
    }
  }
  if (nodes.empty()) return;
  std::stable_sort(nodes.begin(), nodes.end());
  size_t keep = 0;
  if (options_.draft_tokens > 0) {
    std::erase_if(nodes, [&](const Node& node) {
      return static_cast<int64_t>(node.index) >= options_.draft_tokens;
    });
    keep = nodes.size();
  } else {
    double expected = static_cast<double>(drafts.size());
    double best_rate = kMargin * expected / step_.seconds(fixed);
    for (size_t n = 0; n < nodes.size(); ++n) {
      expected += nodes[n].worth;
      const double rate = expected / step_.seconds(fixed + static_cast<int64_t>(n) + 1);
      if (rate > best_rate) {
        best_rate = rate;
        keep = n + 1;
      }
    }
  }
  // In a tree sorted this way parents come before children, so what is kept is a tree again.
  std::vector<std::vector<bool>> kept(drafts.size());
  for (size_t t = 0; t < drafts.size(); ++t) kept[t].assign(drafts[t].tokens.size(), false);
  for (size_t n = 0; n < keep; ++n) kept[nodes[n].tree][nodes[n].index] = true;
  for (size_t t = 0; t < drafts.size(); ++t) {
    Draft& draft = drafts[t];
    if (draft.empty() || draft.kind == costly_kind_ || !draft.distributions.empty()) continue;
    Draft smaller;
    smaller.kind = draft.kind;
    std::vector<int32_t> moved(draft.tokens.size(), -1);
    for (size_t i = 0; i < draft.tokens.size(); ++i) {
      if (!kept[t][i]) continue;
      const int32_t parent = draft.shape.parents[i];
      moved[i] = smaller.add(draft.tokens[i], parent < 0 ? -1 : moved[static_cast<size_t>(parent)],
                             draft.shape.ranks[i]);
    }
    draft = std::move(smaller);
  }
}

void Controller::observe(const Round& round) {
  int64_t emitted = 0, levels = 0;
  for (size_t i = 0; i < round.drafts.size(); ++i) {
    const Draft& draft = round.drafts[i];
    emitted += static_cast<int64_t>(round.tokens[i].size());
    if (draft.empty()) continue;
    acceptance_[static_cast<size_t>(draft.kind)].observe(draft, round.tokens[i]);
    if (draft.kind == costly_kind_) levels = std::max(levels, draft.shape.depth());
  }
  rounds_with_guesses_ =
      round.rows > static_cast<int64_t>(round.drafts.size()) ? rounds_with_guesses_ + 1 : 0;
  if (!round.alone) return;
  // Fewer rows than were ever measured: some of the sequences at the start have ended.
  if (round.rows >= step_.least_rows()) step_.update(round.rows, round.step_seconds);
  // The first draft after plain rounds also reads what was written meanwhile.
  if (levels > 0 && drafted_before_) {
    const double seconds = round.draft_seconds / static_cast<double>(levels);
    const double ratio = level_seconds_ > 0 ? seconds / level_seconds_ : 1;
    level_seconds_ =
        level_seconds_ > 0
            ? level_seconds_ * std::pow(std::clamp(ratio, 1 / kOutlier, kOutlier), kCostWeight)
            : seconds;
  }
  drafted_before_ = levels > 0;
  const double taken = round.step_seconds + round.draft_seconds;
  const double plain = plain_seconds() * static_cast<double>(emitted) /
                       static_cast<double>(std::max<size_t>(1, round.drafts.size()));
  if (asked_ && has_free_kinds_ && levels == 0) {
    account_for_free_guesses(rounds_with_guesses_ > 0
                                 ? (plain - taken) / plain_seconds()
                                 : -std::min(round.draft_seconds / plain_seconds(), kMostLookup));
  }
  if (probing_) {
    credit_ -= std::max(0.0, taken - plain);
    probing_ = false;
  } else if (levels == 0) {
    credit_ += kProbeShare * taken;
  }
}

}  // namespace pronghorn
