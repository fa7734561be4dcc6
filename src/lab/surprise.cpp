#include "lab/surprise.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace pronghorn::lab {

double TokenSurprise::mean() const {
  if (memories.empty()) return 0;
  return std::accumulate(memories.begin(), memories.end(), 0.0) /
         static_cast<double>(memories.size());
}

std::vector<LearningMemory> learning_memories(const Model& model) {
  std::vector<LearningMemory> all;
  for (const auto& block : model.blocks()) {
    for (const auto& mixer : block->mixers()) {
      const auto* learner = dynamic_cast<const HasLearningMemory*>(mixer.get());
      if (learner != nullptr) all.push_back(learner->learning_memory());
    }
  }
  return all;
}

std::vector<TokenSurprise> read_surprise(const Model& model, const Tokenizer& tokenizer,
                                         std::string_view text) {
  const std::vector<LearningMemory> memories = learning_memories(model);
  require(!memories.empty(), "surprise", "the model has no memory that learns while it reads");
  const std::vector<int32_t> ids = tokenizer.encode(text);
  require(!ids.empty(), "text", "gives no token");
  std::vector<TokenSurprise> tokens;
  SequenceState state = model.new_state();
  const int64_t prefix = model.config().prefix_tokens;  // whose rows are of no token
  const auto read = [&](int64_t done, int64_t count) {
    const auto piece =
        std::span(ids).subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    model.forward({}, continue_sequence(state, piece));
    for (const int32_t id : piece) tokens.push_back({id, tokenizer.token_bytes(id), {}});
    for (const LearningMemory& memory : memories) {
      const Journal& journal = state.journal(memory.slot.layer, memory.slot.index);
      // Layers of a subsampled span have rows of some of the tokens only.
      for (int64_t row = journal.length() - 1; row >= journal.first_row(); --row) {
        const int64_t position = journal.position(row) - prefix;
        if (position < done) break;
        tokens[static_cast<size_t>(position)].memories.push_back(
            fast_weight_memory_surprise(memory.options, journal.row(row)));
      }
    }
  };
  // The rows of that many tokens are always held.
  read_in_pieces(static_cast<int64_t>(ids.size()), read, kExactStep);
  return tokens;
}

TokenView surprise_view(const std::vector<TokenSurprise>& tokens) {
  std::vector<double> sorted;
  for (const TokenSurprise& token : tokens) sorted.push_back(token.mean());
  std::sort(sorted.begin(), sorted.end());
  const double least = sorted.empty() ? 0 : sorted.front();
  const double most = sorted.empty() ? 0 : sorted[sorted.size() - 1 - sorted.size() / 20];
  TokenView view;
  for (const TokenSurprise& token : tokens) {
    const double strength = most > least ? (token.mean() - least) / (most - least) : 0;
    view.tokens.push_back({token.bytes, std::clamp(strength, 0.0, 1.0),
                           fmt::format("surprise {:.3f}; of each memory {:.3f}", token.mean(),
                                       fmt::join(token.memories, ", "))});
  }
  for (const double part : {0.0, 0.5, 1.0}) {
    view.legend.push_back({part, fmt::format("surprise {:.3f}", least + part * (most - least))});
  }
  return view;
}

}  // namespace pronghorn::lab
