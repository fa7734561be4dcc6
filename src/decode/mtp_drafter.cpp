// Drafts by the heads of a model that was trained to predict several tokens (model/mtp.h).
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "decode/scoring_drafter.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Head k reads for token t what the head before said of it (k = 0: the model) and token t + k + 1.
// Its state holds the tokens for which both are known. For a draft, level l asks head l, with the
// guesses in place of tokens; levels beyond the last head ask that one again, with its own output.
// Guesses are read by copies of the states, level by level anew: a head is one block, which reads a
// dozen rows in the time of one.
class MtpDrafter final : public ScoringDrafter {
 public:
  explicit MtpDrafter(const Model& model) : model_(model), width_(model.config().hidden_size) {}

  std::string name() const override { return "mtp"; }
  bool wants_hidden() const override { return true; }

  void start(size_t count) override {
    texts_.resize(count);
    for (size_t i = 0; i < count; ++i) forget(i);
  }

  void forget(size_t sequence) override {
    Text& text = texts_[sequence];
    text = {};
    text.heads.resize(static_cast<size_t>(model_.mtp_depth()));
    for (Head& head : text.heads) head.state = model_.new_mtp_state();
  }

  // The hidden states of earlier text are gone: the heads begin with what the model reads now.
  void begin(size_t, std::span<const int32_t>) override {}

  void append(size_t sequence, std::span<const int32_t> tokens) override {
    std::vector<int32_t>& all = texts_[sequence].tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
  }

  void observe(size_t sequence, const Tensor& hidden) override {
    Head& first = texts_[sequence].heads.front();
    for (int64_t i = 0; i < hidden.rows(); ++i) {
      first.waiting.insert(first.waiting.end(), hidden.row(i), hidden.row(i) + width_);
    }
  }

 protected:
  Tensor scores(const Context& context, int64_t level, std::span<const Asked> asked) override {
    return level == 0 ? read_text(context, asked) : read_guesses(context, level, asked);
  }

 private:
  struct Head {
    SequenceState state;
    std::vector<float> waiting;  // rows for tokens from state.length() on
  };
  struct Text {
    std::vector<int32_t> tokens;
    std::vector<Head> heads;
    std::vector<float> root;                  // what the first head said of the text's end
    std::vector<std::vector<float>> outputs;  // what was said of each node of the draft
  };

  Tensor read_text(const Context& context, std::span<const Asked> asked) {
    Tensor last = Tensor::zeros({static_cast<int64_t>(asked.size()), width_});
    for (size_t i = 0; i < asked.size(); ++i) {
      Text& text = texts_[asked[i].request->sequence];
      text.outputs.clear();
      for (size_t k = 0; k < text.heads.size(); ++k) {
        Head& head = text.heads[k];
        const int64_t waiting = static_cast<int64_t>(head.waiting.size()) / width_;
        const auto known =
            static_cast<int64_t>(text.tokens.size() - std::min(text.tokens.size(), k + 1));
        const int64_t ready = std::min(waiting, known - head.state.length());
        read_in_pieces(ready, [&](int64_t done, int64_t count) {
          const auto from = static_cast<size_t>(head.state.length()) + k + 1;
          const Batch batch = continue_sequence(
              head.state, std::span(text.tokens).subspan(from, static_cast<size_t>(count)));
          const Tensor in = Tensor::from(
              std::span(head.waiting)
                  .subspan(static_cast<size_t>(done * width_), static_cast<size_t>(count * width_)),
              {count, width_});
          const Tensor out = model_.mtp_forward(context, static_cast<int64_t>(k), in, batch);
          const std::span<float> values = out.values();
          if (k + 1 < text.heads.size()) {
            std::vector<float>& next = text.heads[k + 1].waiting;
            next.insert(next.end(), values.begin(), values.end());
          }
          if (k == 0) text.root.assign(values.end() - width_, values.end());
        });
        if (ready > 0) {
          head.waiting.erase(head.waiting.begin(), head.waiting.begin() + ready * width_);
        }
      }
      require(!text.root.empty(), "mtp", "no token was read before the first draft");
      std::memcpy(last.row(static_cast<int64_t>(i)), text.root.data(),
                  static_cast<size_t>(width_) * sizeof(float));
    }
    return model_.logits(context, last);
  }

  Tensor read_guesses(const Context& context, int64_t level, std::span<const Asked> asked) {
    const int64_t head = std::min(level, model_.mtp_depth() - 1);
    // Shallower guesses that this head has read for the levels before.
    const int64_t shallowest = head < model_.mtp_depth() - 1 ? level : std::max<int64_t>(1, head);
    Batch batch;
    std::vector<SequenceState> forks;
    forks.reserve(asked.size());  // segments point into it
    std::vector<float> inputs;
    std::vector<std::vector<int32_t>> rows_of(asked.size());  // row of each node in its segment
    std::vector<int32_t> rows;
    for (size_t i = 0; i < asked.size(); ++i) {
      Text& text = texts_[asked[i].request->sequence];
      const Draft& draft = asked[i].request->draft;
      const std::vector<int32_t> depths = draft.shape.depths();
      std::vector<int32_t>& row_of = rows_of[i];
      row_of.assign(draft.tokens.size(), -1);
      std::vector<int32_t> tokens, parents;
      for (size_t node = 0; node < draft.tokens.size(); ++node) {
        if (depths[node] < shallowest) continue;
        const int32_t parent = draft.shape.parents[node];
        const bool follows = depths[node] > shallowest;
        row_of[node] = static_cast<int32_t>(tokens.size());
        parents.push_back(follows ? row_of[static_cast<size_t>(parent)] : -1);
        tokens.push_back(draft.tokens[node]);
        const std::vector<float>& said =
            parent < 0 ? text.root : text.outputs[static_cast<size_t>(parent)];
        inputs.insert(inputs.end(), said.begin(), said.end());
      }
      forks.push_back(text.heads[static_cast<size_t>(head)].state);
      const int64_t first = batch.rows();
      add_segment(batch, forks.back(), tokens, std::move(parents));
      for (const int32_t node : asked[i].nodes) {
        rows.push_back(static_cast<int32_t>(first + row_of[static_cast<size_t>(node)]));
      }
    }
    const Tensor out = embedding(
        context,
        model_.mtp_forward(context, head, Tensor::from(inputs, {batch.rows(), width_}), batch),
        rows);
    int64_t row = 0;
    for (const Asked& ask : asked) {
      Text& text = texts_[ask.request->sequence];
      text.outputs.resize(ask.request->draft.tokens.size());
      for (const int32_t node : ask.nodes) {
        text.outputs[static_cast<size_t>(node)].assign(out.row(row), out.row(row) + width_);
        ++row;
      }
    }
    return model_.logits(context, out);
  }

  const Model& model_;
  int64_t width_;
  std::vector<Text> texts_;
};

}  // namespace

std::unique_ptr<Drafter> make_mtp_drafter(const Model& model) {
  if (model.mtp_depth() == 0) {
    throw Error("mtp", "the model has no heads for multi-token prediction",
                "train one with such heads");
  }
  return std::make_unique<MtpDrafter>(model);
}

}  // namespace pronghorn
