#include "decode/shared_reading.h"

#include <span>
#include <vector>

#include "base/error.h"
#include "base/ranks.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "sequence_parallel";
constexpr int64_t kEnd = -1;  // in place of a number of tokens

// The first rank's tokens, `count` of them, on all.
std::vector<int32_t> tokens_of_root(Ranks& ranks, std::span<const int32_t> own, int64_t count) {
  std::vector<int32_t> tokens(own.begin(), own.end());
  tokens.resize(static_cast<size_t>(count));
  std::vector<std::span<const std::byte>> to(static_cast<size_t>(ranks.count()));
  std::vector<std::span<std::byte>> from(to.size());
  if (ranks.is_root()) {
    for (size_t r = 1; r < to.size(); ++r) to[r] = std::as_bytes(std::span(tokens));
  } else {
    from[0] = std::as_writable_bytes(std::span(tokens));
  }
  ranks.exchange(to, from);
  return tokens;
}

// This rank's part of a forward that leaves the first rank's state.
void read(const Model& model, const Context& context, const SequenceSharing& sharing,
          std::span<const int32_t> tokens, SequenceState& state) {
  Batch whole;
  add_fresh_segment(whole, tokens);
  const SequenceShards shards(*sharing.ranks, sharing.kind, whole, {&state});
  model.forward(context, shards.local());
}

// Whether keys and values are kept as operators make them.
bool is_plain(const SequenceState& state) {
  for (const std::vector<Journal>& layer : state.layers()) {
    for (const Journal& journal : layer) {
      const JournalShape& shape = journal.shape();
      if (shape.row_type != DType::f32 || shape.rolls || shape.top_blocks > 0 ||
          shape.eviction.is_on()) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int64_t shared_tokens(int64_t length, int64_t ranks) {
  const int64_t tokens = (length - 1) / kExactStep * kExactStep;
  return ranks > 1 && tokens > kExactStep && tokens >= 2 * ranks ? tokens : 0;
}

int64_t read_together(const Model& model, const Context& context, Session& session,
                      const SequenceSharing& sharing) {
  Ranks& ranks = *sharing.ranks;
  if (session.state().length() > 0) return 0;
  const int64_t count = shared_tokens(std::ssize(session.pending()), ranks.count());
  if (count == 0) return 0;
  if (!is_plain(session.state())) {
    throw Error(kWhere, "a prompt that is read into a cache of another kind than the default",
                "leave out the options of the cache, or --sequence-parallel");
  }
  value_of_root(ranks, count);
  const std::vector<int32_t> tokens =
      tokens_of_root(ranks, session.pending().first(static_cast<size_t>(count)), count);
  read(model, context, sharing, tokens, session.state());
  session.mark_read(static_cast<size_t>(count));
  return count;
}

void help_reading(const Model& model, const Context& context, const SequenceSharing& sharing) {
  Ranks& ranks = *sharing.ranks;
  for (;;) {
    const int64_t count = value_of_root(ranks, int64_t{0});
    if (count == kEnd) return;
    const std::vector<int32_t> tokens = tokens_of_root(ranks, {}, count);
    SequenceState state = model.new_state();
    read(model, context, sharing, tokens, state);
  }
}

void end_reading(Ranks& ranks) { value_of_root(ranks, kEnd); }

}  // namespace pronghorn
