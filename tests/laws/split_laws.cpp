// Laws 1 (split), 2 (batch) and 5 (reference).
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "laws/laws.h"

namespace pronghorn::laws {
namespace {

constexpr int kThreadCounts[] = {1, 2, 4};

// A sequence of a batch: it starts with `before` tokens in steps of up to kExactStep, then takes
// `steps`.
struct Plan {
  int source;
  int64_t before;
  std::vector<int64_t> steps;
};

using Outputs = std::vector<std::vector<float>>;

Outputs run_alone(const Subject& subject, std::span<const Plan> plans) {
  Outputs outputs;
  for (const Plan& plan : plans) {
    SequenceState state = subject.fresh();
    subject.decode(state, plan.source, equal_steps(plan.before, kExactStep));
    outputs.push_back(subject.decode(state, plan.source, plan.steps));
  }
  return outputs;
}

// Round r runs step r of every plan in one batch, in the order given by `order`.
Outputs run_together(const Subject& subject, std::span<const Plan> plans,
                     std::span<const size_t> order) {
  std::vector<SequenceState> states;
  size_t rounds = 0;
  for (const Plan& plan : plans) {
    states.push_back(subject.fresh());
    subject.decode(states.back(), plan.source, equal_steps(plan.before, kExactStep));
    rounds = std::max(rounds, plan.steps.size());
  }
  Outputs outputs(plans.size());
  for (size_t round = 0; round < rounds; ++round) {
    std::vector<Part> parts;
    std::vector<size_t> owners;
    for (const size_t i : order) {
      if (round >= plans[i].steps.size()) continue;
      parts.push_back(chain(&states[i], plans[i].source, plans[i].steps[round]));
      owners.push_back(i);
    }
    const Outputs results = subject.run(parts);
    for (size_t j = 0; j < owners.size(); ++j) {
      std::vector<float>& all = outputs[owners[j]];
      all.insert(all.end(), results[j].begin(), results[j].end());
    }
  }
  return outputs;
}

std::string describe(const Plan& plan) {
  return fmt::format("after {} tokens, steps {}", plan.before, fmt::join(plan.steps, " "));
}

void check_whole_batch(const Subject& subject, Findings& findings) {
  // Sequences without a state, as in training.
  const std::vector<Part> parts = {chain(nullptr, 0, 5), chain(nullptr, 1, 33),
                                   chain(nullptr, 2, 16), chain(nullptr, 3, 70)};
  Outputs first;
  for (const int threads : kThreadCounts) {
    const Threads scope(threads);
    const Outputs together = subject.run(parts);
    if (first.empty()) first = together;
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string what =
          fmt::format("segment of {} tokens without state, {} threads", parts[i].length(), threads);
      findings.same_bits(what + " against one thread", together[i], first[i], subject.width());
      const std::vector<float> alone = subject.run(parts[i]);
      if (parts[i].length() <= kExactStep) {
        findings.same_bits(what + " against alone", together[i], alone, subject.width());
      } else {
        findings.close(what + " against alone", together[i], alone, subject.width(),
                       subject.bound_between_results());
      }
    }
  }
}

double largest_of(std::span<const double> values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

// A sequence from which tokens were dropped: positions are not row numbers.
void check_gaps(const Subject& subject, Findings& findings) {
  constexpr int64_t kTokens = 90;
  Random random(8, "gaps");
  Part whole = chain(nullptr, 0, kTokens);
  int32_t position = 0;
  for (int32_t& value : whole.positions) {
    value = position;
    position += 1 + static_cast<int32_t>(random.below(2) * random.below(6));
  }
  const std::vector<double> expected =
      subject.spec().reference(subject.reference_inputs(whole), whole.positions);
  const double bound = subject.spec().tolerance * largest_of(expected);
  findings.close("training form, positions with gaps", subject.run(whole), expected,
                 subject.width(), bound);
  if (subject.spec().sees_later_rows) return;
  for (const auto& steps : {equal_steps(kTokens, 1), std::vector<int64_t>{40, 3, 16, 31}}) {
    SequenceState state = subject.fresh();
    std::vector<float> actual;
    for (const int64_t step : steps) {
      Part part = chain(&state, 0, step);
      std::copy_n(whole.positions.begin() + state.length(), step, part.positions.begin());
      const std::vector<float> output = subject.run(part);
      actual.insert(actual.end(), output.begin(), output.end());
    }
    findings.close(fmt::format("positions with gaps, steps {}", fmt::join(steps, " ")), actual,
                   expected, subject.width(), bound);
  }
}

}  // namespace

void check_split(const Subject& subject, Findings& findings) {
  if (subject.spec().sees_later_rows) return;
  constexpr int64_t kTokens = 100;
  const Threads scope(2);
  const double bound = subject.bound_between_results();
  const auto run = [&](const std::vector<int64_t>& steps) {
    SequenceState state = subject.fresh();
    return subject.decode(state, 0, steps);
  };
  const std::vector<float> ones = run(equal_steps(kTokens, 1));

  std::vector<std::vector<int64_t>> cuts = {equal_steps(kTokens, 16),
                                            equal_steps(kTokens, 15),
                                            equal_steps(kTokens, 7),
                                            // Either side of multiples of 16 and of 64.
                                            {15, 1, 1, 14, 2, 14, 16, 1, 16, 4, 16},
                                            {8, 16, 16, 16, 7, 2, 16, 16, 3}};
  Random random(2, "split");
  for (int i = 0; i < 4; ++i) cuts.push_back(random_steps(random, kTokens, kExactStep));
  for (const auto& cut : cuts) {
    findings.same_bits(fmt::format("steps {} against ones", fmt::join(cut, " ")), run(cut), ones,
                       subject.width());
  }

  const std::vector<std::vector<int64_t>> long_cuts = {
      {100}, {17, 83}, {64, 36}, {83, 17}, {17, 64, 19}, {5, 64, 16, 15}, {1, 31, 65, 1, 1, 1}};
  for (const auto& cut : long_cuts) {
    findings.close(fmt::format("steps {} against ones", fmt::join(cut, " ")), run(cut), ones,
                   subject.width(), bound);
  }
  findings.close("whole, without state, against ones", subject.run(chain(nullptr, 0, kTokens)),
                 ones, subject.width(), bound);

  // After a prompt in one long step, short steps are again bit-identical however they are cut.
  for (const int64_t prompt : {37, 64}) {
    SequenceState prompted = subject.fresh();
    subject.run(chain(&prompted, 0, prompt));
    SequenceState by_ones = prompted;
    const std::vector<float> expected =
        subject.decode(by_ones, 0, equal_steps(kTokens - prompt, 1));
    for (const auto& steps : {equal_steps(kTokens - prompt, 16), equal_steps(kTokens - prompt, 11),
                              random_steps(random, kTokens - prompt, kExactStep)}) {
      SequenceState state = prompted;
      findings.same_bits(
          fmt::format("a prompt of {}, then steps {} against ones", prompt, fmt::join(steps, " ")),
          subject.decode(state, 0, steps), expected, subject.width(), prompt);
    }
  }
}

void check_batch(const Subject& subject, Findings& findings) {
  Random random(3, "batch");
  std::vector<Plan> plans;
  const int64_t before[] = {0, 5, 16, 33, 60};
  for (int i = 0; i < 5; ++i) {
    plans.push_back({i, before[i], random_steps(random, 24 + 4 * i, kExactStep)});
  }
  // Long steps among short ones; the short ones stay bit-identical.
  plans.push_back({5, 3, {40, 1, 20}});
  plans.push_back({6, 0, {70, 17}});

  const Outputs alone = run_alone(subject, plans);
  const std::vector<std::vector<size_t>> orders = {
      {0, 1, 2, 3, 4}, {4, 2, 0, 3, 1}, {0, 1, 2, 3, 4, 5, 6}, {6, 3, 1, 5, 4, 0, 2}};
  for (const auto& order : orders) {
    Outputs first;
    for (const int threads : kThreadCounts) {
      const Threads scope(threads);
      const Outputs together = run_together(subject, plans, order);
      if (first.empty()) first = together;
      for (const size_t i : order) {
        const std::string what = fmt::format("sequence {} ({}) in the order {}, {} threads", i,
                                             describe(plans[i]), fmt::join(order, " "), threads);
        findings.same_bits(what + " against one thread", together[i], first[i], subject.width());
        const bool exact =
            *std::max_element(plans[i].steps.begin(), plans[i].steps.end()) <= kExactStep;
        if (exact) {
          findings.same_bits(what + " against alone", together[i], alone[i], subject.width());
        } else {
          findings.close(what + " against alone", together[i], alone[i], subject.width(),
                         subject.bound_between_results());
        }
      }
    }
  }
  check_whole_batch(subject, findings);
}

void check_reference(const Subject& subject, Findings& findings) {
  constexpr int64_t kLengths[] = {1, 2, 15, 16, 17, 63, 64, 65, 130, 200};
  constexpr int64_t kLongest = 200;
  // Of a causal operator the reference of a shorter sequence is a beginning of the longest's.
  const bool causal = !subject.spec().sees_later_rows;
  const std::vector<double>& whole = subject.reference(0, kLongest);
  const double bound = subject.spec().tolerance * largest_of(whole);

  for (const int64_t length : kLengths) {
    const std::span<const double> expected(
        causal ? whole.data() : subject.reference(0, length).data(),
        static_cast<size_t>(length * subject.width()));
    const Part training = chain(nullptr, 0, length);
    std::vector<float> first;
    for (const int threads : kThreadCounts) {
      const Threads scope(threads);
      const std::vector<float> actual = subject.run(training);
      if (first.empty()) {
        first = actual;
        findings.close(fmt::format("training form, {} tokens", length), actual, expected,
                       subject.width(), bound);
      }
      findings.same_bits(
          fmt::format("training form, {} tokens, {} threads against one", length, threads), actual,
          first, subject.width());
    }
    SequenceState state = subject.fresh();
    findings.close(fmt::format("prompt form, {} tokens", length),
                   subject.run(chain(&state, 0, length)), expected, subject.width(), bound);
  }
  check_gaps(subject, findings);
  if (!causal) return;
  SequenceState state = subject.fresh();
  findings.close(fmt::format("step form, {} tokens", kLongest),
                 subject.decode(state, 0, equal_steps(kLongest, 1)), whole, subject.width(), bound);
}

}  // namespace pronghorn::laws
