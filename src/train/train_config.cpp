#include "train/train_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace pronghorn {

TrainConfig read_train_config(ConfigReader reader, TrainConfig defaults) {
  TrainConfig config = defaults;
  config.window = reader.integer("window", config.window, 1, 1 << 24);
  config.batch_tokens = reader.integer("batch_tokens", config.batch_tokens, 1, 1 << 28);
  config.micro_batch_tokens =
      reader.integer("micro_batch_tokens", config.micro_batch_tokens, 0, 1 << 28);
  config.gradient_groups = reader.integer("gradient_groups", config.gradient_groups, 1, 1 << 16);
  config.sequence_parallel =
      sequence_parallel_named(reader.one_of("sequence_parallel", {"none", "ulysses", "ring"},
                                            std::string(name_of(config.sequence_parallel))));
  config.sequence_parallel_ranks =
      reader.integer("sequence_parallel_ranks", config.sequence_parallel_ranks, 0, 1 << 16);
  require(config.sequence_parallel_ranks == 0 || config.sequence_parallel != SequenceParallel::none,
          reader.path("sequence_parallel_ranks"),
          "{} ranks share a sequence, and sequence_parallel is none",
          config.sequence_parallel_ranks);
  config.learning_rate = reader.number("learning_rate", config.learning_rate, 0, 10);
  config.final_learning_rate =
      reader.number("final_learning_rate", config.final_learning_rate, 0, 1);
  const bool wsd = config.schedule == Schedule::wsd;
  config.schedule = reader.one_of("schedule", {"cosine", "wsd"}, wsd ? "wsd" : "cosine") == "wsd"
                        ? Schedule::wsd
                        : Schedule::cosine;
  config.warmup = reader.number("warmup", config.warmup, 0, 1);
  config.decay = reader.number("decay", config.decay, 0, 1);
  config.weight_decay = reader.number("weight_decay", config.weight_decay, 0, 10);
  config.beta1 = reader.number("beta1", config.beta1, 0, 0.999999);
  config.beta2 = reader.number("beta2", config.beta2, 0, 0.999999);
  config.epsilon = reader.number("epsilon", config.epsilon, 1e-30, 1);
  config.clip = reader.number("clip", config.clip, 0);
  config.z_loss = reader.number("z_loss", config.z_loss, 0, 10);
  config.mtp_loss = reader.number("mtp_loss", config.mtp_loss, 0, 100);
  config.early_exit = reader.integer("early_exit", config.early_exit, 0, 1 << 16);
  config.early_exit_loss = reader.number("early_exit_loss", config.early_exit_loss, 0, 100);
  if (reader.has("position")) {
    ConfigReader position = reader.object("position");
    config.positions.skip = position.integer("skip", config.positions.skip, 0, INT32_MAX);
    config.positions.chunks = position.integer("chunks", config.positions.chunks, 1, 1 << 16);
    position.finish();
  } else {
    reader.ignore("position");
  }
  const int64_t skip = config.positions.skip;
  require(skip == 0 || skip >= config.window, reader.path("position"),
          "skips within {} tokens, fewer than the window of {}", skip, config.window);
  config.image_shift = reader.integer("image_shift", config.image_shift, 0, 64);
  const bool bf16 = config.precision == Precision::bf16;
  config.precision = reader.one_of("precision", {"f32", "bf16"}, bf16 ? "bf16" : "f32") == "bf16"
                         ? Precision::bf16
                         : Precision::f32;
  reader.finish();
  return config;
}

nlohmann::json write_train_config(const TrainConfig& config) {
  nlohmann::json json = {{"window", config.window},
                         {"batch_tokens", config.batch_tokens},
                         {"micro_batch_tokens", config.micro_batch_tokens},
                         {"learning_rate", config.learning_rate},
                         {"final_learning_rate", config.final_learning_rate},
                         {"schedule", config.schedule == Schedule::wsd ? "wsd" : "cosine"},
                         {"warmup", config.warmup},
                         {"decay", config.decay},
                         {"weight_decay", config.weight_decay},
                         {"beta1", config.beta1},
                         {"beta2", config.beta2},
                         {"epsilon", config.epsilon},
                         {"clip", config.clip},
                         {"z_loss", config.z_loss},
                         {"precision", config.precision == Precision::bf16 ? "bf16" : "f32"}};
  // Left out unless asked for: they are settings of few runs.
  const TrainConfig defaults;
  if (config.gradient_groups > 1) json["gradient_groups"] = config.gradient_groups;
  if (config.sequence_parallel != SequenceParallel::none) {
    json["sequence_parallel"] = name_of(config.sequence_parallel);
  }
  if (config.mtp_loss != defaults.mtp_loss) json["mtp_loss"] = config.mtp_loss;
  if (config.early_exit > 0) {
    json["early_exit"] = config.early_exit;
    json["early_exit_loss"] = config.early_exit_loss;
  }
  if (config.positions.skip > 0) {
    json["position"] = {{"skip", config.positions.skip}, {"chunks", config.positions.chunks}};
  }
  if (config.image_shift > 0) json["image_shift"] = config.image_shift;
  return json;
}

double learning_rate_at(const TrainConfig& config, double progress) {
  progress = std::clamp(progress, 0.0, 1.0);
  const double low = config.final_learning_rate;
  double factor = 1;
  if (config.warmup > 0 && progress < config.warmup) {
    factor = progress / config.warmup;
  } else if (config.schedule == Schedule::cosine) {
    const double through = (progress - config.warmup) / std::max(1e-9, 1 - config.warmup);
    factor = low + (1 - low) * 0.5 * (1 + std::cos(std::numbers::pi * through));
  } else if (config.decay > 0 && progress > 1 - config.decay) {
    factor = low + (1 - low) * (1 - progress) / config.decay;
  }
  return config.learning_rate * factor;
}

}  // namespace pronghorn
