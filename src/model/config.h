// ModelConfig: what a model is made of, read from a config.json and checked to the last key.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/json.h"
#include "layers/layer.h"
#include "layers/span_choice.h"
#include "model/diffusion_config.h"
#include "model/image_config.h"
#include "model/pattern.h"
#include "model/sound_config.h"

namespace pronghorn {

// What a block's mixers see besides the stream (model/side.h).
struct SideConfig {
  nlohmann::json mixer, feed_forward;  // complete
  int64_t shared = 0;  // sides of one number have the same weights; 0: this one has its own
};

// One kind of block: one or several mixers side by side, then optionally a feed-forward, each with
// norms and a residual connection; or a feed-forward alone.
struct BlockConfig {
  // Where the norms are: before a part; after it and before the residual addition; at both places;
  // before the feed-forward alone, where mixers have norms of their own.
  enum class Norms { before, after, both, ffn };
  // What the feed-forward is given: the stream with the mixers' output; the stream that the mixers
  // were given, under a norm of its own; the very input of the mixers; the stream with the mixers'
  // output, which the stream itself then goes on without (Megalodon, arXiv 2404.08801, section
  // 3.4).
  enum class Residual { sequential, parallel, shared, two_hop };
  // What several mixers give together: the mean of their outputs, each under a norm of its own, or
  // the sum.
  enum class Merge { mean_of_norms, sum };

  std::vector<nlohmann::json> mixers;  // complete: every default spelled out
  nlohmann::json feed_forward;         // null: none
  std::optional<SideConfig> side;
  Merge merge = Merge::mean_of_norms;  // of several mixers
  Norms norms = Norms::before;
  Residual residual = Residual::sequential;
  double residual_multiplier = 1;  // of what mixers and feed-forward add to the stream
  // Factors of a stream that goes on from the norm before each part (DeepNorm as MiniMax-01 has it,
  // arXiv 2501.08313): x = stream norm(x) + part f(norm(x)).
  struct NormResidual {
    double mixer_stream = 1, mixer_part = 1, ffn_stream = 1, ffn_part = 1;
  };
  std::optional<NormResidual> norm_residual;
  // The block joins the stream x by a learned scale of each channel, x + c (block(x) - x)
  // (Zipformer, arXiv 2310.11230, section 3.2): steps over which the limit of c falls from 0.9 to
  // 0.2 in training.
  std::optional<int64_t> bypass_steps;
  // How mixers that see earlier rows only go over an image; none in a model of texts.
  Scan scan = Scan::none;
};

// Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): heads after the last block
// that guess tokens further ahead; only speculation uses them.
struct MtpConfig {
  int64_t heads = 0;
  int64_t published = 0;  // those that a published file says it has; it may lack some
  char block = 0;         // the kind of block in each; 0: that of the pattern's end
};

// The context that a model was trained for, in tokens.
struct TrainedContext {
  int64_t tokens = 0;  // 0: its files do not say
  // What it was first trained for, where its rotary positions were scaled afterwards to reach
  // `tokens`; 0: they are not scaled.
  int64_t original = 0;
};

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;         // outside of spans, which may have widths of their own
  std::string pattern;             // as written
  std::vector<PatternStep> steps;  // expanded
  std::map<char, BlockConfig> blocks;
  SubsampleConfig subsample;  // used by the spans of the pattern; none: keep is empty
  Norm::Kind norm = Norm::Kind::rms_norm;
  float norm_epsilon = 1e-5f;
  bool norm_bias = false;         // layer_norm only
  double embedding_scale = 1;     // factor on the rows of the embedding table
  bool embedding_norm = false;    // a norm on them, before the first block
  int64_t prefix_tokens = 0;      // learned embeddings before the first token of every sequence
  int64_t learned_positions = 0;  // rows of a table of positions, added to the embeddings; 0: none
  double logit_scale = 1;         // factor on the scores
  double logit_soft_cap = 0;      // scores become cap tanh(s / cap); 0: they stay
  bool tie_embeddings = true;
  bool recompute = false;  // activations of a block are recomputed in the backward pass
  double initializer_range = 0.02;
  MtpConfig mtp;
  // What fills in masked tokens and sees both ways; none: a model that predicts the next token.
  std::optional<DiffusionConfig> diffusion;
  // What says what is on an image: its vocabulary are classes. None: a model of texts.
  std::optional<ImageConfig> image;
  // Images that a model of texts sees before a text. None: it sees none.
  std::optional<ImageConfig> vision;
  // What writes down what is said: its vocabulary are a blank and symbols. None: a model of texts.
  std::optional<SoundConfig> sound;
  TrainedContext context;
  nlohmann::json train;  // recommended training settings; null: none
  // The published family that the file was of; empty: none. It decides nothing but how the model is
  // written.
  std::string family;

  // Columns of the rows that a kind of block of the pattern is given, and of those at its end.
  int64_t block_width(char block) const;
  int64_t output_size() const;

  Norm::Style norm_style() const { return {norm, norm_epsilon, norm_bias}; }
  // Whether rows see all of their segment, or of its block and those before it.
  bool sees_both_ways() const { return diffusion || image || (sound && sound->both_ways); }
  // "images", "sound" or "texts".
  std::string_view subject() const { return image ? "images" : sound ? "sound" : "texts"; }
  // Whether rows are numbers that are measured, in place of tokens.
  bool of_measurements() const { return image || sound; }
  int64_t block_count() const;
  bool has_sides() const;
  // The first layer whose side has the weights of this layer's side.
  int64_t side_owner(int64_t layer) const;
  int64_t span_count() const;
  char mtp_block() const;
};

// vocab_size may be missing in a configuration that is to be trained (its tokenizer decides); then
// it is read as 0 and must be set before the model is built; likewise sizes and classes of images,
// and symbols of sound.
// Throws Error for unknown keys, missing keys, values out of range, a pattern that does not parse,
// blocks that the pattern names and nobody defines, sizes that do not divide, and blocks of one
// kind in rows of several widths.
ModelConfig read_pronghorn_config(ConfigReader reader);

// What the configuration says of it, or else the window of its training settings.
TrainedContext trained_context(const ModelConfig& config);

// The inverse, with all defaults spelled out.
nlohmann::json write_pronghorn_config(const ModelConfig& config);

// A configuration file of any family that this engine knows (see families.h), a checkpoint
// directory with a config.json, or a .pth file of RWKV-7, whose tensors say it.
ModelConfig load_config(const std::filesystem::path& path);

// Throws Error for a model of images or sound, with what to use it for. where: its checkpoint.
void require_reads_texts(const ModelConfig& config, const std::string& where);

}  // namespace pronghorn
