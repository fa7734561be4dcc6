#include "decode/session.h"

#include <xxhash.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "tensor/bytes.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMagic = 0x3130534e4f525000;  // "\0PRONS01"

}  // namespace

Session::Session(const Model& model, DType cache_type) : state_(model.new_state(cache_type)) {}

void Session::append(std::span<const int32_t> tokens) {
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
  recent_.insert(recent_.end(), tokens.begin(), tokens.end());
  if (recent_.size() > kRecent) {
    recent_.erase(recent_.begin(), recent_.end() - static_cast<int64_t>(kRecent));
  }
}

Tensor Session::scores(const Model& model, const Context& context,
                       const std::function<void(size_t, const Tensor&)>& on_read) {
  require(!pending_.empty(), "generate", "there is no text to continue (give a --prompt)");
  Tensor last;
  read_in_pieces(static_cast<int64_t>(pending_.size()), [&](int64_t done, int64_t count) {
    const auto piece =
        std::span(pending_).subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    const Batch batch = continue_sequence(state_, piece);
    const Tensor hidden = model.forward(context, batch);
    last = hidden.row_slice(count - 1, 1);
    if (on_read) on_read(static_cast<size_t>(done + count), hidden);
  });
  pending_.clear();
  return model.logits(context, last);
}

void Session::mark_read(size_t count) {
  require(count <= pending_.size(), "session", "{} tokens read of {} pending", count,
          pending_.size());
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<int64_t>(count));
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

Session Session::load(const std::filesystem::path& path, const Model& model, DType cache_type) {
  const MappedFile file(path);
  const std::string where = path.string();
  std::span<const std::byte> in = file.bytes();
  require(take<uint64_t>(in, where) == kMagic, where, "is not a saved session");
  Session session(model, cache_type);
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
  session.state_ = SequenceState::load(in, model.layout(cache_type), where);
  return session;
}

}  // namespace pronghorn
