#include "decode/diffusion.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "decode/generator.h"
#include "decode/writer.h"

namespace pronghorn {
namespace {

std::span<const float> row_of(const Tensor& scores, int64_t row) {
  return {scores.row(row), static_cast<size_t>(scores.columns())};
}

// What penalties are for: all tokens of the canvas that are known, and those before it. `sampling`
// is told where among them the written ones begin, as sample() counts.
std::vector<int32_t> known_tokens(const Filling& filling, std::span<const int32_t> canvas,
                                  int64_t place, int32_t mask_token, SamplingOptions& sampling) {
  if (!sampling.looks_back()) return {};
  std::vector<int32_t> known(filling.before.begin(), filling.before.end());
  int64_t written = 0;
  for (int64_t i = 0; i < std::ssize(canvas); ++i) {
    const int32_t token = canvas[static_cast<size_t>(i)];
    if (token == mask_token) continue;
    known.push_back(token);
    if (filling.first + i >= sampling.penalty_start) ++written;
  }
  const int64_t before = std::max<int64_t>(0, filling.first - sampling.penalty_start);
  sampling.penalty_start = filling.first + place - written - before;
  return known;
}

// What the scores of masked places say should be written there.
std::vector<Unmasking> draw(const Filling& filling, const Tensor& scores,
                            std::span<const int32_t> canvas, std::span<const int64_t> places,
                            int64_t step) {
  const auto mask = static_cast<int32_t>(filling.model.config().diffusion->mask_token);
  // Each step of each part has noise of its own.
  const auto noise =
      static_cast<uint64_t>(filling.first + places.front()) << 24 | static_cast<uint64_t>(step);
  std::vector<Unmasking> drawn(places.size());
  parallel_for(std::ssize(places), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = places[static_cast<size_t>(i)];
      SamplingOptions sampling = filling.sampling(place);
      const std::vector<int32_t> known = known_tokens(filling, canvas, place, mask, sampling);
      Unmasking& one = drawn[static_cast<size_t>(i)];
      one = draw_unmasking(row_of(scores, i), mask, filling.options.order, sampling, known,
                           filling.first + place, noise);
      one.position = place;
    }
  });
  return drawn;
}

}  // namespace

void check_diffusion_options(const DiffusionOptions& options, const DiffusionConfig& model) {
  if (options.steps < 0) {
    throw UsageError("steps", fmt::format("{} is out of range", options.steps), "0 or more");
  }
  if (!(options.threshold >= 0 && options.threshold <= 1)) {
    throw UsageError("threshold", fmt::format("{} is out of range", options.threshold), "0 to 1");
  }
  if (options.cache != CanvasCache::none && model.block > 0) {
    throw UsageError("cache", "of a whole text, for a model that reads blocks",
                     "it keeps finished blocks as they are");
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
      if (!filling.on_token) continue;
      const auto row = std::ranges::find(places, one.position) - places.begin();
      filling.on_token(one.position, row_of(scores, row));
    }
    std::erase_if(places, [&](int64_t place) {
      return canvas[static_cast<size_t>(place)] != diffusion.mask_token;
    });
    if (filling.on_step && !filling.on_step()) return places.empty();
  }
  return true;
}

namespace {

class DiffusionWriter {
 public:
  DiffusionWriter(const Model& model, const Tokenizer& tokenizer, const Generation& generation)
      : model_(model),
        diffusion_(*model.config().diffusion),
        generation_(generation),
        text_(tokenizer, generation),
        session_(text_.session()) {
    context_.precision = generation.options.precision;
    const int64_t length = session_.length() + generation.options.max_tokens;
    check_context(model, length, generation.options.context);
  }

  Generated write() {
    const double start = now_seconds();
    if (diffusion_.block > 0) read_blocks();
    const double begin = now_seconds();
    if (!text_.ended() && !text_.interrupt()) {
      diffusion_.block > 0 ? write_blocks() : write_whole();
    }
    text_.finish();
    text_.result().prompt_seconds = begin - start;
    text_.result().decode_seconds = now_seconds() - begin;
    return std::move(text_.result());
  }

 private:
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
    std::vector<std::vector<float>> scores(canvas.size());  // only if they are asked for
    Filling filling{model_, options()};
    filling.sampling = [&](int64_t place) -> const SamplingOptions& {
      return text_.sampling(place - fresh);
    };
    filling.before = recent.first(recent.size() - in_canvas);
    filling.first = first;
    if (generation_.options.likeliest >= 0) {
      filling.on_token = [&](int64_t place, std::span<const float> row) {
        scores[static_cast<size_t>(place)].assign(row.begin(), row.end());
      };
    }
    filling.on_step = [&] {
      show(canvas.subspan(static_cast<size_t>(fresh)));
      return !text_.interrupt();
    };
    const int64_t before = reader.steps();
    const bool whole = fill(filling, reader, canvas, begin, end);
    text_.result().steps += reader.steps() - before;
    for (auto place = static_cast<size_t>(fresh); whole && place < static_cast<size_t>(end);
         ++place) {
      if (text_.ended()) break;
      text_.take(canvas[place], scores[place]);
    }
    return whole;
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
  Writer text_;
  Session& session_;
  Context context_;
};

// Blocks are read again from keys and values as they were, and a text that is seen whole is read
// from none.
void check_cache(const SequenceState& state, bool keeps_blocks) {
  for (const std::vector<Journal>& layer : state.layers()) {
    for (const Journal& journal : layer) {
      const JournalShape& shape = journal.shape();
      require(!shape.rolls && shape.top_blocks == 0 && !shape.eviction.is_on(), "cache",
              "of a part of the keys, in a model that fills in masked tokens");
      require(keeps_blocks || shape.row_type == DType::f32, "cache",
              "of {} in a model that sees texts whole and keeps none", dtype_name(shape.row_type));
    }
  }
}

}  // namespace

std::vector<Generated> generate_by_diffusion(const Model& model, const Tokenizer& tokenizer,
                                             std::span<const Generation> generations) {
  const DiffusionConfig& diffusion = *model.config().diffusion;
  for (const Generation& generation : generations) {
    check_cache(generation.session->state(), diffusion.block > 0);
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
