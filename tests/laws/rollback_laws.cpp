// Law 3: marks, forks, truncation, saved states and token trees.
#include <algorithm>

#include "base/error.h"
#include "laws/laws.h"

namespace pronghorn::laws {
namespace {

constexpr int kSource = 0;   // the sequence that is kept
constexpr int kOther = 1;    // tokens that are to be forgotten, or go another way
constexpr int kNodes = 100;  // node i of a tree takes its token from source kNodes + i

// A state after the first `length` tokens, in steps of up to kExactStep, or in one long step.
SequenceState state_after(const Subject& subject, int64_t length, bool one_step = false) {
  SequenceState state = subject.fresh();
  subject.decode(state, kSource, equal_steps(length, one_step ? length : kExactStep));
  return state;
}

// Continues a copy of `state` over the next multiples of kExactStep, in single and longer steps.
std::vector<float> continuation(const Subject& subject, SequenceState state, int source = kSource) {
  return subject.decode(state, source, std::vector<int64_t>{1, 1, 5, 16, 1, 11});
}

// Random trees of `nodes` nodes: deep ones, wide ones and in between.
std::vector<int32_t> random_tree(Random& random, int nodes, double chain_share) {
  std::vector<int32_t> parents;
  for (int32_t i = 0; i < nodes; ++i) {
    const bool continues = random.uniform() < chain_share;
    const auto any = static_cast<int32_t>(random.below(static_cast<uint64_t>(i) + 1)) - 1;
    parents.push_back(continues ? i - 1 : any);
  }
  return parents;
}

Part tree_part(SequenceState* state, const std::vector<int32_t>& parents) {
  Part part;
  part.state = state;
  part.parents = parents;
  for (size_t i = 0; i < parents.size(); ++i) {
    part.sources.push_back(kNodes + static_cast<int>(i));
    part.positions.push_back(parents[i] < 0 ? static_cast<int32_t>(state->length())
                                            : part.positions[static_cast<size_t>(parents[i])] + 1);
  }
  return part;
}

std::vector<int32_t> path_to(const std::vector<int32_t>& parents, int32_t node) {
  std::vector<int32_t> path;
  for (; node >= 0; node = parents[static_cast<size_t>(node)]) path.push_back(node);
  std::reverse(path.begin(), path.end());
  return path;
}

void check_one_tree(const Subject& subject, Findings& findings, const SequenceState& base,
                    const std::vector<int32_t>& parents, Random& random) {
  const std::string what =
      fmt::format("a tree with parents {} after {} tokens", fmt::join(parents, " "), base.length());
  const auto width = static_cast<size_t>(subject.width());

  // Plain chain decoding, one token a step, from a copy of the parent's state.
  std::vector<SequenceState> chains;
  std::vector<float> expected;
  for (size_t i = 0; i < parents.size(); ++i) {
    SequenceState state = parents[i] < 0 ? base : chains[static_cast<size_t>(parents[i])];
    const std::vector<float> output = subject.run(chain(&state, kNodes + static_cast<int>(i), 1));
    expected.insert(expected.end(), output.begin(), output.end());
    chains.push_back(std::move(state));
  }

  const std::string saved = base.save();
  SequenceState tree = base;
  const std::vector<float> actual = subject.run(tree_part(&tree, parents));
  for (size_t i = 0; i < parents.size(); ++i) {
    findings.same_bits(fmt::format("{}: node {} against its path as a chain", what, i),
                       std::span(actual).subspan(i * width, width),
                       std::span<const float>(expected).subspan(i * width, width), subject.width(),
                       static_cast<int64_t>(i));
  }
  if (base.save() != saved) findings.add(what + ": changed the mark it was forked from");

  // Beside neighbours: a chain before it, another tree after it.
  {
    SequenceState other_chain = state_after(subject, 21), again = base, other_tree = base;
    const std::vector<Part> parts = {chain(&other_chain, kOther, 9), tree_part(&again, parents),
                                     tree_part(&other_tree, {-1, 0, 0, 2})};
    const Threads scope(4);
    findings.same_bits(what + ", in a batch", subject.run(parts)[1], actual, subject.width());
  }

  // Keep nothing, a path to some node, and the path to the last node.
  const auto last = static_cast<int32_t>(parents.size()) - 1;
  const auto some = static_cast<int32_t>(random.below(parents.size()));
  for (const int32_t node : {-1, some, last}) {
    const std::vector<int32_t> path = path_to(parents, node);
    const SequenceState& as_chain = node < 0 ? base : chains[static_cast<size_t>(node)];
    SequenceState kept = tree;
    kept.commit(path);
    if (kept.length() != as_chain.length()) {
      findings.add(fmt::format("{}: {} tokens after commit of path {}", what, kept.length(),
                               fmt::join(path, " ")));
      continue;
    }
    findings.same_bits(
        fmt::format("{}: continued after commit of path {}", what, fmt::join(path, " ")),
        continuation(subject, kept), continuation(subject, as_chain), subject.width(),
        kept.length());
  }
  if (base.save() != saved) findings.add(what + ": commit changed the mark it was forked from");
}

}  // namespace

void check_rollback(const Subject& subject, Findings& findings) {
  const Threads scope(2);
  for (const bool one_step : {false, true}) {
    for (const int64_t length : {0, 5, 16, 31, 48, 63, 64}) {
      if (one_step && length <= kExactStep) continue;
      const std::vector<float> expected =
          continuation(subject, state_after(subject, length, one_step));
      for (const int64_t appended : {1, 7, 16, 40}) {
        const std::string what = fmt::format("{} tokens{}, a mark, {} more, rolled back", length,
                                             one_step ? " in one step" : "", appended);
        SequenceState state = state_after(subject, length, one_step);
        const std::string saved = state.save();
        const SequenceState mark = state;
        subject.run(chain(&state, kOther, appended));
        if (mark.save() != saved) findings.add(what + ": the mark changed while more was appended");
        state = mark;
        findings.same_bits(what + ", continued", continuation(subject, state), expected,
                           subject.width(), length);
        if (mark.save() != saved) findings.add(what + ": the mark changed when it was continued");
      }
    }
  }
}

void check_fork(const Subject& subject, Findings& findings) {
  const std::vector<int64_t> steps = {1, 3, 16, 2, 13, 1};
  for (const int64_t length : {0, 6, 16, 30, 63, 64}) {
    std::vector<std::vector<float>> expected;
    for (const int source : {kSource, kOther}) {
      SequenceState state = state_after(subject, length);
      expected.push_back(subject.decode(state, source, steps));
    }
    for (const bool together : {false, true}) {
      const Threads scope(together ? 4 : 1);
      SequenceState one = state_after(subject, length);
      SequenceState two = one;
      std::vector<std::vector<float>> actual(2);
      for (const int64_t step : steps) {
        std::vector<Part> parts = {chain(&one, kSource, step), chain(&two, kOther, step)};
        std::vector<std::vector<float>> outputs;
        if (together) {
          outputs = subject.run(parts);
        } else {
          for (const Part& part : parts) outputs.push_back(subject.run(part));
        }
        for (size_t i = 0; i < 2; ++i) {
          actual[i].insert(actual[i].end(), outputs[i].begin(), outputs[i].end());
        }
      }
      for (size_t i = 0; i < 2; ++i) {
        findings.same_bits(fmt::format("fork {} of 2 after {} tokens, {}", i, length,
                                       together ? "in one batch" : "in turn"),
                           actual[i], expected[i], subject.width(), length);
      }
    }
  }
}

void check_truncate(const Subject& subject, Findings& findings) {
  const Threads scope(2);
  for (const int64_t length : {10, 16, 33, 40, 64, 70}) {
    for (const int64_t back : {1, 3, 8, 15, 16}) {
      if (back > length) continue;
      const std::string what = fmt::format("{} tokens, truncated by {}", length, back);
      const std::vector<float> expected =
          continuation(subject, state_after(subject, length - back));
      SequenceState state = subject.fresh();
      subject.decode(state, kSource, equal_steps(length - back, 5));
      subject.decode(state, kOther, equal_steps(back, 7));
      const SequenceState mark = state;
      const std::string saved = mark.save();
      state.truncate(length - back);
      findings.same_bits(what + ", continued", continuation(subject, state), expected,
                         subject.width(), length - back);
      if (mark.save() != saved) findings.add(what + ": changed a copy made before");

      // And again, after enough steps that there is something to go back to.
      subject.decode(state, kSource, equal_steps(20, 6));
      state.truncate(state.length() - 9);
      findings.same_bits(what + ", continued, truncated again", continuation(subject, state),
                         continuation(subject, state_after(subject, length - back + 11)),
                         subject.width(), length - back + 11);
    }
  }
}

void check_save(const Subject& subject, Findings& findings) {
  const Threads scope(2);
  const auto reload = [&](const std::string& saved) {
    return SequenceState::load(std::as_bytes(std::span(saved)), subject.layout(), "law");
  };
  for (const bool one_step : {false, true}) {
    for (const int64_t length : {0, 1, 16, 23, 64, 79}) {
      if (one_step && length <= kExactStep) continue;
      const std::string what =
          fmt::format("{} tokens{}, saved and loaded", length, one_step ? " in one step" : "");
      const SequenceState state = state_after(subject, length, one_step);
      const std::string saved = state.save();
      const SequenceState loaded = reload(saved);
      if (loaded.save() != saved) findings.add(what + ": saved again, the bytes differ");
      findings.same_bits(what + ", continued", continuation(subject, loaded),
                         continuation(subject, state), subject.width(), length);
      if (state.save() != saved) findings.add(what + ": continuing changed the original");
      if (one_step || length < kExactStep) continue;
      SequenceState shorter = reload(saved);
      shorter.truncate(length - 13);
      findings.same_bits(what + ", truncated by 13, continued", continuation(subject, shorter),
                         continuation(subject, state_after(subject, length - 13)), subject.width(),
                         length - 13);
    }
  }
}

void check_tree(const Subject& subject, Findings& findings) {
  const Threads scope(2);
  Random random(4, "tree");
  const auto at = [&](int64_t length, bool one_step, const std::vector<int32_t>& parents) {
    if (findings.full()) return;
    check_one_tree(subject, findings, state_after(subject, length, one_step), parents, random);
  };
  at(4, false, {-1, -1, -1, -1});
  at(9, false, {-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10});  // a chain, over the fold at 16
  for (const int64_t length : {0, 5, 10, 14, 15, 16, 27, 31, 60}) {
    at(length, false, random_tree(random, 12, 0.6));
  }
  at(23, false, random_tree(random, 12, 0.3));
  at(30, false, random_tree(random, 7, 0.8));
  at(58, true, random_tree(random, 12, 0.7));  // after a prompt in one long step
}

}  // namespace pronghorn::laws
