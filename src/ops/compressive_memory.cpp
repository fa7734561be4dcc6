#include "ops/compressive_memory.h"

#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/replay.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "compressive memory";

CompressiveMemoryShape shape_of(const CompressiveMemoryOptions& options) {
  require(options.heads > 0 && options.kv_heads > 0 && options.heads % options.kv_heads == 0 &&
              options.key_dim > 0 && options.value_dim > 0 && options.segment > 0 &&
              options.segment % kExactStep == 0,
          kWhere, "{} heads of {} and {} over {} memories, segments of {}", options.heads,
          options.key_dim, options.value_dim, options.kv_heads, options.segment);
  return {options.heads,     options.kv_heads, options.key_dim,
          options.value_dim, options.segment,  options.delta_rule};
}

void check(const char* name, const Tensor& tensor, int64_t rows, int64_t columns) {
  require(tensor.rows() == rows && tensor.columns() == columns, kWhere, "{} is {}, not [{}, {}]",
          name, tensor.shape(), rows, columns);
}

}  // namespace

JournalShape compressive_memory_journal(const CompressiveMemoryOptions& options) {
  const CompressiveMemoryShape shape = shape_of(options);
  JournalShape journal;
  journal.name = "compressive_memory";
  journal.row_width = shape.row_width();
  journal.anchor_size = shape.state_size();
  journal.fold_interval = kExactStep;
  return journal;
}

Tensor compressive_memory(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                          const CompressiveMemoryOptions& options, const CheckedBatch& batch,
                          JournalSlot slot) {
  const CompressiveMemoryShape shape = shape_of(options);
  check("q", q, batch.rows(), shape.heads * shape.key_dim);
  check("k", k, batch.rows(), shape.kv_heads * shape.key_dim);
  check("v", v, batch.rows(), shape.kv_heads * shape.value_dim);
  const Tensor out = Tensor::empty({batch.rows(), shape.heads * shape.value_dim});
  const bool record = needs_gradient(context, out, q, k, v);
  check_recurrence(kWhere, batch, record);
  std::vector<CompressiveMemoryRun> runs;
  for (const Segment& segment : batch.segments()) {
    if (segment.state != nullptr || segment.length == 0) continue;
    runs.push_back({segment.first_row, segment.length});
  }
  const CompressiveMemoryInputs inputs = {input_matrix(q), input_matrix(k), input_matrix(v)};
  CompressiveMemoryKernels& kernels = backend().compressive_memory();
  if (!runs.empty()) kernels.forward(shape, runs, inputs, output_matrix(out));
  Replay replay(batch, slot);
  if (!replay.empty()) {
    const auto run = [&](std::span<const std::span<const ReplayStep>> sequences) {
      kernels.steps(shape, sequences, inputs, output_matrix(out));
    };
    catch_up_by_steps(replay, run);
    run(replay.steps());
  }
  if (!record) return out;
  context.tape->record([=] {
    if (!out.has_grad()) return;
    CompressiveMemoryGradients gradients;
    // In this order: they may be views of one tensor, whose first call makes the gradient.
    gradients.q = input_gradient(q);
    gradients.k = input_gradient(k);
    gradients.v = input_gradient(v);
    backend().compressive_memory().backward(shape, runs, inputs, input_matrix(out),
                                            output_gradient(out), gradients);
  });
  return out;
}

}  // namespace pronghorn
