// Engine: texts of many users, written together by one model, with their states kept for the next
// turn.
//
// A text does not depend on its neighbours, on the load, or on whether its prompt was in the cache:
// the same request gives the same bytes. Steps of up to kExactStep tokens of a sequence are the
// same bits however they are cut and whatever else is in the batch; a longer piece depends on where
// it was cut (ops/attention.h). So the pieces in which a prompt is read are a function of the
// prompt alone (decode/reading_plan.h): it is cut at multiples of kPiece tokens, at message ends
// and around earlier answers; pieces of more than kExactStep tokens run in a forward of their own;
// answers are read again in exact steps, as they were written. A state is kept together with the
// pieces that led to it and serves only prompts that would be read in the same pieces.
//
// Load decides when a piece is read, never where it is cut: while texts are written, a step runs a
// few parts of a piece's forward, which waits for the next step as it is (model/forward_run.h), or
// a few exact rows.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "decode/generator.h"
#include "decode/reading_plan.h"
#include "decode/sampling.h"
#include "formats/image.h"
#include "formats/tokenizer.h"
#include "model/model.h"
#include "serve/kept_state.h"

namespace pronghorn {

// What a request gets to hear after a step of the model: several tokens at once where guesses came
// true.
struct TextEvent {
  std::string_view text;  // whole characters, in which no stop string begins; may be empty
  std::span<const WrittenToken> tokens;
};

// How a text ended.
struct TextSummary {
  enum class End : uint8_t { length, stop_string, end_token, cancelled, failed } end = End::length;
  std::string stop;   // the stop string that was found
  std::string error;  // why it failed
  // cached_tokens: of the prompt, not read again.
  int64_t prompt_tokens = 0, cached_tokens = 0, tokens = 0, drafted = 0, accepted = 0;
  // What the cache had: "hit", or in words why none of the prompt or less than could be came from
  // it.
  std::string cache;
  double queue_seconds = 0, prompt_seconds = 0, decode_seconds = 0;
};

struct TextRequest {
  std::vector<int32_t> prompt;
  // What a model with `vision` sees before the prompt; null: nothing. Its rows count as tokens. The
  // states of such a text are not kept: the cache knows tokens alone.
  std::shared_ptr<const Image> image;
  // stop, sampling, max_tokens, end tokens. precision and context are the engine's.
  GenerateOptions options;
  // Lengths of the prompt at which a message ends, ascending: states are kept there.
  std::vector<int64_t> message_ends;
  // Where the prompt repeats what this model wrote in earlier turns, ascending: [begin, end), begin
  // being the length of the prompt that was answered. A turn then reads its new message only. Left
  // out, the answer before it is read again.
  std::vector<TokenRange> answers;
  int likeliest = -1;  // -1: no log-probabilities; else of so many tokens beside the written one
  bool use_cache = true;
  std::string cache_salt;  // texts of different salts share nothing
  // Called on the thread that steps; they must not block, and may call submit() and cancel().
  std::function<void(const TextEvent&)> on_event;  // may be empty
  std::function<void(const TextSummary&)> on_end;  // once, last; may be empty
};

struct EngineOptions {
  int64_t sequences = 32;  // at most so many in a step
  // Beyond: QueueFull. Tokens are those of prompts that wait.
  int64_t queue_requests = 256, queue_tokens = int64_t{1} << 20;
  int64_t prompt_rows = 256;  // of prompts in a step in which no text is written; at least a piece
  // In one in which texts are, what prompts may take, as a multiple of what these do
  // (StepLimits::beside). Infinity: as in any other step.
  double beside = 1;
  // Longest text in tokens; 0: what the model was trained for, if that is known and its state grows
  // with the text.
  int64_t context = 0;
  int64_t cache_bytes = int64_t{1} << 30;  // of kept states; 0: none are
  int64_t cache_every = 2048;              // a state is kept each so many tokens of a long prompt
  std::filesystem::path cache_directory;   // kept states survive the process there; empty: nowhere
  CacheOptions kv_cache;                   // how keys and values of attention are kept
  Precision precision = Precision::f32;
  std::string draft;         // as --draft; empty: none
  int64_t draft_tokens = 0;  // always guess so many; 0: as many as pay
};

// The queue has no room for a request now.
class QueueFull : public Error {
 public:
  QueueFull(int64_t requests, int64_t tokens, double retry_after_seconds);

  int64_t requests, tokens;    // that wait
  double retry_after_seconds;  // until there will be room, at the pace of the last minute
};

// What an engine has done and is doing. Totals only grow.
struct EngineCounters {
  int64_t running = 0, reading = 0, waiting = 0, waiting_tokens = 0;  // now; reading are running
  int64_t state_bytes = 0;                                            // of running texts, now
  // Ended texts, by TextSummary::End, and requests that the queue had no room for.
  int64_t length = 0, stop_string = 0, end_token = 0, cancelled = 0, failed = 0, refused = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0,
          tokens = 0;           // totals; cached ones are prompt tokens
  int64_t steps = 0, rows = 0;  // of the model
  int64_t drafted = 0, accepted = 0;
  double prompt_seconds = 0, decode_seconds = 0;  // of the model, not of the texts
  // Requests that found a state and those that did not; states dropped for want of room; states
  // that are kept, now.
  int64_t cache_hits = 0, cache_misses = 0, cache_evictions = 0, cache_states = 0, cache_bytes = 0;
};

// All members may be called from any thread, step() from one at a time.
class Engine {
 public:
  // Throws UsageError for options out of range. Reads the cache directory.
  Engine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
         const EngineOptions& options);
  // Texts that have not ended are cancelled. States that are kept go to the cache directory.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a request and returns its number. Throws UsageError for an empty prompt, one that leaves
  // no room for a token in the context, options, tokens or lengths out of range; Error for an image
  // that the model cannot see; QueueFull.
  int64_t submit(TextRequest request);
  // Ends a text before the next step; that step reports it as cancelled. Nothing if it has ended.
  void cancel(int64_t id);
  // A step of the model for all who need one; false if there was nothing to do. What goes wrong
  // with a text ends that text.
  bool step();
  // Waits until there is something to do, and returns true, or `seconds` have passed.
  bool wait(double seconds);

  // Of the states that it keeps. What follows is for the thread that steps, between two steps; the
  // states that they give are to be let go there as well.
  //
  // The longest state that there is of a text that a request reads with these message_ends and
  // answers, the whole of it included.
  std::optional<KeptState> kept(const std::string& salt, std::span<const int32_t> tokens,
                                std::vector<int64_t> message_ends,
                                std::span<const TokenRange> answers);
  // Keeps a state, whose form must be kept_state_form(); false if there is no room.
  bool keep(const KeptState& kept);
  const KeptStateForm& kept_state_form();

  EngineCounters counters() const;
  const Model& model() const;
  const Tokenizer& tokenizer() const;
  int64_t context() const;  // the longest text; 0: there is no limit

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace pronghorn
