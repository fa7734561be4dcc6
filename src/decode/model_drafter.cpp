// Drafts by a smaller model with a state of its own, or by the first layers of the model itself.
#include <algorithm>

#include "base/error.h"
#include "decode/scoring_drafter.h"
#include "model/trained_context.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// The state of each sequence follows the text: what was read for a draft and came true stays, the
// rest is dropped. Guesses of a chain are read one by one; a tree is read anew for each of its
// levels, by a copy of the state, since nothing can follow a tree that is not yet decided, and a
// small model reads a dozen rows in the time of one.
class ModelDrafter : public ScoringDrafter {
 public:
  ModelDrafter(std::shared_ptr<const Model> model, int64_t vocab_size, std::string name)
      : model_(std::move(model)), vocab_size_(vocab_size), name_(std::move(name)) {}

  std::string name() const override { return name_; }
  int64_t longest_text() const override { return position_limit(*model_); }

  void start(size_t count) override {
    texts_.resize(count);
    for (size_t i = 0; i < count; ++i) forget(i);
  }

  void forget(size_t sequence) override {
    texts_[sequence] = {};
    texts_[sequence].state = model_->new_state();
  }

  void append(size_t sequence, std::span<const int32_t> tokens) override {
    Text& text = texts_[sequence];
    const auto same =
        std::mismatch(tokens.begin(), tokens.end(), text.guessed.begin(), text.guessed.end())
            .first -
        tokens.begin();
    const auto wrong = static_cast<int64_t>(text.guessed.size()) - same;
    if (wrong > 0) text.state.truncate(text.state.length() - wrong);
    text.guessed.clear();
    // A token that only the larger vocabulary of the target has is replaced: the guesses after it
    // are worse, the text is the same.
    const auto vocabulary = static_cast<int32_t>(model_->config().vocab_size);
    std::transform(tokens.begin() + same, tokens.end(), std::back_inserter(text.unread),
                   [&](int32_t token) { return token < vocabulary ? token : 0; });
    if (!tokens.empty()) text.last = tokens.back() < vocabulary ? tokens.back() : 0;
  }

 protected:
  struct Text {
    SequenceState state;
    std::vector<int32_t> unread;
    std::vector<int32_t> guessed;  // read by the state, and not (yet) part of the text
    int32_t last = -1;             // token of the text
  };

  virtual Tensor forward(const Context& context, const CheckedBatch& batch) const {
    return model_->forward(context, batch);
  }
  // Before the first level: state and unread tokens must be those of the text.
  virtual void prepare(const DraftRequest& request, Text& text) {
    // What was drafted and then not checked is not part of the text.
    if (!text.guessed.empty()) append(request.sequence, {});
    // Guesses that turned out right without being checked have all been read: the last once more,
    // for the scores after it.
    if (text.unread.empty() && text.state.length() > 0) {
      text.state.truncate(text.state.length() - 1);
      text.unread = {text.last};
    }
  }

  Tensor scores(const Context& context, int64_t level, std::span<const Asked> asked) override {
    if (level == 0) {
      for (const Asked& ask : asked) prepare(*ask.request, texts_[ask.request->sequence]);
      catch_up(context, asked);
    }
    Batch batch;
    std::vector<SequenceState> forks;
    forks.reserve(asked.size());  // segments point into it
    std::vector<int32_t> rows;
    for (const Asked& ask : asked) {
      Text& text = texts_[ask.request->sequence];
      const Draft& draft = ask.request->draft;
      if (level == 0) {
        add_segment(batch, text.state, text.unread);
        rows.push_back(static_cast<int32_t>(batch.rows() - 1));
        text.unread.clear();
      } else if (ask.request->shape.is_chain()) {
        const int32_t token = draft.tokens[static_cast<size_t>(ask.nodes.front())];
        add_segment(batch, text.state, {&token, 1});
        rows.push_back(static_cast<int32_t>(batch.rows() - 1));
        text.guessed.push_back(token);
      } else {
        forks.push_back(text.state);
        const int64_t first = batch.rows();
        add_segment(batch, forks.back(), draft.tokens, draft.shape.parents);
        for (const int32_t node : ask.nodes) rows.push_back(static_cast<int32_t>(first) + node);
      }
    }
    const Tensor hidden = embedding(context, forward(context, batch), rows);
    const Tensor logits = model_->logits(context, hidden);
    return logits.columns() > vocab_size_ ? logits.column_slice(0, vocab_size_) : logits;
  }

  std::shared_ptr<const Model> model_;
  int64_t vocab_size_;
  std::string name_;
  std::vector<Text> texts_;

 private:
  // Reads long texts in pieces until each has few tokens left, but at least one.
  void catch_up(const Context& context, std::span<const Asked> asked) {
    for (const Asked& ask : asked) {
      Text& text = texts_[ask.request->sequence];
      require(!text.unread.empty(), name_, "has no token to continue from");
      const int64_t whole =
          (static_cast<int64_t>(text.unread.size()) - 1) / kPromptPiece * kPromptPiece;
      read_in_pieces(whole, [&](int64_t done, int64_t count) {
        forward(context, continue_sequence(text.state, std::span(text.unread)
                                                           .subspan(static_cast<size_t>(done),
                                                                    static_cast<size_t>(count))));
      });
      text.unread.erase(text.unread.begin(), text.unread.begin() + whole);
    }
  }
};

// Has no state to keep: each draft begins with a copy of the model's. (The verification could take
// over what the first layers computed for the guesses, but it must run them for the last guess
// anyway, and their time is that of reading the weights once, for however many rows.)
class EarlyExitDrafter final : public ModelDrafter {
 public:
  EarlyExitDrafter(std::shared_ptr<const Model> model, int64_t layers)
      : ModelDrafter(model, model->config().vocab_size, fmt::format("early-exit:{}", layers)),
        layers_(layers) {}

  void forget(size_t sequence) override { texts_[sequence] = {}; }
  void append(size_t, std::span<const int32_t>) override {}

 protected:
  Tensor forward(const Context& context, const CheckedBatch& batch) const override {
    ForwardObserver observer;
    observer.on_block = [this](const BlockEnd& end) { return end.layers < layers_; };
    return model_->forward(context, batch, observer);
  }
  void prepare(const DraftRequest& request, Text& text) override {
    require(request.state != nullptr && !request.recent.empty(), name_,
            "needs the model's state and the last token");
    text.state = *request.state;
    text.unread = {request.recent.back()};
  }
  void finish(std::span<DraftRequest> requests) override {
    // Shared pages would be copied when the model writes to them.
    for (const DraftRequest& request : requests) texts_[request.sequence] = {};
  }

 private:
  int64_t layers_;
};

// Guesses are ids, so ids must stand for the same text. What else files say of tokens (which are
// special, how the vocabulary is padded, in which format it is written) does not matter.
void check_same_vocabulary(const Tokenizer& own, const Tokenizer& target, const std::string& name) {
  constexpr int64_t kMostAdded = 1024;  // tokens that one of them has beyond the other's
  const auto refuse = [&](const std::string& difference) {
    throw Error(name, fmt::format("has another tokenizer than the model: {}", difference),
                "train the draft model with the tokenizer of the model");
  };
  if (own.fingerprint() == target.fingerprint()) return;
  const int64_t common = std::min(own.vocab_size(), target.vocab_size());
  if (std::max(own.vocab_size(), target.vocab_size()) - common > kMostAdded) {
    refuse(fmt::format("{} and {} tokens", own.vocab_size(), target.vocab_size()));
  }
  for (int32_t id = 0; id < static_cast<int32_t>(common); ++id) {
    if (own.is_special(id) && target.is_special(id)) continue;  // stands for no text
    if (own.token_bytes(id, true) != target.token_bytes(id, true)) {
      refuse(fmt::format("token {} stands for other text", id));
    }
  }
}

// A shared pointer to what somebody else keeps.
std::shared_ptr<const Model> borrowed(const Model& model) {
  return {std::shared_ptr<const Model>(), &model};
}

}  // namespace

std::unique_ptr<Drafter> make_model_drafter(std::shared_ptr<const Model> model,
                                            const Tokenizer& tokenizer, const Model& target,
                                            const Tokenizer& target_tokenizer,
                                            const std::string& name) {
  check_same_vocabulary(tokenizer, target_tokenizer, name);
  if (model->config().diffusion) {
    return make_block_drafter(std::move(model), target.config().vocab_size, name);
  }
  return std::make_unique<ModelDrafter>(std::move(model), target.config().vocab_size, name);
}

std::unique_ptr<Drafter> make_early_exit_drafter(const Model& model, int64_t layers) {
  require(layers >= 1 && layers < model.config().block_count(), "early-exit",
          "{} layers of a model of {}", layers, model.config().block_count());
  model.check_exit(layers, "early-exit");
  return std::make_unique<EarlyExitDrafter>(borrowed(model), layers);
}

}  // namespace pronghorn
