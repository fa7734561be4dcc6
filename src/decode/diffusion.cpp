#include "decode/diffusion.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "decode/generator.h"
#include "decode/stop_filter.h"

namespace pronghorn {
namespace {

// Tokens before a place that are known, the last of them last: those of the canvas, and as many of
// those before it as a penalty looks back.
std::vector<int32_t> known_before(const Filling& filling, std::span<const int32_t> canvas,
                                  int64_t place, int32_t mask_token) {
  if (filling.sampling.repetition_penalty == 1) return {};
  std::vector<int32_t> known(filling.before.begin(), filling.before.end());
  for (const int32_t token : canvas.first(static_cast<size_t>(place))) {
    if (token != mask_token) known.push_back(token);
  }
  return known;
}

// What the scores of masked places say should be written there.
std::vector<Unmasking> draw(const Filling& filling, const Tensor& scores,
                            std::span<const int32_t> canvas, std::span<const int64_t> places,
                            int64_t step) {
  const int32_t mask = static_cast<int32_t>(filling.model.config().diffusion->mask_token);
  // Each step of each part has noise of its own.
  const auto noise =
      static_cast<uint64_t>(filling.first + places.front()) << 24 | static_cast<uint64_t>(step);
  std::vector<Unmasking> drawn(places.size());
  parallel_for(std::ssize(places), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = places[static_cast<size_t>(i)];
      drawn[static_cast<size_t>(i)] =
          draw_unmasking({scores.row(i), static_cast<size_t>(scores.columns())}, mask,
                         filling.options.order, filling.sampling,
                         known_before(filling, canvas, place, mask), filling.first + place, noise);
      drawn[static_cast<size_t>(i)].position = place;
    }
  });
  return drawn;
}

}  // namespace

void check(const DiffusionOptions& options, const DiffusionConfig& model) {
  if (options.steps < 0) {
    throw UsageError("steps", fmt::format("{} is out of range", options.steps), "0 or more");
  }
  if (!(options.threshold >= 0 && options.threshold <= 1)) {
    throw UsageError("threshold", fmt::format("{} is out of range", options.threshold), "0 to 1");
  }
  if (options.part < 0 || (model.block > 0 && options.part != 0 && options.part != model.block)) {
    throw UsageError(
        "block", fmt::format("{} tokens", options.part),
        model.block > 0 ? fmt::format("this model has blocks of {}", model.block) : "0 or more");
  }
}

bool fill(const Filling& filling, CanvasReader& reader, std::span<int32_t> canvas, int64_t begin,
          int64_t end) {
  const DiffusionConfig& diffusion = *filling.model.config().diffusion;
  const DiffusionOptions& options = filling.options;
  std::vector<int64_t> places;
  for (int64_t place = begin; place < end; ++place) {
    if (canvas[static_cast<size_t>(place)] == diffusion.mask_token) places.push_back(place);
  }
  reader.begin(begin, end);
  const auto total = std::ssize(places);
  const int64_t steps = options.steps > 0 ? std::min(options.steps, total) : total;
  for (int64_t step = 0; !places.empty(); ++step) {
    // Scores of a part's first token are in the row before it, which is read when all are renewed.
    const bool first_alone = diffusion.shift && reader.renews() && places.front() == begin;
    const Tensor scores = reader.scores(canvas, places);
    std::vector<Unmasking> drawn = draw(filling, scores, canvas, places, step);
    if (first_alone) drawn.resize(1);
    // Steps beyond those asked for take the rest.
    int64_t count =
        step >= steps ? std::ssize(places) : total / steps + (step < total % steps ? 1 : 0);
    if (options.threshold > 0) count = 1;
    for (const Unmasking& one : take_unmaskings(std::move(drawn), count, options.threshold)) {
      canvas[static_cast<size_t>(one.position)] = one.token;
    }
    std::erase_if(places, [&](int64_t place) {
      return canvas[static_cast<size_t>(place)] != diffusion.mask_token;
    });
    if (filling.on_step && !filling.on_step()) return places.empty();
  }
  return true;
}

namespace {

// One text on its way: tokens become characters, and it ends where it must.
class Text {
 public:
  Text(const Tokenizer& tokenizer, const Generation& generation)
      : tokenizer_(tokenizer),
        session_(*generation.session),
        options_(generation.options),
        emit_(generation.emit),
        filter_(options_.stop) {
    check(options_.sampling);
    session_.append_prompt(tokenizer, generation.prompt);
    result_.prompt_tokens = std::ssize(generation.prompt);
    stream_.emplace(tokenizer, session_.text());
  }

  Generated& result() { return result_; }
  bool ended() const { return ended_ || left() <= 0; }
  int64_t left() const { return options_.max_tokens - result_.tokens; }

  // Takes tokens until the text ends.
  void take(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) {
      if (ended()) return;
      take(token);
    }
  }

  void end_with(Generated::End end) {
    result_.end = end;
    ended_ = true;
  }

  void finish() {
    const bool goes_on =
        result_.end == Generated::End::length || result_.end == Generated::End::interrupted;
    if (!goes_on) give(filter_.push(stream_->finish()));
    give(filter_.finish());
    session_.set_text(stream_->state());
  }

 private:
  void take(int32_t token) {
    ++result_.tokens;
    result_.ids.push_back(token);
    session_.append({&token, 1});
    const bool ends = options_.stop_at_eos &&
                      (tokenizer_.eos() == token ||
                       std::ranges::find(options_.end_tokens, token) != options_.end_tokens.end());
    if (token < tokenizer_.vocab_size()) {
      if (!ends) give(filter_.push(stream_->push(token)));
      if (ends || tokenizer_.is_special(token)) {
        give(filter_.push(tokenizer_.token_bytes(token, true), false));
      }
    }
    if (filter_.stopped()) {
      end_with(Generated::End::stop_string);
    } else if (ends) {
      end_with(Generated::End::end_token);
    }
  }

  void give(const std::string& ready) {
    result_.text += ready;
    if (emit_ && !ready.empty()) emit_(ready);
  }

  const Tokenizer& tokenizer_;
  Session& session_;
  const GenerateOptions& options_;
  const std::function<void(std::string_view)>& emit_;
  StopFilter filter_;
  std::optional<TextStream> stream_;
  Generated result_;
  bool ended_ = false;
};

class DiffusionWriter {
 public:
  DiffusionWriter(const Model& model, const Tokenizer& tokenizer, const Generation& generation)
      : model_(model),
        diffusion_(*model.config().diffusion),
        generation_(generation),
        session_(*generation.session),
        text_(tokenizer, generation) {
    context_.precision = generation.options.precision;
    const int64_t length = session_.length() + generation.options.max_tokens;
    check_context(model, length, generation.options.context);
  }

  Generated write() {
    const double start = now_seconds();
    if (diffusion_.block > 0) read_blocks();
    const double begin = now_seconds();
    if (interrupted()) {
      text_.end_with(Generated::End::interrupted);
    } else if (!text_.ended()) {
      diffusion_.block > 0 ? write_blocks() : write_whole();
    }
    text_.finish();
    text_.result().prompt_seconds = begin - start;
    text_.result().decode_seconds = now_seconds() - begin;
    return std::move(text_.result());
  }

 private:
  bool interrupted() const { return generation_.interrupted && generation_.interrupted(); }

  // Lets the model read all whole blocks of the text that it has not read.
  void read_blocks() {
    // Who has gone back in the text may have ended inside a block.
    session_.unread(session_.state().length() % diffusion_.block);
    const auto pending = std::ssize(session_.pending());
    const int64_t piece = std::max<int64_t>(1, kPromptPiece / diffusion_.block) * diffusion_.block;
    read_in_pieces(
        pending / diffusion_.block * diffusion_.block,
        [&](int64_t, int64_t count) {
          const auto size = static_cast<size_t>(count);
          model_.forward(context_,
                         continue_sequence(session_.state(), session_.pending().first(size)));
          session_.mark_read(size);
        },
        piece);
  }

  void write_blocks() {
    CanvasReader reader(model_, context_, &session_.state(), CanvasCache::none);
    while (!text_.ended()) {
      // The last block is filled in whole, so that a longer text begins like a shorter one.
      std::vector<int32_t> canvas(session_.pending().begin(), session_.pending().end());
      const size_t known = canvas.size();
      canvas.resize(static_cast<size_t>(diffusion_.block), mask());
      if (!write_part(reader, canvas, session_.state().length(), static_cast<int64_t>(known), 0,
                      diffusion_.block)) {
        return;
      }
      if (!text_.ended()) read_blocks();
    }
  }

  void write_whole() {
    CanvasReader reader(model_, context_, nullptr, options().cache);
    std::vector<int32_t> canvas(session_.pending().begin(), session_.pending().end());
    auto begin = std::ssize(canvas);
    canvas.resize(canvas.size() + static_cast<size_t>(text_.left()), mask());
    const int64_t part = options().part > 0 ? options().part : DiffusionOptions::kPart;
    while (!text_.ended()) {
      const int64_t end = std::min(begin + part, std::ssize(canvas));
      if (!write_part(reader, canvas, 0, begin, begin, end)) return;
      begin = end;
    }
  }

  // Fills in a part of a canvas that begins at position `first` of the text, and takes what is new
  // there, from place `fresh` on. False if the text ends before all of it is filled in.
  bool write_part(CanvasReader& reader, std::span<int32_t> canvas, int64_t first, int64_t fresh,
                  int64_t begin, int64_t end) {
    const std::span<const int32_t> recent = session_.recent();
    const size_t in_canvas = std::min(recent.size(), static_cast<size_t>(fresh));
    bool stopped = false;
    const int64_t before = reader.steps();
    const Filling filling{model_,
                          options(),
                          generation_.options.sampling,
                          recent.first(recent.size() - in_canvas),
                          first,
                          [&] {
                            show(canvas.subspan(static_cast<size_t>(fresh)));
                            stopped = interrupted();
                            return !stopped;
                          }};
    const bool whole = fill(filling, reader, canvas, begin, end);
    text_.result().steps += reader.steps() - before;
    if (whole) {
      text_.take(canvas.subspan(static_cast<size_t>(fresh), static_cast<size_t>(end - fresh)));
    }
    if (stopped && !text_.ended()) text_.end_with(Generated::End::interrupted);
    return whole && !stopped;
  }

  void show(std::span<const int32_t> canvas) const {
    if (!generation_.on_canvas) return;
    std::vector<int32_t> shown(canvas.begin(), canvas.end());
    std::ranges::replace(shown, mask(), -1);
    generation_.on_canvas(shown);
  }

  const DiffusionOptions& options() const { return generation_.options.diffusion; }
  int32_t mask() const { return static_cast<int32_t>(diffusion_.mask_token); }

  const Model& model_;
  const DiffusionConfig& diffusion_;
  const Generation& generation_;
  Session& session_;
  Context context_;
  Text text_;
};

}  // namespace

std::vector<Generated> generate_by_diffusion(const Model& model, const Tokenizer& tokenizer,
                                             std::span<const Generation> generations) {
  const DiffusionConfig& diffusion = *model.config().diffusion;
  for (const Generation& generation : generations) {
    check(generation.options.diffusion, diffusion);
    require(!diffusion.shift || generation.session->length() > 0 || !generation.prompt.empty(),
            "generate", "there is no text to continue: the prompt is empty");
    require(std::ranges::find(generation.prompt, diffusion.mask_token) == generation.prompt.end(),
            "generate", "the prompt holds token {}, which stands for what is masked",
            diffusion.mask_token);
  }
  std::vector<Generated> results;
  for (const Generation& generation : generations) {
    results.push_back(DiffusionWriter(model, tokenizer, generation).write());
  }
  return results;
}

}  // namespace pronghorn
