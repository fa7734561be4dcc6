// Judging a model: loss on held-out text, accuracy on synthetic tasks.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "formats/tokenizer.h"
#include "model/model.h"
#include "ops/cross_entropy.h"
#include "tensor/sequence_shards.h"
#include "train/data_source.h"
#include "train/expert_loads.h"
#include "train/token_shards.h"

namespace pronghorn {

// Samples of the bound of a diffusion model.
constexpr int64_t kBoundSamples = 4;

struct TextScore {
  int64_t tokens = 0;  // predicted
  double bytes = 0;    // of text that they stand for
  double nll = 0;      // their sum, nats
  // Above 0: of a diffusion model. nll and what follows from it are upper bounds, estimated from
  // that many samples of each window (bound_mask()).
  int64_t samples = 0;
  std::vector<int64_t> entered;  // tokens that entered each subsampled span
  ExpertLoads expert_loads;
  double perplexity() const;     // e^(nll / tokens)
  double bits_per_byte() const;  // nll / ln 2 / bytes
  // Share of the tokens that entered each subsampled span.
  std::vector<double> kept_shares() const;
  TextScore& operator+=(const TextScore& other);
};

// Called now and then with the tokens done so far; may be empty.
using ProgressFunction = std::function<void(double done)>;

// Reads the shard in windows of `window` tokens, each a fresh sequence, and predicts every token
// but the first; its bytes are the text's in proportion. max_tokens: 0 for all; otherwise windows
// spread evenly over the text. samples: of the bound of a diffusion model, the windows of which
// share a token that the second is given.
TextScore evaluate_text(const Model& model, Precision precision, const TokenShard& shard,
                        int64_t window, int64_t max_tokens = 0,
                        const ProgressFunction& progress = {}, int64_t samples = kBoundSamples);

// The longest window: its activations are all in memory. Longer texts: evaluate_stream().
constexpr int64_t kMaxWindow = int64_t{1} << 18;

// The window by which a model is judged where none is asked for: that of its training, else 1024
// tokens, or its context if that is shorter. Throws Error for settings of training that are
// damaged.
int64_t default_window(const ModelConfig& config);

// The same for tokens at hand, all of them; `bytes` of the result is left at 0. cache: other
// than by default, each window is read with a state of its own. sharing: all ranks call it, and are
// given the same score; windows of fewer than two tokens a rank are read by each alone.
TextScore evaluate_tokens(const Model& model, Precision precision, std::span<const int32_t> tokens,
                          int64_t window, const ProgressFunction& progress = {},
                          const CacheOptions& cache = {}, int64_t samples = kBoundSamples,
                          const SequenceSharing& sharing = {});

// Bytes of `text`, whose tokens these are, that predicted tokens stand for: all but those of the
// first token, which nothing predicts.
double predicted_bytes(const Tokenizer& tokenizer, std::string_view text,
                       std::span<const int32_t> tokens);

// A stretch of a text that was read as one long sequence.
struct StreamPart {
  int64_t begin = 0;        // its first token
  int64_t tokens = 0;       // that it predicts
  double nll = 0;           // their sum, nats
  double seconds = 0;       // to read it
  int64_t state_bytes = 0;  // of the sequence, at its end
  int64_t peak_bytes = 0;   // that tensors held at most meanwhile
};

// Reads `tokens` as one sequence that is carried on, however long, and predicts every token but the
// first; a part every `part` tokens. Throws Error for fewer than two tokens.
std::vector<StreamPart> evaluate_stream(const Model& model, Precision precision,
                                        std::span<const int32_t> tokens, int64_t part,
                                        const ProgressFunction& progress = {},
                                        const CacheOptions& cache = {});

struct TaskScore {
  int64_t answers = 0;
  int64_t correct = 0;
  int64_t examples = 0;
  int64_t solved = 0;  // examples whose answers are all correct
  double nll = 0;
  double solved_share() const {
    return examples == 0 ? 0 : static_cast<double>(solved) / static_cast<double>(examples);
  }
  double accuracy() const {
    return answers == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(answers);
  }
};

// `examples` examples of a task, none of which training sees.
TaskScore evaluate_task(const Model& model, Precision precision, DataSource& task, int64_t examples,
                        const ProgressFunction& progress = {});

}  // namespace pronghorn
