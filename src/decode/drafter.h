// Drafter: guesses how texts go on, so that the model can check several tokens in one step. The
// guesses decide how fast a text is written, never what it says (docs/speculation.md).
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode/sampling.h"
#include "formats/tokenizer.h"
#include "grammar/token_grammar.h"
#include "model/model.h"

namespace pronghorn {

// Rows of one verification: the last token of the text and up to kMaxDraft guesses. Results do not
// depend on how steps of kExactStep rows are cut, which is what makes speculation bit-identical.
constexpr int64_t kMaxDraft = kExactStep - 1;

// The nodes of a token tree, without tokens: parents[i] < i, or -1 for a node that follows the
// text; ranks[i] says whether node i is its parent's first guess (0), second (1), ... Parents come
// before children, and lower ranks of a parent before higher ones.
struct DraftShape {
  std::vector<int32_t> parents;
  std::vector<int32_t> ranks;

  size_t size() const { return parents.size(); }
  bool empty() const { return parents.empty(); }
  // Nodes on the longest path.
  int64_t depth() const;
  // Depth of each node; 1 for those that follow the text.
  std::vector<int32_t> depths() const;
  // Every node is the first guess after the one before it.
  bool is_chain() const;
  // Without the nodes that are deeper.
  DraftShape up_to_depth(int64_t limit) const;
  static DraftShape chain(int64_t length);
};

struct Draft {
  DraftShape shape;
  std::vector<int32_t> tokens;  // of each node
  // The distribution that each token was drawn from, for block verification; empty: nothing was
  // drawn, the tokens are the drafter's only choice.
  std::vector<TokenDistribution> distributions;
  // Which of the drafter's kinds of guesses this is, below Drafter::kinds(): how often guesses come
  // true is counted for each kind. Known before a token is drawn.
  int kind = 0;

  bool empty() const { return tokens.empty(); }
  // Adds a node and returns its index.
  int32_t add(int32_t token, int32_t parent, int32_t rank);
};

// Throws Error unless `draft` is a well-formed tree of at most kMaxDraft nodes in a vocabulary of
// `vocab_size`, siblings being different tokens.
void check_draft(const Draft& draft, int64_t vocab_size);

// Takes out the nodes that a text at `grammar` cannot go on with, and what follows them; all of
// them if that takes unreasonable effort.
void keep_to(const GrammarState& grammar, Draft& draft);
// What may come after `path`; nothing if that breaks the grammar, leaves nothing to come or takes
// unreasonable effort.
std::optional<TokenMask> allowed_after(const GrammarState& grammar, std::span<const int32_t> path);

// What a drafter is asked for one sequence.
struct DraftRequest {
  size_t sequence = 0;
  DraftShape shape;           // the nodes wanted of a drafter that takes time; fewer is an answer
  int64_t limit = kMaxDraft;  // nodes that can be used at most; what free drafters answer up to
  const SamplingOptions* sampling = nullptr;
  // Draw each token from the drafter's own distribution, with noise that nothing else sees, and
  // report the distribution (block verification). Otherwise a token is what sample() makes of the
  // drafter's scores, with the noise that will also choose the model's token: they agree more
  // often.
  bool draw = false;
  std::span<const int32_t> recent;       // the end of the text, for the penalty
  int64_t position = 0;                  // of the first token guessed
  const SequenceState* state = nullptr;  // the model's, which lacks the last token of the text
  // Where the text stands in the grammar that it must follow; null: there is none. What follows it
  // comes true more often; what does not is taken out of the draft.
  const GrammarState* grammar = nullptr;
  Draft draft;  // the answer
};

// Serves the sequences of one batch, numbered from 0. A number is used again when its sequence has
// left.
class Drafter {
 public:
  virtual ~Drafter() = default;

  virtual std::string name() const = 0;

  // Kinds of guesses that differ in how often they come true; their number never changes.
  virtual int kinds() const { return 1; }
  // The kind that takes time to make, whose number of guesses must be decided before; -1: all are
  // (nearly) free, and it is decided afterwards how many are checked.
  virtual int costly_kind() const = 0;

  // Tokens of the longest text that it can read.
  virtual int64_t longest_text() const { return std::numeric_limits<int64_t>::max(); }

  // Forgets all sequences and makes room for `count` new ones.
  virtual void start(size_t count) = 0;
  // A sequence has left; the next with its number is a new one.
  virtual void forget(size_t sequence) = 0;

  // The text of a sequence goes on by `tokens`. Called before the first draft and after every step,
  // whether a draft was asked for or not: what takes time is better left until one is.
  virtual void append(size_t sequence, std::span<const int32_t> tokens) = 0;

  // Text that the model had read before this generation began, as far as it is known: its end.
  virtual void begin(size_t sequence, std::span<const int32_t> known) { append(sequence, known); }

  // The model's last hidden states (Model::forward) of tokens that it has read since begin(), in
  // the order of the text, each row once; before append() of the tokens that followed from them.
  // Called only if wants_hidden().
  virtual bool wants_hidden() const { return false; }
  virtual void observe(size_t sequence, const Tensor& hidden);

  // Answers all requests, at most one per sequence.
  virtual void draft(const Context& context, std::span<DraftRequest> requests) = 0;
};

// A smaller model of any architecture. Throws Error unless both have the same tokenizer.
std::unique_ptr<Drafter> make_model_drafter(std::shared_ptr<const Model> model,
                                            const Tokenizer& tokenizer, const Model& target,
                                            const Tokenizer& target_tokenizer,
                                            const std::string& name);

// A diffusion model with blocks, which guesses all tokens of a draft in one forward. vocab_size: of
// the target. Throws Error for one that sees texts whole. make_model_drafter() makes it of such a
// model.
std::unique_ptr<Drafter> make_block_drafter(std::shared_ptr<const Model> model, int64_t vocab_size,
                                            const std::string& name);

// What followed the last time that the text ended as it does now. minimum, maximum: tokens that
// must be, and at most are, the same; a longer match is preferred.
std::unique_ptr<Drafter> make_ngram_drafter(int64_t minimum = 2, int64_t maximum = 5);

// Texts that a suffix automaton has read; shared by the drafters and sequences that are given it.
class SuffixPool;
std::shared_ptr<SuffixPool> make_suffix_pool();

// What followed the longest end of the text that has occurred before, in the text itself or, if
// given, in a pool, to which finished sequences are then added.
std::unique_ptr<Drafter> make_suffix_drafter(std::shared_ptr<SuffixPool> pool = nullptr);

// The first `layers` blocks of the model itself, followed by its norm and head.
std::unique_ptr<Drafter> make_early_exit_drafter(const Model& model, int64_t layers);

// The heads of a model that was trained with them (ModelConfig::mtp_depth).
std::unique_ptr<Drafter> make_mtp_drafter(const Model& model);

// The first of several that has something to say.
std::unique_ptr<Drafter> make_stacked_drafter(std::vector<std::unique_ptr<Drafter>> drafters);

}  // namespace pronghorn
