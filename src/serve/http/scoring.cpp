#include "serve/http/scoring.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

#include "model/forward_run.h"
#include "serve/http/api_error.h"
#include "tensor/batch.h"

namespace pronghorn::serve {
namespace {

constexpr size_t kPieceTokens = 256;
constexpr int64_t kTakenRows = 32;  // a row of scores is as wide as the vocabulary

struct Piece {
  Piece(const Model& model, const Context& context, SequenceState& state,
        std::span<const int32_t> tokens)
      : batch(continue_sequence(state, tokens)), checked(batch), run(model, context, checked) {}

  Batch batch;
  CheckedBatch checked;
  ForwardRun run;
};

// Lets the model read the tokens, and takes what it makes of them a few rows at a time: the place
// of the first, and the last hidden states. Other texts wait for a part of a block, or for the
// taking of some rows.
void read_between_steps(Service& service, const ServedModel& model, std::span<const int32_t> tokens,
                        const Call& call,
                        const std::function<void(size_t, const Context&, const Tensor&)>& take) {
  Context context;
  context.precision = model.options.precision;
  SequenceState state = model.model->new_state(model.options.kv_cache);
  std::unique_ptr<Piece> piece;  // null: its rows are taken, or the next is to begin
  Tensor hidden;                 // of the piece that was read; undefined: all rows are taken
  size_t done = 0;               // tokens before that piece
  int64_t taken = 0;             // of its rows
  service.stepper.run([&] {
    if (call.client_is_gone()) throw ClientGone();
    if (service.cutting) throw ApiError(503, "shutting_down", "the server is ending");
    if (hidden.defined()) {
      const int64_t count = std::min(kTakenRows, hidden.rows() - taken);
      take(done + static_cast<size_t>(taken), context, hidden.row_slice(taken, count));
      taken += count;
      if (taken < hidden.rows()) return true;
      done += static_cast<size_t>(taken);
      taken = 0;
      hidden = {};
      return done < tokens.size();
    }
    if (piece == nullptr) {
      const auto next = tokens.subspan(done, std::min(kPieceTokens, tokens.size() - done));
      piece = std::make_unique<Piece>(*model.model, context, state, next);
    }
    if (piece->run.advance()) return true;
    hidden = piece->run.finish();
    piece.reset();
    return true;
  });
}

}  // namespace

std::vector<WrittenToken> scored_tokens(Service& service, const ServedModel& model,
                                        std::span<const int32_t> tokens, int64_t likeliest,
                                        const Call& call) {
  std::vector<WrittenToken> scored;
  if (tokens.size() < 2) return scored;
  const auto vocab_size = static_cast<size_t>(model.model->config().vocab_size);
  read_between_steps(
      service, model, tokens.first(tokens.size() - 1), call,
      [&](size_t first, const Context& context, const Tensor& hidden) {
        const Tensor logits = model.model->logits(context, hidden);
        for (size_t i = 0; i < static_cast<size_t>(hidden.rows()); ++i) {
          const auto scores =
              std::span<const float>(logits.values()).subspan(i * vocab_size, vocab_size);
          scored.push_back(written_token(scores, tokens[first + i + 1], likeliest));
        }
      });
  return scored;
}

std::vector<float> embedding(Service& service, const ServedModel& model,
                             std::span<const int32_t> tokens, const Call& call) {
  std::vector<double> sum(static_cast<size_t>(model.model->config().hidden_size));
  read_between_steps(service, model, tokens, call,
                     [&](size_t, const Context&, const Tensor& hidden) {
                       const std::span<const float> values = hidden.values();
                       for (size_t i = 0; i < values.size(); ++i) {
                         sum[i % sum.size()] += double{values[i]};
                       }
                     });
  double square = 0;
  for (const double value : sum) square += value * value;
  const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
  std::vector<float> result;
  for (const double value : sum) result.push_back(static_cast<float>(value * scale));
  return result;
}

}  // namespace pronghorn::serve
