// Drafts by a smaller diffusion model with blocks: all guesses in one forward.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "decode/scoring_drafter.h"
#include "model/trained_context.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// The state holds the whole blocks of the text. For a draft the model reads the rest of the text
// with masked tokens up to the end of a block, and the scores of the masked places are those of the
// tokens that follow (after DFlash, arXiv 2602.06036): guesses of one level do not depend on those
// of the level before, and a tree costs what a chain does.
class BlockDrafter final : public ScoringDrafter {
 public:
  BlockDrafter(std::shared_ptr<const Model> model, int64_t vocab_size, std::string name)
      : model_(std::move(model)),
        diffusion_(*model_->config().diffusion),
        vocab_size_(vocab_size),
        name_(std::move(name)) {
    require(diffusion_.block > 0, name_,
            "fills in texts that it sees whole: guesses come from a model with blocks");
    require(!diffusion_.shift, name_,
            "scores a token in the row before it, which another block has");
    const SequenceState state = model_->new_state();
    for (const std::vector<Journal>& layer : state.layers()) {
      for (const Journal& journal : layer) {
        require(journal.shape().fold_interval == 0, name_,
                "has mixers with a state, which cannot take back what was masked: guesses come "
                "from a model that keeps keys and values");
      }
    }
  }

  std::string name() const override { return name_; }
  int64_t longest_text() const override {
    const int64_t limit = position_limit(*model_);
    if (limit == std::numeric_limits<int64_t>::max()) return limit;
    return std::max<int64_t>(0, limit - kMaxDraft - diffusion_.block);
  }

  void start(size_t count) override {
    texts_.resize(count);
    for (size_t i = 0; i < count; ++i) forget(i);
  }
  void forget(size_t sequence) override {
    texts_[sequence] = {};
    texts_[sequence].state = model_->new_state();
  }
  void append(size_t sequence, std::span<const int32_t> tokens) override {
    // A token that only the larger vocabulary of the target has is replaced, and one that masks.
    const auto vocabulary = static_cast<int32_t>(model_->config().vocab_size);
    std::ranges::transform(tokens, std::back_inserter(texts_[sequence].unread), [&](int32_t token) {
      return token < vocabulary && token != diffusion_.mask_token ? token : 0;
    });
  }

 protected:
  Tensor scores(const Context& context, int64_t level, std::span<const Asked> asked) override {
    if (level == 0) read(context, asked);
    std::vector<int32_t> rows;
    for (const Asked& ask : asked) {
      const auto row = static_cast<int32_t>(texts_[ask.request->sequence].first_masked + level);
      rows.insert(rows.end(), ask.nodes.size(), row);
    }
    const Tensor logits = model_->logits(context, embedding(context, hidden_, rows));
    if (diffusion_.mask_token < logits.columns()) {
      for (int64_t row = 0; row < logits.rows(); ++row) {
        logits.row(row)[diffusion_.mask_token] = -std::numeric_limits<float>::infinity();
      }
    }
    return logits.columns() > vocab_size_ ? logits.column_slice(0, vocab_size_) : logits;
  }
  void finish(std::span<DraftRequest>) override { hidden_ = {}; }

 private:
  struct Text {
    SequenceState state;          // of whole blocks
    std::vector<int32_t> unread;  // what follows them
    int64_t first_masked = 0;     // row of hidden_
  };

  // Whole blocks of a long text, in pieces.
  void catch_up(const Context& context, Text& text) const {
    const int64_t piece = std::max<int64_t>(1, kPromptPiece / diffusion_.block) * diffusion_.block;
    const int64_t whole = std::ssize(text.unread) / piece * piece;
    read_in_pieces(
        whole,
        [&](int64_t done, int64_t count) {
          model_->forward(context,
                          continue_sequence(text.state, std::span(text.unread)
                                                            .subspan(static_cast<size_t>(done),
                                                                     static_cast<size_t>(count))));
        },
        piece);
    text.unread.erase(text.unread.begin(), text.unread.begin() + whole);
  }

  // The rest of each text and as many masked tokens as guesses are wanted, to the end of a block.
  void read(const Context& context, std::span<const Asked> asked) {
    Batch batch;
    std::vector<int64_t> lengths;  // of the states before
    for (const Asked& ask : asked) {
      Text& text = texts_[ask.request->sequence];
      catch_up(context, text);
      lengths.push_back(text.state.length());
      std::vector<int32_t> tokens = text.unread;
      const int64_t wanted = std::ssize(tokens) + ask.request->shape.depth();
      const int64_t blocks = (wanted + diffusion_.block - 1) / diffusion_.block;
      tokens.resize(static_cast<size_t>(blocks * diffusion_.block),
                    static_cast<int32_t>(diffusion_.mask_token));
      text.first_masked = batch.rows() + std::ssize(text.unread);
      add_segment(batch, text.state, tokens);
    }
    hidden_ = model_->forward(context, batch);
    // Blocks without masked tokens are read; they have not seen those after them.
    for (size_t i = 0; i < asked.size(); ++i) {
      Text& text = texts_[asked[i].request->sequence];
      const int64_t whole = std::ssize(text.unread) / diffusion_.block * diffusion_.block;
      text.state.truncate(lengths[i] + whole);
      text.unread.erase(text.unread.begin(), text.unread.begin() + whole);
    }
  }

  std::shared_ptr<const Model> model_;
  DiffusionConfig diffusion_;
  int64_t vocab_size_;
  std::string name_;
  std::vector<Text> texts_;
  Tensor hidden_;  // of the last read()
};

}  // namespace

std::unique_ptr<Drafter> make_block_drafter(std::shared_ptr<const Model> model, int64_t vocab_size,
                                            const std::string& name) {
  return std::make_unique<BlockDrafter>(std::move(model), vocab_size, name);
}

}  // namespace pronghorn
