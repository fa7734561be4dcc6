#include "decode/session.h"

#include <xxhash.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "tensor/bytes.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr uint64_t kImageMagic = 0x3330534e4f525000;  // "\0PRONS03": with rows of images
constexpr uint64_t kMagic = 0x3230534e4f525000;       // "\0PRONS02"
constexpr uint64_t kFirstMagic = 0x3130534e4f525000;  // without decode state and attachment
constexpr uint64_t kMostPending = 3;                  // bytes of a character that is not complete

std::string take_text(std::span<const std::byte>& in, const std::string& where, uint64_t most,
                      std::string_view what) {
  const auto size = take<uint64_t>(in, where);
  require(size <= most && size <= in.size(), where, "its {} has {} bytes", what, size);
  std::string text(reinterpret_cast<const char*>(in.data()), size);
  in = in.subspan(size);
  return text;
}

void put_text(std::string& out, const std::string& text) {
  put(out, static_cast<uint64_t>(text.size()));
  out += text;
}

}  // namespace

Session::Session(const Model& model, const CacheOptions& cache)
    : state_(model.new_state(cache)),
      block_(model.config().diffusion ? model.config().diffusion->block : 0) {}

Session::Session(SequenceState state, const Tokenizer& tokenizer, std::span<const int32_t> tokens)
    : state_(std::move(state)) {
  require(state_.length() == std::ssize(tokens), "session", "{} tokens for a state of {}",
          tokens.size(), state_.length());
  append_prompt(tokenizer, tokens);
  pending_.clear();
}

void Session::append(std::span<const int32_t> tokens) {
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
  recent_.insert(recent_.end(), tokens.begin(), tokens.end());
  if (recent_.size() > kRecent) {
    recent_.erase(recent_.begin(), recent_.end() - static_cast<int64_t>(kRecent));
  }
}

void Session::append_prompt(const Tokenizer& tokenizer, std::span<const int32_t> tokens) {
  append(tokens);
  if (tokens.empty()) return;
  // A prompt after what was written: its last character is never completed.
  if (!ends_in_prompt_) text_.pending.clear();
  ends_in_prompt_ = true;
  TextStream stream(tokenizer, text_);
  for (const int32_t token : tokens) {
    if (token < tokenizer.vocab_size()) stream.push(token);
  }
  text_ = stream.state();
}

void check_seen(const Model& model, const Image& image) {
  constexpr const char* kWhere = "image";
  const std::optional<ImageConfig>& vision = model.config().vision;
  if (!vision) {
    throw Error(kWhere, "the model sees no images", "give one with \"vision\" in its config.json");
  }
  require(image.width == vision->width && image.height == vision->height &&
              image.channels == vision->channels,
          kWhere, "has {} by {} pixels of {}, the model's {} by {} of {}", image.width,
          image.height, image.channels, vision->width, vision->height, vision->channels);
}

void Session::see(const Model& model, const Context& context, const Image& image) {
  check_seen(model, image);
  const std::optional<ImageConfig>& vision = model.config().vision;
  require(length() == seen_, "image", "comes after text (images are seen before it)");
  PooledVector<float> pixels(static_cast<size_t>(vision->rows() * vision->features()));
  write_rows(*vision, image.pixels.data(), 0, 0, pixels.data());
  const std::vector<int32_t> rows(static_cast<size_t>(vision->rows()), kPatch);
  Batch batch = continue_sequence(state_, rows);
  batch.patches = Tensor::from(pixels, {vision->rows(), vision->features()});
  model.forward(context, batch);
  seen_ += vision->rows();
}

EncodeOptions Session::next_text(const Tokenizer& tokenizer) const {
  const bool first = length() == seen_;
  return {.add_special = first,
          .parse_special = true,
          .after = first ? After::nothing : tokenizer.after(recent_)};
}

bool Session::go_back(std::span<const int32_t> tokens) {
  const auto length_wanted = static_cast<int64_t>(tokens.size());
  if (length_wanted < seen_) return false;
  if (length_wanted >= length()) return length_wanted == length();
  if (length_wanted >= state_.length()) {
    pending_.resize(static_cast<size_t>(length_wanted - state_.length()));
  } else {
    const int64_t held = block_ > 0 ? length_wanted / block_ * block_ : length_wanted;
    SequenceState state = state_;
    try {
      state.truncate(held);
    } catch (const Error&) {
      return false;
    }
    state_ = std::move(state);
    const auto again = tokens.subspan(static_cast<size_t>(held));
    pending_.assign(again.begin(), again.end());
  }
  const auto text = tokens.subspan(static_cast<size_t>(seen_));
  const std::span<const int32_t> last = text.last(std::min(text.size(), kRecent));
  recent_.assign(last.begin(), last.end());
  const bool at_start = length_wanted == seen_;
  text_ = {{}, at_start, at_start ? -1 : tokens.back()};
  return true;
}

Tensor Session::scores(const Model& model, const Context& context,
                       const std::function<void(size_t, const Tensor&)>& on_read) {
  require(!pending_.empty(), "generate", "there is no text to continue: the prompt is empty");
  require(!model.config().diffusion, "generate", "a diffusion model predicts no next token");
  Tensor last;
  const std::vector<int32_t> tokens = pending_;
  read_in_pieces(static_cast<int64_t>(tokens.size()), [&](int64_t done, int64_t count) {
    const auto piece =
        std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    const Batch batch = continue_sequence(state_, piece);
    const Tensor hidden = model.forward(context, batch);
    last = hidden.row_slice(count - 1, 1);
    mark_read(static_cast<size_t>(count));
    if (on_read) on_read(static_cast<size_t>(done + count), hidden);
  });
  return model.logits(context, last);
}

void Session::mark_read(size_t count) {
  require(count <= pending_.size(), "session", "{} tokens read of {} pending", count,
          pending_.size());
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<int64_t>(count));
}

void Session::unread(int64_t count) {
  if (count == 0) return;
  const int64_t after = std::ssize(pending_);
  require(count + after <= std::ssize(recent_) && count <= state_.length(), "session",
          "{} tokens are to be read again, of {} that are known", count + after, recent_.size());
  state_.truncate(state_.length() - count);
  pending_.assign(recent_.end() - (count + after), recent_.end());
}

void Session::save(const std::filesystem::path& path) const {
  std::string out;
  put(out, seen_ > 0 ? kImageMagic : kMagic);
  if (seen_ > 0) put(out, static_cast<uint64_t>(seen_));
  for (const std::vector<int32_t>* tokens : {&pending_, &recent_}) {
    put(out, static_cast<uint64_t>(tokens->size()));
    for (const int32_t token : *tokens) put(out, token);
  }
  put_text(out, text_.pending);
  put(out, static_cast<int32_t>(text_.at_start ? 1 : 0));
  put(out, text_.previous);
  put_text(out, attachment_);
  put(out, static_cast<uint64_t>(XXH3_64bits(out.data(), out.size())));
  out += state_.save();  // has a checksum of its own
  write_file(path, out);
}

Session Session::load(const std::filesystem::path& path, const Model& model,
                      const CacheOptions& cache) {
  const MappedFile file(path);
  const std::string where = path.string();
  std::span<const std::byte> in = file.bytes();
  const auto magic = take<uint64_t>(in, where);
  require(magic == kImageMagic || magic == kMagic || magic == kFirstMagic, where,
          "is not a saved session");
  Session session(model, cache);
  const uint64_t seen = magic == kImageMagic ? take<uint64_t>(in, where) : 0;
  for (std::vector<int32_t>* tokens : {&session.pending_, &session.recent_}) {
    const auto count = take<uint64_t>(in, where);
    require(count <= in.size() / sizeof(int32_t), where, "ends inside its tokens");
    for (uint64_t i = 0; i < count; ++i) {
      tokens->push_back(take<int32_t>(in, where));
      require(tokens->back() >= 0 && tokens->back() < model.config().vocab_size, where,
              "holds token {} of a vocabulary of {}", tokens->back(), model.config().vocab_size);
    }
  }
  if (magic != kFirstMagic) {
    session.text_.pending = take_text(in, where, kMostPending, "unfinished character");
    session.text_.at_start = take<int32_t>(in, where) != 0;
    session.text_.previous = take<int32_t>(in, where);
    require(session.text_.previous >= -1 && session.text_.previous < model.config().vocab_size,
            where, "its last token {} is none of a vocabulary of {}", session.text_.previous,
            model.config().vocab_size);
    session.attachment_ = take_text(in, where, in.size(), "attachment");
  } else {
    session.text_.at_start = session.recent_.empty();
  }
  const auto head = static_cast<size_t>(in.data() - file.bytes().data());
  require(take<uint64_t>(in, where) == XXH3_64bits(file.bytes().data(), head), where,
          "is damaged: its checksum differs");
  session.state_ = SequenceState::load(in, model.layout(cache), where);
  require(std::cmp_less_equal(seen, session.state_.length()), where,
          "has {} rows of images in a text of {}", seen, session.state_.length());
  session.seen_ = static_cast<int64_t>(seen);
  require(std::cmp_less_equal(session.recent_.size(), session.length() - session.seen_), where,
          "holds the last {} tokens of a text of {}", session.recent_.size(),
          session.length() - session.seen_);
  return session;
}

}  // namespace pronghorn
