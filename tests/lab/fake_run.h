// A comparison that looks like a real one, made of formulas.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "lab/results.h"

namespace pronghorn::lab {

struct FakeTraits {
  const char* name;
  const char* pattern;
  double final_bits, train_speed, decode_speed;
  // State bytes: fixed, and for each token of context.
  double fixed_bytes, token_bytes;
  double recall;
};

inline ArchitectureResult fake_result(const FakeTraits& traits, size_t index) {
  constexpr double kSeconds = 600;
  constexpr int kSteps = 900, kEvaluateEvery = 60;
  ArchitectureResult a;
  a.name = traits.name;
  a.config_path = std::string("configs/compare/") + traits.name + ".json";
  a.identity = "0123456789abcdef";
  a.pattern = traits.pattern;
  a.kind = traits.fixed_bytes == 0   ? "softmax attention"
           : traits.token_bytes == 0 ? "state space"
                                     : "hybrid";
  a.parameters = 10'200'000 + 137'000 * static_cast<int64_t>(index);
  a.non_embedding_parameters = a.parameters - 1'048'576;
  a.train_seconds = kSeconds + 0.4 * static_cast<double>(index);
  a.train_tokens = static_cast<int64_t>(traits.train_speed * a.train_seconds);
  a.train_tokens_per_second = traits.train_speed;
  a.train_fraction_of_peak = traits.train_speed / 52e3;
  a.peak_training_bytes = static_cast<int64_t>(1.1e9 + 2.1e8 * static_cast<double>(index));
  for (int step = 1; step <= kSteps; ++step) {
    const double part = static_cast<double>(step) / kSteps;
    const double bits =
        traits.final_bits + 2.2 * std::exp(-28 * part) + 0.42 * (std::pow(part, -0.28) - 1);
    // A cheap deterministic noise, as from batch to batch.
    const double noise = 0.06 * std::sin(12.9898 * step + 78.233 * static_cast<double>(index)) *
                         std::cos(37.719 * step);
    CurvePoint point{step,
                     static_cast<int64_t>(part * static_cast<double>(a.train_tokens)),
                     part * a.train_seconds,
                     2.35 * std::min(bits, 5.1) + noise,
                     {}};
    if (step == 1 || step % kEvaluateEvery == 0) {
      point.held_out_bits_per_byte = std::min(bits, 5.0);
    }
    a.curve.push_back(point);
  }
  a.held_out_bits_per_byte = a.curve.back().held_out_bits_per_byte;
  a.best_held_out_bits_per_byte = a.held_out_bits_per_byte;
  for (const int64_t context : {512, 4096, 32768, 262144}) {
    // The cache of attention does not fit at the last.
    const double n = static_cast<double>(context);
    if (traits.token_bytes > 2000 && context == 262144) continue;
    const double slowdown = 1 + traits.token_bytes * n / 9e6;
    a.inference.push_back({context, 4.2 * traits.train_speed / slowdown,
                           traits.decode_speed / slowdown,
                           static_cast<int64_t>(traits.fixed_bytes + traits.token_bytes * n)});
  }
  a.mqar_accuracy = traits.recall;
  a.sample = "Once upon a time, the " + a.name +
             " model was asked to go on with a story.\n\n\"I am not sure that I can,\" it said, "
             "\"but the valley was wide, and the road went down to the river, where the miller "
             "kept his three white geese.\" And so it went on, sentence after sentence, until the "
             "budget of two hundred tokens was spent and the";
  return a;
}

// Five architectures at contexts of 512 to 262144; the transformer has no result at the last.
inline CompareRun fake_run() {
  CompareRun run;
  run.title = "Five architectures on children's stories";
  run.date = "2026-11-21";
  run.seed = 1234;
  run.machine = {"Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
                 4,
                 4,
                 {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"},
                 612.4,
                 3318.0,
                 38.7};
  run.data = {{"data/stories-train.txt", "data/stories-held-out.txt"},
              "byte-level BPE",
              4096,
              48'300'000,
              512'000,
              2'010'000,
              2.634};
  run.budget.seconds = 600;
  const FakeTraits traits[] = {
      {"transformer", "12a", 1.312, 21.4e3, 410, 0, 6144, 0.992},
      {"mamba", "24m", 1.356, 15.1e3, 455, 1.18e6, 0, 0.641},
      {"mamba2", "24m", 1.341, 24.9e3, 520, 4.72e6, 0, 0.807},
      {"gated-deltanet", "12[g]", 1.304, 19.8e3, 498, 3.15e6, 0, 0.953},
      {"hybrid", "3[3g a]", 1.287, 20.3e3, 470, 2.36e6, 1536, 0.989},
  };
  for (size_t i = 0; i < std::size(traits); ++i) {
    run.architectures.push_back(fake_result(traits[i], i));
  }
  return run;
}

}  // namespace pronghorn::lab
