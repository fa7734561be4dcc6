#include "grammar/token_grammar.h"

#include <algorithm>

#include "base/error.h"

namespace pronghorn {
namespace {

// Of one mask or token, about a fifth of a second; of a text, sixteen times that, and what each of
// its tokens adds again, about a millisecond.
constexpr int64_t kMostWork = int64_t{1} << 20, kMostWorkOfText = 16 * kMostWork;
constexpr int64_t kWorkOfToken = int64_t{1} << 12;
constexpr int64_t kNodesPerWork = 32;  // of a vocabulary, that a walk looks at
// What one grammar keeps, which some of a model's share: a few dozen megabytes at most.
constexpr size_t kMachineBytes = size_t{8} << 20, kInsideBytes = size_t{8} << 20;
constexpr size_t kMostMasks = 128;  // of states of a machine
constexpr size_t kMostRepeats = 4;  // around a place that are looked at

}  // namespace

TokenGrammar::TokenGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary)
    : grammar_(std::move(grammar)),
      vocabulary_(std::move(vocabulary)),
      grammar_bytes_(grammar_.bytes()),
      mask_bytes_(TokenMask(vocabulary_->vocab_size).bytes()),
      machine_(std::make_shared<Machine>(grammar_)) {
  count_bytes();
}

void TokenGrammar::count_bytes() {
  bytes_ = grammar_bytes_ + machine_->states.bytes() + machine_->masks.size() * mask_bytes_ +
           inside_bytes_;
}

void TokenGrammar::renew(std::shared_ptr<Machine>& machine, Pushdown::State& state, int64_t work) {
  if (machine_->states.bytes() > kMachineBytes) machine_ = std::make_shared<Machine>(grammar_);
  machine_->states.allow_work(std::min(work, kMostWork));
  if (machine == machine_) return;
  state = machine_->states.import(machine->states, state);
  machine = machine_;
}

std::vector<TokenGrammar::Way> TokenGrammar::ways(const Pushdown& states,
                                                  Pushdown::State state) const {
  const auto is_repeat = [&](Pushdown::Node node) {
    if (node == Pushdown::kBottom || node == Pushdown::kOutside) return false;
    return grammar_.place(states.frame(node).place).kind == Grammar::Place::Kind::repeat;
  };
  std::vector<Way> ways;
  for (const Pushdown::Node node : states.nodes(state)) {
    Way plain{{states.frame(node)}, {}};
    for (const Pushdown::Node behind : states.behind(node)) {
      if (!is_repeat(behind)) {
        plain.behind.push_back(behind);
        continue;
      }
      Way way{{states.frame(node)}, {behind}};
      while (way.behind.size() == 1 && is_repeat(way.behind[0]) &&
             way.frames.size() <= kMostRepeats) {
        way.frames.push_back(states.frame(way.behind[0]));
        const auto next = states.behind(way.behind[0]);
        way.behind.assign(next.begin(), next.end());
      }
      ways.push_back(std::move(way));
    }
    if (!plain.behind.empty()) ways.push_back(std::move(plain));
  }
  return ways;
}

void TokenGrammar::walk(Pushdown& states, Pushdown::State state, const TokenTree& tree,
                        size_t begin, size_t end, TokenMask& mask, std::vector<uint32_t>* exits) {
  const std::span<const TokenTree::Node> nodes = tree.nodes();
  if (begin >= end) return;
  const size_t top = nodes[begin].depth;
  path_.resize(tree.deepest() + 2);
  path_[top - 1] = state;
  int64_t looked_at = 0;
  for (size_t i = begin; i < end;) {
    const TokenTree::Node& node = nodes[i];
    if (++looked_at % kNodesPerWork == 0) states.work(1);
    const Pushdown::State next = states.step(path_[node.depth - 1U], node.byte);
    if (next == Pushdown::kDead) {
      i = node.end;
      continue;
    }
    for (const int32_t token : tree.tokens(i)) mask.allow(token);
    if (exits != nullptr && states.outside(next) && node.end > i + 1) {
      exits->push_back(static_cast<uint32_t>(i));
    }
    path_[node.depth] = next;
    i = states.goes_on(next) ? i + 1 : node.end;
  }
}

const TokenGrammar::Inside& TokenGrammar::inside(Pushdown& states,
                                                 std::vector<Pushdown::Frame> frames,
                                                 const TokenTree& tree) {
  // No token takes a repeat more turns than it has bytes.
  const auto enough = static_cast<uint32_t>(tree.deepest() + 1);
  for (Pushdown::Frame& frame : frames) {
    frame.least = std::min(frame.least, enough);
    frame.most = std::min(frame.most, enough);
  }
  const InsideKey key{&tree == &vocabulary_->lengthy, frames};
  const auto known = insides_.find(key);
  if (known != insides_.end()) return known->second;
  if (inside_bytes_ > kInsideBytes) {
    insides_.clear();
    inside_bytes_ = 0;
  }
  Pushdown::Node node = Pushdown::kOutside;
  for (size_t i = frames.size(); i > 0; --i) node = states.node(frames[i - 1], {node});
  Inside made{TokenMask(vocabulary_->vocab_size), {}};
  walk(states, states.at({node}), tree, 0, tree.nodes().size(), made.tokens, &made.exits);
  inside_bytes_ += made.tokens.bytes() + made.exits.size() * sizeof(uint32_t);
  return insides_.emplace(key, std::move(made)).first->second;
}

void TokenGrammar::add_tokens(Pushdown& states, const Way& way, const TokenTree& tree,
                              TokenMask& mask) {
  if (tree.nodes().empty()) return;
  const Inside& within = inside(states, way.frames, tree);
  mask.allow(within.tokens);
  if (within.exits.empty()) return;
  const Pushdown::State after = states.after_return(way.behind);
  if (!states.goes_on(after)) return;
  for (const uint32_t exit : within.exits) {
    walk(states, after, tree, exit + 1, tree.nodes()[exit].end, mask, nullptr);
  }
}

std::shared_ptr<const TokenMask> TokenGrammar::mask(Machine& machine, Pushdown::State state) {
  const auto known = machine.masks.find(state);
  if (known != machine.masks.end()) return known->second;
  auto made = std::make_shared<TokenMask>(vocabulary_->vocab_size);
  for (const Way& way : ways(machine.states, state)) {
    add_tokens(machine.states, way, vocabulary_->brief, *made);
    add_tokens(machine.states, way, vocabulary_->lengthy, *made);
  }
  if (machine.masks.size() >= kMostMasks) machine.masks.clear();
  machine.masks[state] = made;
  return made;
}

GrammarState::GrammarState(std::shared_ptr<TokenGrammar> grammar, std::vector<int32_t> ends)
    : grammar_(std::move(grammar)),
      ends_(std::make_shared<const std::vector<int32_t>>(std::move(ends))),
      work_left_(kMostWorkOfText) {
  const std::lock_guard lock(grammar_->mutex_);
  machine_ = grammar_->machine_;
  machine_->states.allow_work(kMostWork);
  state_ = machine_->states.start();
  look();
}

// Takes the present machine, and counts what is computed with it.
class GrammarState::Work {
 public:
  explicit Work(GrammarState& text) : text_(text) {
    text_.grammar_->renew(text_.machine_, text_.state_, text_.work_left_);
    before_ = text_.machine_->states.work_left();
  }
  ~Work() {
    text_.work_left_ -= before_ - std::max<int64_t>(0, text_.machine_->states.work_left());
    text_.grammar_->count_bytes();
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

 private:
  GrammarState& text_;
  int64_t before_;
};

void GrammarState::look() {
  complete_ = machine_->states.complete(state_);
  ended_ = !machine_->states.goes_on(state_);
}

TokenMask GrammarState::allowed() {
  TokenMask allowed(grammar_->vocabulary_->vocab_size);
  if (!ended_) {
    const std::lock_guard lock(grammar_->mutex_);
    const Work work(*this);
    allowed = *grammar_->mask(*machine_, state_);
  }
  for (const int32_t end : *ends_) {
    if (may_end(end)) {
      allowed.allow(end);
    } else {
      allowed.forbid(end);
    }
  }
  return allowed;
}

bool GrammarState::may_end(int32_t token) {
  if (complete_ || ended_) return complete_ && state_ != Pushdown::kDead;
  const std::vector<std::string>& bytes = grammar_->vocabulary_->bytes;
  // What an ordinary token stands for would be missing in the text.
  const bool marked = token >= 0 && token < std::ssize(bytes) &&
                      bytes[static_cast<size_t>(token)].starts_with(kMark);
  if (!marked) return false;
  const std::lock_guard lock(grammar_->mutex_);
  const Work work(*this);
  return machine_->states.complete(after(bytes[static_cast<size_t>(token)]));
}

bool GrammarState::take(int32_t token) {
  if (std::ranges::find(*ends_, token) != ends_->end()) {
    if (!may_end(token)) return false;
    state_ = Pushdown::kDead;  // and nothing follows
    ended_ = true;
    return true;
  }
  const std::vector<std::string>& bytes = grammar_->vocabulary_->bytes;
  const bool known =
      token >= 0 && token < std::ssize(bytes) && !bytes[static_cast<size_t>(token)].empty();
  return known && take_bytes(bytes[static_cast<size_t>(token)]);
}

Pushdown::State GrammarState::after(std::string_view bytes) {
  Pushdown::State next = state_;
  for (const char byte : bytes) {
    if (next == Pushdown::kDead) break;
    next = machine_->states.step(next, static_cast<uint8_t>(byte));
  }
  return next;
}

bool GrammarState::take_bytes(std::string_view bytes) {
  if (ended_) return bytes.empty();
  const std::lock_guard lock(grammar_->mutex_);
  const Work work(*this);
  const Pushdown::State next = after(bytes);
  if (next == Pushdown::kDead) return false;
  state_ = next;
  look();
  work_left_ = std::min(work_left_ + kWorkOfToken, kMostWorkOfText);
  return true;
}

}  // namespace pronghorn
