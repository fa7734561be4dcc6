#include "serve/http/scoring.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "serve/http/api_error.h"
#include "tensor/batch.h"

namespace pronghorn::serve {
namespace {

constexpr size_t kPieceTokens = 256;  // other texts wait for so many
constexpr int64_t kScoredRows = 32;   // a row of scores is as wide as the vocabulary

// Lets the model read the tokens, and takes what it makes of each piece: the place of the piece's
// first token, and the last hidden states.
void read_between_steps(Service& service, const ServedModel& model, std::span<const int32_t> tokens,
                        const Call& call,
                        const std::function<void(size_t, const Context&, const Tensor&)>& take) {
  Context context;
  context.precision = model.options.precision;
  SequenceState state = model.model->new_state(model.options.kv_cache);
  size_t done = 0;
  service.stepper.run([&] {
    if (call.client_is_gone()) throw ClientGone();
    if (service.cutting) throw ApiError(503, "shutting_down", "the server is ending");
    const auto piece = tokens.subspan(done, std::min(kPieceTokens, tokens.size() - done));
    const Batch batch = continue_sequence(state, piece);
    take(done, context, model.model->forward(context, batch));
    done += piece.size();
    return done < tokens.size();
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
      [&](size_t done, const Context& context, const Tensor& hidden) {
        const int64_t rows = hidden.rows();
        for (int64_t row = 0; row < rows; row += kScoredRows) {
          const int64_t count = std::min(kScoredRows, rows - row);
          const Tensor logits = model.model->logits(context, hidden.row_slice(row, count));
          for (int64_t i = 0; i < count; ++i) {
            const auto scores = std::span<const float>(logits.values())
                                    .subspan(static_cast<size_t>(i) * vocab_size, vocab_size);
            const int32_t next = tokens[done + static_cast<size_t>(row + i) + 1];
            scored.push_back(written_token(scores, next, likeliest));
          }
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
