// Model: embeddings, blocks, a final norm and the output head. One forward serves training,
// prompts, decoding, batches and verification.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "layers/subsample.h"
#include "model/block.h"
#include "model/config.h"
#include "model/mtp.h"
#include "model/observer.h"
#include "ops/cross_entropy.h"
#include "tensor/sequence_state.h"

namespace pronghorn {

// What the layers directly in one subsampled span cost, or those outside all spans.
struct SpanCost {
  int64_t span = -1;  // its number in pattern order; -1: outside all spans
  int64_t depth = 0;  // spans around these layers
  int64_t blocks = 0;
  double share = 1;         // of a sequence's tokens that gets here
  TokenCost cost;           // forward work for a token of the sequence, on average
  int64_t state_bytes = 0;  // after the context
};

class Adapter;

class Model {
 public:
  // Random initial weights, a function of the seed alone. Throws Error on an impossible config.
  Model(ModelConfig config, uint64_t seed);

  // From a checkpoint directory (config.json and *.safetensors), a GGUF file or a .pth file of
  // RWKV-7. For inference, matrices stay what
  // they are in the file, which is mapped: it must not be changed while the model lives. Throws
  // Error for missing, extra or misshapen tensors.
  static std::unique_ptr<Model> load(const std::filesystem::path& directory,
                                     Purpose purpose = Purpose::inference);

  // A model without numbers, to be asked about sizes and costs.
  static std::unique_ptr<Model> outline(ModelConfig config);

  // Ends training: from here on no gradients, and what products need of the weights replaces them.
  void freeze() { store_.freeze(); }

  // Writes config.json and model.safetensors, in the most widely understood family that can express
  // the model, each file atomically. metadata: kept in the safetensors header.
  void save(const std::filesystem::path& directory,
            const std::map<std::string, std::string>& metadata = {}) const;

  // Gives this model the numbers of a checkpoint of its very configuration.
  void load_weights(const std::filesystem::path& directory);

  // Gives the parameter at `index` its numbers. Throws Error if they do not fit it.
  void assign(size_t index, Stored stored) { store_.assign(index, std::move(stored)); }

  // The last hidden states, normalised: [rows, output_size()]. In a diffusion model causal segments
  // see both ways (with_masks()). In a model of images they do, too, and a batch has rows of
  // patches (add_image(), write_rows()) as embeddings; where its pool is a mean, each row is that
  // of its image, of its merged patches if the pattern merges them. A model of texts with `vision`
  // takes rows of patches among those of tokens (Batch::patches). In a model of sound rows of
  // frames are the embeddings (stacked_rows()), which see both ways if its configuration says so.
  // Segments with a state continue it; for a chain the state then includes the segment's tokens,
  // for a token tree it waits for SequenceState::commit(). Throws Error for tokens out of range,
  // embeddings of another width and positions that do not follow the tokens of a state. Rows that
  // are pieces of sequences on several ranks (SequenceShards::local()) are given to forward() by
  // all ranks together; then it throws Error, on all of them, for layers that cannot do with
  // pieces.
  Tensor forward(const Context& context, const CheckedBatch& batch,
                 const ForwardObserver& observer = {}) const;

  // Throws Error unless a forward can be left after the first `layers` blocks: there are that many,
  // and that place is outside all subsampled spans, where no token is missing.
  void check_exit(int64_t layers, std::string_view where) const;

  // Scores of the next token: [rows, vocab_size]. hidden: rows of what forward() returned.
  Tensor logits(const Context& context, const Tensor& hidden) const;

  // The loss of these scores, fused with them: linear_cross_entropy() with the model's head.
  CrossEntropy cross_entropy(const Context& context, const Tensor& hidden,
                             std::span<const int32_t> targets, double gradient_scale,
                             double z_loss_weight, std::span<const float> weights = {}) const;

  // The output projection.
  const Weight& head() const { return head_; }

  // Multi-token prediction (ModelConfig::mtp). Head k continues what head k - 1 returned (k = 0:
  // what forward() returned) of token t, given token t + k + 1, which batch.tokens holds; its
  // hidden states, normalised, are to be scored by logits() for token t + k + 2. Each head has a
  // state of its own per sequence, new_mtp_state(). Nothing is carried into a head; of `observer`
  // it calls on_loss.
  Tensor mtp_forward(const Context& context, int64_t head, const Tensor& hidden,
                     const CheckedBatch& batch, const ForwardObserver& observer = {}) const;
  int64_t mtp_depth() const { return static_cast<int64_t>(mtp_.size()); }
  SequenceState new_mtp_state() const { return SequenceState(mtp_layout_); }

  // A fresh sequence; cache: how attention's keys and values are kept.
  SequenceState new_state(const CacheOptions& cache = {}) const {
    return SequenceState(layout(cache));
  }
  std::shared_ptr<const StateLayout> layout(const CacheOptions& cache = {}) const {
    return with_cache(layout_, cache);
  }

  const ModelConfig& config() const { return config_; }
  // What is remembered with the model as how it was trained.
  void set_train_settings(nlohmann::json settings) { config_.train = std::move(settings); }
  const std::vector<Parameter>& parameters() const { return store_.all(); }
  // What is trained: the parameters, or those of the adapter alone.
  const std::vector<Parameter>& trained() const;
  // Changes of low rank to its matrices (model/lora.h); null: none.
  const std::shared_ptr<const Adapter>& adapter() const { return adapter_; }
  // Takes the place of the adapter there is.
  void set_adapter(std::shared_ptr<const Adapter> adapter);
  int64_t parameter_count() const;
  // Those that a token meets, on average: without the experts that it is not given to.
  int64_t active_parameter_count() const;
  // Without the embedding table (and without an untied head, its counterpart).
  int64_t non_embedding_parameter_count() const;

  // Forward work of one token at a context, head included; a training step costs three times that.
  TokenCost cost(double context) const;
  // Bytes of the state of a sequence of `context` tokens, as SequenceState::bytes() will report.
  int64_t predicted_state_bytes(int64_t context, const CacheOptions& cache = {}) const;
  // Both, without the head, by subsampled span: first what is outside all spans, then the spans.
  // shares: of the tokens, that reach each span; empty: what the configuration keeps.
  std::vector<SpanCost> span_costs(double context, std::span<const double> shares = {},
                                   const CacheOptions& cache = {}) const;
  // The shares that reach each span after reading `state`; a span without layers of its own is
  // given the configured share.
  std::vector<double> measured_shares(const SequenceState& state) const;

  // In the order of the pattern: for those who ask layers for what only some of them offer.
  const std::vector<std::unique_ptr<Block>>& blocks() const { return blocks_; }

  // The configuration of blocks and sizes, hashed: tells whether a saved session fits.
  uint64_t fingerprint() const { return layout_->fingerprint; }

 private:
  friend class ForwardRun;  // runs the blocks

  Model(ModelConfig config, uint64_t seed, bool initialize, Purpose purpose);
  // forward() with the masks that the batch says.
  Tensor forward_masked(const Context& asked, const CheckedBatch& batch,
                        const ForwardObserver& observer) const;
  // For the constructor, in this order: what makes rows of tokens, patches or frames, and the
  // blocks and spans, whose journals are returned. scope: of the model.
  void make_inputs(const ParameterScope& scope);
  std::shared_ptr<StateLayout> make_blocks(LayerContext context, const ParameterScope& scope);
  // The block of layer context.layer. scope: of the model.
  std::unique_ptr<Block> make_block(const BlockConfig& block, const LayerContext& context,
                                    const ParameterScope& scope) const;
  // The rows of a batch's tokens, and of the patches among them.
  Tensor embedded_tokens(const Context& context, const CheckedBatch& batch) const;
  // The rows that enter the first block. Throws Error unless the batch fits the model and its
  // states.
  Tensor embedded(const Context& context, const CheckedBatch& batch) const;
  std::vector<double> configured_shares() const;

  ModelConfig config_;
  ParameterStore store_;
  std::shared_ptr<const Adapter> adapter_;
  Weight embeddings_, prefix_, positions_, head_;  // of images, the first are those of patches,
                                                   // of sound those of frames
  Tensor input_bias_;                              // of images and sound
  Weight projector_;  // of the patches that a model of texts sees, with the next two
  Tensor projector_bias_;
  Norm projector_norm_;
  int64_t position_limit_ = std::numeric_limits<int64_t>::max();  // positions are below it
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Subsample> spans_;
  std::vector<MtpHead> mtp_;
  Norm embedding_norm_, norm_;  // the first undefined without it
  std::shared_ptr<const StateLayout> layout_, mtp_layout_;
};

}  // namespace pronghorn
