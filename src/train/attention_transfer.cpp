#include "train/attention_transfer.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "base/error.h"
#include "ops/optimizer_kernels.h"
#include "ops/pointwise.h"
#include "train/optimizer.h"

namespace pronghorn {
namespace {

// What the mixers of the teacher are given and give, layer by layer.
std::vector<MixersTrace> traces_of(const Model& teacher, const AttentionTransfer& transfer,
                                   const CheckedBatch& batch) {
  std::vector<MixersTrace> traces;
  Context context;
  context.precision = transfer.config.precision;
  ForwardObserver observer;
  observer.on_mixers = [&](const MixersTrace& trace) {
    if (std::ranges::find(transfer.layers, trace.layer) != transfer.layers.end()) {
      traces.push_back(trace);
    }
  };
  teacher.forward(context, batch, observer);
  return traces;
}

// Leaves the gradients of a micro-batch with the student and adds its losses. share: of the step.
void learn(const Model& student, const AttentionTransfer& transfer,
           const std::vector<MixersTrace>& traces, const CheckedBatch& batch, double share,
           std::vector<double>& losses) {
  Tape tape;
  Context context;
  context.tape = &tape;
  context.precision = transfer.config.precision;
  for (size_t i = 0; i < traces.size(); ++i) {
    const MixersTrace& trace = traces[i];
    const Block& block = *student.blocks()[static_cast<size_t>(trace.layer)];
    Carry carry(batch.rows());
    const Tensor gave = block.mixers().front()->forward({context, batch, carry}, trace.given);
    const Tensor difference = add({}, gave, scale({}, trace.gave, -1));
    const double whole = std::max(sum_of_squares(trace.gave.values()), 1e-30);
    losses[i] += share * sum_of_squares(difference.values()) / whole;
    gave.give_grad(scale({}, difference, static_cast<float>(2 * share / whole)));
  }
  tape.run_backward();
}

}  // namespace

std::vector<double> transfer_attention(const Model& teacher, const Model& student,
                                       DataSource& source, const AttentionTransfer& transfer) {
  const TrainConfig& config = transfer.config;
  const int64_t length = source.length();
  const int64_t sequences = std::max<int64_t>(1, config.batch_tokens / length);
  const int64_t wanted =
      config.micro_batch_tokens > 0 ? config.micro_batch_tokens : config.batch_tokens;
  const int64_t micro = std::clamp<int64_t>(wanted / length, 1, sequences);
  TrainingState state(student);
  std::vector<double> losses;
  for (int64_t step = 0; step < transfer.steps; ++step) {
    losses.assign(transfer.layers.size(), 0);
    for (int64_t first = 0; first < sequences; first += micro) {
      const int64_t count = std::min(micro, sequences - first);
      std::vector<int32_t> tokens(static_cast<size_t>(count * length)), targets(tokens.size());
      for (int64_t i = 0; i < count; ++i) {
        const auto at = static_cast<size_t>(i * length), size = static_cast<size_t>(length);
        source.fill(static_cast<uint64_t>(step * sequences + first + i),
                    std::span(tokens).subspan(at, size), std::span(targets).subspan(at, size));
      }
      const CheckedBatch batch(fresh_segments(tokens, length));
      const double share = static_cast<double>(count) / static_cast<double>(sequences);
      learn(student, transfer, traces_of(teacher, transfer, batch), batch, share, losses);
    }
    double mean = 0;
    for (const double loss : losses) mean += loss / static_cast<double>(losses.size());
    const double progress = (static_cast<double>(step) + 0.5) / static_cast<double>(transfer.steps);
    optimizer_step(student, config, state, GradientSum(student, state.ownership, state.ranks),
                   {.learning_rate = learning_rate_at(config, progress),
                    .loss = mean,
                    .sequences = sequences});
    if (transfer.on_step) transfer.on_step(step + 1, mean);
  }
  return losses;
}

}  // namespace pronghorn
