// Scores, hidden states and log-probabilities of whole texts.
#include <algorithm>

#include "api/parts.h"
#include "base/error.h"
#include "base/threads.h"
#include "decode/sampling.h"

namespace pronghorn {
namespace {

// Reads `ids` as one fresh text; use(first, hidden) is given its rows piece by piece.
template <typename Use>
void read(const LanguageModel::Parts& parts, std::span<const int32_t> ids, const Context& context,
          Use&& use) {
  if (ids.empty()) throw UsageError("ids", "there are none", "at least one token");
  parts.check_ids(ids);
  if (parts.model->config().diffusion) {  // a row sees those after it
    return use(0, parts.model->forward(context, fresh_segments(ids, std::ssize(ids))));
  }
  SequenceState state = parts.model->new_state();
  read_in_pieces(std::ssize(ids), [&](int64_t done, int64_t count) {
    const auto piece = ids.subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    use(done, parts.model->forward(context, continue_sequence(state, piece)));
  });
}

Context context_of(Rounding rounding, const Model& model) {
  Context context;
  context.precision = precision_of(rounding, model);
  return context;
}

void put(const Tensor& rows, int64_t first, TokenMatrix& result) {
  const std::span<const float> values = rows.values();
  std::copy(values.begin(), values.end(), result.values.begin() + first * result.columns);
}

// Rows of scores that are in memory at once.
constexpr int64_t kScoreRows = 64;

}  // namespace

void LanguageModel::Parts::check_ids(std::span<const int32_t> ids) const {
  const int64_t vocab_size = model->config().vocab_size;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      throw UsageError("ids", fmt::format("there is no token {}", id),
                       fmt::format("from 0 to {}", vocab_size - 1));
    }
  }
}

TokenMatrix LanguageModel::logits(std::span<const int32_t> ids, Rounding rounding) const {
  const Context context = context_of(rounding, *parts_->model);
  TokenMatrix result{std::ssize(ids), vocab_size(), {}};
  result.values.resize(static_cast<size_t>(result.rows * result.columns));
  read(*parts_, ids, context, [&](int64_t first, const Tensor& hidden) {
    for (int64_t row = 0; row < hidden.rows(); row += kScoreRows) {
      const int64_t count = std::min(kScoreRows, hidden.rows() - row);
      put(parts_->model->logits(context, hidden.row_slice(row, count)), first + row, result);
    }
  });
  return result;
}

TokenMatrix LanguageModel::hidden_states(std::span<const int32_t> ids, Rounding rounding) const {
  TokenMatrix result{std::ssize(ids), hidden_size(), {}};
  result.values.resize(static_cast<size_t>(result.rows * result.columns));
  read(*parts_, ids, context_of(rounding, *parts_->model),
       [&](int64_t first, const Tensor& hidden) { put(hidden, first, result); });
  return result;
}

std::vector<double> LanguageModel::log_probabilities(std::span<const int32_t> ids,
                                                     Rounding rounding) const {
  if (parts_->model->config().diffusion) {
    throw UsageError("log_probabilities", "the model fills in masked tokens and predicts none",
                     "evaluate() bounds the probability of a text");
  }
  const Context context = context_of(rounding, *parts_->model);
  std::vector<double> result(ids.empty() ? 0 : ids.size() - 1);
  read(*parts_, ids, context, [&](int64_t first, const Tensor& hidden) {
    for (int64_t row = 0; row < hidden.rows(); row += kScoreRows) {
      const int64_t count = std::min(kScoreRows, hidden.rows() - row);
      const Tensor scores = parts_->model->logits(context, hidden.row_slice(row, count));
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const auto place = static_cast<size_t>(first + row + i);
          if (place >= result.size()) continue;
          const std::span own(scores.row(i), static_cast<size_t>(scores.columns()));
          result[place] = LogProbabilities(own)(ids[place + 1]);
        }
      });
    }
  });
  return result;
}

}  // namespace pronghorn
