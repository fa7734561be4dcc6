// Decides how many tokens to guess and to check, so that speculation gains time or stays out of the
// way: from how often guesses came true and what steps of each width cost on this machine.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "decode/drafter.h"

namespace pronghorn {

// Seconds of one step of the model by its rows: measured once at a few widths, interpolated between
// them, and corrected by every step that is made.
class StepCost {
 public:
  StepCost() = default;
  // A step of `rows` for `sequences` sequences is measured for rows = sequences times 1 ... 16.
  StepCost(const Model& model, const Context& context, int64_t sequences);
  // From known times; for tests.
  explicit StepCost(std::map<int64_t, double> seconds);

  // Takes over what `other` has of widths that are missing here.
  void merge(const StepCost& other);
  // Beyond the widest that was measured: as it grows there.
  double seconds(int64_t rows) const;
  // The narrowest that was measured.
  int64_t least_rows() const { return points_.empty() ? 0 : points_.begin()->first; }
  // A step of `rows` took `seconds`.
  void update(int64_t rows, double seconds);

 private:
  struct Point {
    double measured, correction;
  };
  std::map<int64_t, Point> points_;  // rows -> a step of that many
  double scale_ = 1;                 // of all: contexts grow, machines are busy
};

// How often guesses of one kind came true, by their place: the share of tries in which a guess of
// this rank was right, given that all before it were. Recent tries count most.
class Acceptance {
 public:
  static constexpr size_t kRanks = 4;

  // depth: 1 ... kMaxDraft; rank: below kRanks.
  double estimate(int64_t depth, int64_t rank) const;
  // The tokens that came where `draft` was made: counts the guesses along their path.
  void observe(const Draft& draft, std::span<const int32_t> tokens);

 private:
  struct Share {
    double hits = 0, tries = 0;
  };
  std::array<std::array<Share, kRanks>, static_cast<size_t>(kMaxDraft)> shares_;
};

struct ControllerOptions {
  int64_t draft_tokens = 0;  // always guess that many; 0: as many as pay
  int64_t branches = 1;      // guesses for one place at most; 1: chains
};

class Controller {
 public:
  // kinds, costly_kind: of the drafter.
  Controller(int kinds, int costly_kind, const ControllerOptions& options);

  // How the steps of `sequences` sequences are made from now on.
  void set_costs(int64_t sequences, StepCost step, double draft_level_seconds);

  // So many take part in the rounds to come.
  void set_sequences(int64_t sequences) { sequences_ = sequences; }

  // What the drafter is to be asked for each sequence: that many costly guesses, at most `limit`
  // (the same for all), beside any free ones. None: it is not to be asked, the round is plain.
  std::optional<DraftShape> plan(int64_t limit);

  // Takes back the guesses that are not worth checking. Those drawn from distributions stay: which
  // are kept must not depend on what was drawn.
  void trim(std::span<Draft> drafts);

  // After a round: the drafts as they were made, the tokens that came instead, what was checked
  // (rows of the step), and the seconds of drafting and of the step.
  struct Round {
    std::span<const Draft> drafts;
    std::span<const std::vector<int32_t>> tokens;
    int64_t rows = 0;
    double draft_seconds = 0, step_seconds = 0;
    bool alone = true;  // the step had no other rows: its seconds tell what these cost
  };
  void observe(const Round& round);

  const Acceptance& acceptance(int kind) const { return acceptance_[static_cast<size_t>(kind)]; }
  const StepCost& step_cost() const { return step_; }
  double draft_level_seconds() const { return level_seconds_; }

 private:
  double plain_seconds() const { return step_.seconds(sequences_); }
  bool probe(int64_t guesses);
  bool plain_is_due() const;
  DraftShape plan_costly(int64_t limit);
  bool asks_for_free_guesses();
  void account_for_free_guesses(double gain);

  ControllerOptions options_;
  int costly_kind_;
  bool has_free_kinds_;
  std::vector<Acceptance> acceptance_;
  StepCost step_;
  int64_t sequences_ = 1;
  double level_seconds_ = 0;     // of one level of costly guesses
  int rounds_with_guesses_ = 0;  // since the last one without
  double credit_ = 0;            // seconds that may be lost by trying
  bool asked_ = false, probing_ = false, drafted_before_ = false;
  // Free guesses take a little time to look up, too. What they have gained and may still lose, in
  // plain rounds, and the rounds for which they are left unasked once that is gone.
  double account_;
  int pause_, paused_ = 0;
};

}  // namespace pronghorn
