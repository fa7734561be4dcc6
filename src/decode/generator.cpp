#include "decode/generator.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "tensor/bytes.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMagic = 0x3130534e4f525000;  // "\0PRONS01"

// Tokens of a prompt read in one forward: bounds the memory of activations.
constexpr int64_t kPromptPiece = 2048;

// Holds text back while it might be the beginning of a stop string.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {
    for (const std::string& stop : stops) {
      if (stop.empty()) throw UsageError("--stop", "a stop string is empty");
    }
  }

  // Adds text; returns what can be shown. stopped() tells whether a stop string was found.
  std::string push(std::string_view text) {
    held_ += text;
    size_t first = std::string::npos;
    for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
    if (first != std::string::npos) {
      stopped_ = true;
      held_.resize(first);
      return std::exchange(held_, {});
    }
    size_t keep = 0;
    for (const std::string& stop : stops_) {
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
        if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
      }
    }
    std::string ready = held_.substr(0, held_.size() - keep);
    held_.erase(0, ready.size());
    return ready;
  }

  std::string finish() { return std::exchange(held_, {}); }
  bool stopped() const { return stopped_; }

 private:
  const std::vector<std::string>& stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace

Session::Session(const Model& model) : state_(model.new_state()) {}

void Session::append(std::span<const int32_t> tokens) {
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
  recent_.insert(recent_.end(), tokens.begin(), tokens.end());
  if (recent_.size() > kRecent) {
    recent_.erase(recent_.begin(), recent_.end() - static_cast<int64_t>(kRecent));
  }
}

Tensor Session::scores(const Model& model, const Context& context,
                       const std::function<void(double)>& progress) {
  require(!pending_.empty(), "generate", "there is no text to continue (give a --prompt)");
  Tensor last;
  size_t done = 0;
  while (done < pending_.size()) {
    const size_t count = std::min(pending_.size() - done, static_cast<size_t>(kPromptPiece));
    const Batch batch = continue_sequence(state_, std::span(pending_).subspan(done, count));
    const Tensor hidden = model.forward(context, batch);
    last = hidden.row_slice(static_cast<int64_t>(count) - 1, 1);
    done += count;
    if (progress) progress(static_cast<double>(done));
  }
  pending_.clear();
  return model.logits(context, last);
}

void Session::save(const std::filesystem::path& path) const {
  std::string out;
  put(out, kMagic);
  for (const std::vector<int32_t>* tokens : {&pending_, &recent_}) {
    put(out, static_cast<uint64_t>(tokens->size()));
    for (const int32_t token : *tokens) put(out, token);
  }
  put(out, static_cast<uint64_t>(XXH3_64bits(out.data(), out.size())));
  out += state_.save();  // has a checksum of its own
  write_file(path, out);
}

Session Session::load(const std::filesystem::path& path, const Model& model) {
  const MappedFile file(path);
  const std::string where = path.string();
  std::span<const std::byte> in = file.bytes();
  require(take<uint64_t>(in, where) == kMagic, where, "is not a saved session");
  Session session(model);
  for (std::vector<int32_t>* tokens : {&session.pending_, &session.recent_}) {
    const auto count = take<uint64_t>(in, where);
    require(count <= in.size() / sizeof(int32_t), where, "ends inside its tokens");
    for (uint64_t i = 0; i < count; ++i) {
      tokens->push_back(take<int32_t>(in, where));
      require(tokens->back() >= 0 && tokens->back() < model.config().vocab_size, where,
              "holds token {} of a vocabulary of {}", tokens->back(), model.config().vocab_size);
    }
  }
  const auto head = static_cast<size_t>(in.data() - file.bytes().data());
  require(take<uint64_t>(in, where) == XXH3_64bits(file.bytes().data(), head), where,
          "is damaged: its checksum differs");
  session.state_ = SequenceState::load(in, model.layout(), where);
  return session;
}

Generated generate(const Model& model, const Tokenizer& tokenizer, Session& session,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::string_view)>& emit) {
  check(options.sampling);
  Generated result;
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  Context context;
  context.precision = options.precision;
  StopFilter filter(options.stop);
  TextStream stream(tokenizer, session.length() + result.prompt_tokens > 0);
  const auto show = [&](std::string_view text) {
    const std::string ready = filter.push(text);
    result.text += ready;
    if (emit && !ready.empty()) emit(ready);
  };

  session.append(prompt);
  const double start = now_seconds();
  Tensor scores;
  {
    Progress progress("reading the prompt", static_cast<double>(prompt.size()), "tokens");
    scores = session.scores(model, context, [&](double done) { progress.update(done); });
  }
  const double decode_start = now_seconds();
  result.prompt_seconds = decode_start - start;
  while (result.tokens < options.max_tokens) {
    const int32_t token =
        sample(scores.values(), options.sampling, session.recent(), session.length());
    ++result.tokens;
    session.append({&token, 1});
    if (options.stop_at_eos && tokenizer.eos() == token) {
      result.end = Generated::End::end_token;
      break;
    }
    show(stream.push(token));
    if (filter.stopped()) {
      result.end = Generated::End::stop_string;
      break;
    }
    if (result.tokens < options.max_tokens) scores = session.scores(model, context);
  }
  result.decode_seconds = now_seconds() - decode_start;
  if (!filter.stopped()) {
    show(stream.finish());
    const std::string rest = filter.finish();
    result.text += rest;
    if (emit && !rest.empty()) emit(rest);
  }
  return result;
}

}  // namespace pronghorn
