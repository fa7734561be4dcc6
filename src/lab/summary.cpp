#include "lab/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "base/log.h"
#include "lab/text.h"

namespace pronghorn::lab {
namespace {

using Value = std::function<std::optional<double>(const ArchitectureResult&)>;
using Format = std::function<std::string(double)>;

struct Contest {
  Value value;
  bool highest;
  Format format;
  double margin = 0;  // relative difference from the best up to which another is as good
};

struct Ranked {
  double value;
  size_t index;
};

// The architectures that have the value, best first.
std::vector<Ranked> ranking(const CompareRun& run, const Contest& contest) {
  std::vector<Ranked> ranked;
  for (size_t i = 0; i < run.architectures.size(); ++i) {
    const std::optional<double> value = contest.value(run.architectures[i]);
    if (value && std::isfinite(*value)) ranked.push_back({*value, i});
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&contest](const Ranked& a, const Ranked& b) {
    return contest.highest ? a.value > b.value : a.value < b.value;
  });
  return ranked;
}

// Those that read the same as the best once formatted, so that the reader sees a tie, or that are
// within the margin of it.
std::vector<size_t> leaders(const std::vector<Ranked>& ranked, const Contest& contest) {
  const double best = ranked.front().value;
  std::vector<size_t> result;
  for (const Ranked& entry : ranked) {
    if (contest.format(entry.value) == contest.format(best) ||
        std::abs(entry.value - best) <= contest.margin * std::abs(best)) {
      result.push_back(entry.index);
    }
  }
  return result;
}

// Whether a reader sees different values among the first `count`.
bool differ(const std::vector<Ranked>& ranked, size_t count, const Format& format) {
  return format(ranked.front().value) != format(ranked[count - 1].value);
}

std::string names(const CompareRun& run, const std::vector<size_t>& indices) {
  std::string text;
  for (size_t i = 0; i < indices.size(); ++i) {
    if (i > 0) text += i + 1 == indices.size() ? " and " : ", ";
    text += run.architectures[indices[i]].name;
  }
  return text;
}

std::string lead(const CompareRun& run, const std::vector<Ranked>& ranked, size_t winners,
                 const Contest& contest, bool as_ratio) {
  if (ranked.size() == 1) return "the only one measured";
  if (winners == ranked.size()) {
    return differ(ranked, winners, contest.format)
               ? fmt::format("all about equal, up to {}", contest.format(ranked.back().value))
               : "all the same";
  }
  const Ranked& next = ranked[winners];
  const double best = ranked.front().value;
  const std::string& rival = run.architectures[next.index].name;
  if (!as_ratio) {
    return fmt::format("{} is next with {}", rival, contest.format(next.value));
  }
  const double ratio = contest.highest ? best / next.value : next.value / best;
  // Under two percent, a single run cannot tell the two apart.
  if (!std::isfinite(ratio) || ratio < 1.02) {
    return fmt::format("{} is as good as level with {}", rival, contest.format(next.value));
  }
  const std::string times = fmt::format("{:.{}f}×", ratio, ratio < 9.95 ? 2 : 0);
  return contest.highest ? fmt::format("{} as fast as {}", times, rival)
                         : fmt::format("{} needs {} as much", rival, times);
}

// Who leads at the contexts before the last, where it is someone else.
std::string other_contexts(const CompareRun& run, const std::vector<int64_t>& contexts,
                           const std::vector<size_t>& last_winners,
                           const std::function<Contest(int64_t)>& contest) {
  struct Lead {
    std::vector<size_t> winners;
    std::vector<int64_t> contexts;
  };
  std::vector<Lead> changes;
  for (size_t i = 0; i + 1 < contexts.size(); ++i) {
    const Contest here = contest(contexts[i]);
    const std::vector<Ranked> ranked = ranking(run, here);
    if (ranked.empty()) continue;
    std::vector<size_t> winners = leaders(ranked, here);
    if (winners == last_winners) continue;
    if (!changes.empty() && changes.back().winners == winners) {
      changes.back().contexts.push_back(contexts[i]);
    } else {
      changes.push_back({std::move(winners), {contexts[i]}});
    }
  }
  if (changes.empty()) return contexts.size() > 1 ? "ahead at every context" : "";
  std::string text;
  for (const Lead& change : changes) {
    std::string where;
    for (const int64_t context : change.contexts) {
      where += (where.empty() ? "" : ", ") + format_context(context);
    }
    text += fmt::format("{}at {}: {}", text.empty() ? "" : "; ", where, names(run, change.winners));
  }
  return text;
}

class Findings {
 public:
  explicit Findings(const CompareRun& run) : run_(run) {}

  void add(std::string topic, std::string verb, const Contest& contest, std::string_view unit,
           bool as_ratio) {
    const std::vector<Ranked> ranked = ranking(run_, contest);
    if (ranked.empty()) return;
    std::vector<size_t> winners = leaders(ranked, contest);
    std::string detail = lead(run_, ranked, winners.size(), contest, as_ratio);
    const bool contested = winners.size() < ranked.size();
    const bool close = differ(ranked, winners.size(), contest.format);
    list.push_back({std::move(topic), std::move(verb), std::move(winners),
                    contest.format(ranked.front().value) + std::string(unit), contested, close,
                    std::move(detail)});
  }

  // The same at the longest context that any architecture reached.
  template <typename Member>
  void add_by_context(std::string_view topic, std::string verb, Member member, bool highest,
                      const Format& format, std::string_view unit) {
    const auto contest = [=](int64_t context) {
      return Contest{[=](const ArchitectureResult& a) -> std::optional<double> {
                       const InferencePoint* point = inference_at(a, context);
                       if (point == nullptr || !(point->*member)) return {};
                       return static_cast<double>(*(point->*member));
                     },
                     highest, format, 0};
    };
    std::vector<int64_t> contexts = measured_contexts(run_);
    while (!contexts.empty() && ranking(run_, contest(contexts.back())).empty()) {
      contexts.pop_back();
    }
    if (contexts.empty()) return;
    add(fmt::format("{} at {}", topic, format_context(contexts.back())), std::move(verb),
        contest(contexts.back()), unit, true);
    Finding& finding = list.back();
    const std::string others = other_contexts(run_, contexts, finding.winners, contest);
    if (!others.empty()) finding.detail += "; " + others;
  }

  std::vector<Finding> list;

 private:
  const CompareRun& run_;
};

std::optional<double> as_double(std::optional<int64_t> value) {
  if (!value) return {};
  return static_cast<double>(*value);
}

}  // namespace

std::vector<Finding> find_winners(const CompareRun& run) {
  using Result = ArchitectureResult;
  Findings findings(run);
  findings.add("Held-out quality", "models the held-out text best",
               {[](const Result& a) { return a.held_out_bits_per_byte; }, false, format_bits,
                quality_margin(run)},
               " bits/byte", false);
  findings.add("Training speed", "trains fastest",
               {[](const Result& a) { return a.train_tokens_per_second; }, true, format_count},
               " tokens/s", true);
  findings.add(
      "Training memory", "needs the least memory to train",
      {[](const Result& a) { return as_double(a.peak_training_bytes); }, false, format_bytes}, "",
      true);
  findings.add_by_context("Prompts", "reads prompts fastest",
                          &InferencePoint::prompt_tokens_per_second, true, format_count,
                          " tokens/s");
  findings.add_by_context("Decoding", "decodes fastest", &InferencePoint::decode_tokens_per_second,
                          true, format_count, " tokens/s");
  findings.add_by_context("State", "carries the smallest state", &InferencePoint::state_bytes,
                          false, format_bytes, "");
  findings.add("Recall (MQAR)", "recalls best",
               {[](const Result& a) { return a.mqar_accuracy; }, true, format_recall}, "", false);
  findings.add("Images", "tells images apart best",
               {[](const Result& a) -> std::optional<double> {
                  if (!a.images) return {};
                  return a.images->accuracy;
                },
                true, format_recall},
               "", false);
  findings.add("Sound", "writes down most words right",
               {[](const Result& a) -> std::optional<double> {
                  if (!a.sound) return {};
                  return a.sound->word_accuracy;
                },
                true, format_recall},
               "", false);
  for (const TaskLengths& task : measured_tasks(run)) {
    const int64_t longest = task.lengths.back();
    findings.add(fmt::format("{} at {}", task.task, format_context(longest)),
                 fmt::format("solves {} best", task.task),
                 {[&, longest](const Result& a) { return task_accuracy(a, task.task, longest); },
                  true, format_recall},
                 "", false);
  }
  return std::move(findings.list);
}

std::string winner_names(const CompareRun& run, const Finding& finding) {
  return names(run, finding.winners);
}

std::string headline(const CompareRun& run) {
  // One winner's findings stand together: "a trains fastest and decodes fastest".
  struct Praise {
    std::vector<size_t> winners;
    bool close;
    std::vector<std::string> verbs;
  };
  std::vector<Praise> praises;
  for (const Finding& finding : find_winners(run)) {
    if (!finding.contested) continue;
    // "Decoding at 256k": the topic names the context that the verb leaves out.
    const size_t at = finding.topic.find(" at ");
    const std::string verb =
        at == std::string::npos ? finding.verb : finding.verb + finding.topic.substr(at);
    const auto found = std::find_if(praises.begin(), praises.end(), [&](const Praise& praise) {
      return praise.winners == finding.winners && praise.close == finding.close;
    });
    if (found == praises.end()) {
      praises.push_back({finding.winners, finding.close, {verb}});
    } else {
      found->verbs.push_back(verb);
    }
  }
  std::string text;
  for (const Praise& praise : praises) {
    const bool several = praise.winners.size() > 1;
    text += fmt::format("{}{}{}", text.empty() ? "" : "; ", names(run, praise.winners),
                        !several       ? " "
                        : praise.close ? " are about equal: each "
                                       : " tie: each ");
    for (size_t i = 0; i < praise.verbs.size(); ++i) {
      if (i > 0) text += i + 1 == praise.verbs.size() ? " and " : ", ";
      text += praise.verbs[i];
    }
  }
  if (!text.empty()) text += ". ";

  size_t judged = 0, better = 0, failed = 0;
  for (const ArchitectureResult& a : run.architectures) {
    if (a.failure) ++failed;
    if (!a.held_out_bits_per_byte || !run.data.gzip_bits_per_byte) continue;
    ++judged;
    if (*a.held_out_bits_per_byte < *run.data.gzip_bits_per_byte) ++better;
  }
  if (judged > 0) {
    const std::string who = better == 0        ? "None beats"
                            : judged == 1      ? "The one that was judged beats"
                            : better == judged ? "All beat"
                                               : fmt::format("{} of {} beat", better, judged);
    text +=
        fmt::format("{} gzip -9 ({} bits/byte). ", who, format_bits(*run.data.gzip_bits_per_byte));
  }
  if (failed > 0) {
    text += fmt::format("{} of {} architectures failed. ", failed, run.architectures.size());
  }
  if (!text.empty()) text.pop_back();
  return text;
}

}  // namespace pronghorn::lab
