// Speculation: a drafter with what was learnt about it; reused from one generation to the next.
#pragma once

#include <memory>
#include <string>

#include "decode/controller.h"
#include "decode/drafter.h"

namespace pronghorn {

struct SpeculationOptions {
  ControllerOptions control;
  // How guesses are judged when sampling. false: coupled, by comparing with the model's own choice;
  // the text for a seed is the same with any drafter or none. true: block verification, which
  // accepts more guesses; the text is drawn from the same distribution, but another one for each
  // drafter and run.
  bool block = false;
};

// What came of it, summed over rounds and sequences.
struct SpeculationStats {
  int64_t rounds = 0;      // of all sequences that took part
  int64_t speculated = 0;  // of these, rounds that checked guesses
  int64_t drafted = 0;     // guesses checked
  int64_t accepted = 0;    // of these, those that came true
  int64_t tokens = 0;      // written
  // By place in the draft, from 1 on: index 0 is the first guess.
  std::array<int64_t, static_cast<size_t>(kMaxDraft)> drafted_at{}, accepted_at{};
  double draft_seconds = 0, step_seconds = 0;

  double acceptance() const {
    return drafted == 0 ? 0 : static_cast<double>(accepted) / static_cast<double>(drafted);
  }
  double tokens_per_round() const {
    return rounds == 0 ? 0 : static_cast<double>(tokens) / static_cast<double>(rounds);
  }
};

class Speculation {
 public:
  explicit Speculation(std::unique_ptr<Drafter> drafter, const SpeculationOptions& options = {});

  // Before a generation of `sequences` sequences: measures what its steps cost, once for each
  // model, precision, number of sequences and of threads. changing: there will be that many at
  // most, and fewer most of the time.
  void prepare(const Model& model, const Context& context, int64_t sequences,
               bool changing = false);

  Drafter& drafter() { return *drafter_; }
  Controller& controller() { return controller_; }
  const SpeculationOptions& options() const { return options_; }
  SpeculationStats& stats() { return stats_; }

 private:
  std::unique_ptr<Drafter> drafter_;
  SpeculationOptions options_;
  Controller controller_;
  SpeculationStats stats_;
  std::string prepared_;  // what the costs were measured for
};

// Throws Error if `text` names a draft model that is not there. Before anything large is loaded.
void check_drafters(const std::string& text);

// The drafters that --draft names: "ngram", "suffix", "early-exit:E", "mtp", or the directory of a
// smaller model; several with commas between them are a stack. Throws Error for what does not fit
// the model.
std::unique_ptr<Drafter> make_drafter(const std::string& text, const Model& model,
                                      const Tokenizer& tokenizer);

}  // namespace pronghorn
