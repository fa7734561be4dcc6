#include "tensor/weight.h"

#include <utility>

#include "base/error.h"

namespace pronghorn {

Stored stored_f32(std::vector<float> numbers) {
  const auto owner = std::make_shared<const std::vector<float>>(std::move(numbers));
  return {&encodings::f32, std::as_bytes(std::span(*owner)), owner, nullptr};
}

Weight::Weight(Tensor value) : body_(std::make_shared<Body>()) {
  require(value.defined() && value.shape().size() == 2 && value.dtype() == DType::f32 &&
              value.contiguous(),
          "weight", "shape {} where a matrix [out, in] was expected", value.shape());
  body_->out = value.dim(0);
  body_->in = value.dim(1);
  body_->stored.encoding = &encodings::f32;
  body_->stored.bytes = std::as_bytes(value.values());
  body_->trainable = std::move(value);
}

Weight::Weight(int64_t out, int64_t in) : body_(std::make_shared<Body>()) {
  int64_t size = 0;
  require(out >= 0 && in >= 0 && !__builtin_mul_overflow(out, in, &size), "weight",
          "impossible shape [{}, {}]", out, in);
  body_->out = out;
  body_->in = in;
  body_->stored.encoding = &encodings::f32;
}

void Weight::assign(Stored stored) const {
  require(!trainable().defined(), "weight", "a trainable weight cannot be replaced");
  require(stored.encoding != nullptr, "weight", "numbers without an encoding");
  const Encoding& encoding = *stored.encoding;
  require(in() % encoding.block == 0, "weight", "rows of {} are not whole blocks of {} ({})", in(),
          encoding.block, encoding.name);
  int64_t bytes = 0;
  require(!__builtin_mul_overflow(out(), encoding.bytes(in()), &bytes) &&
              static_cast<uint64_t>(bytes) == stored.bytes.size(),
          "weight", "{} bytes for [{}, {}] in {}", stored.bytes.size(), out(), in(), encoding.name);
  body_->stored = std::move(stored);
  ++body_->version;
}

void Weight::adapt(std::shared_ptr<const LowRank> adapter) const {
  require(adapter == nullptr || (adapter->a.in() == in() && adapter->b.out() == out() &&
                                 adapter->a.out() == adapter->b.in()),
          "weight", "a change of other widths than those of [{}, {}]", out(), in());
  body_->adapter = std::move(adapter);
}

void Weight::freeze() const {
  if (!trainable().defined()) return;
  body_->packed.reset();  // other formats are kept of read-only weights
  trainable().clear_grad();
  body_->stored.owner = std::make_shared<Tensor>(trainable().detach());
  body_->trainable = Tensor();
}

void Weight::release_stored(bool packed_has_all) const {
  if (trainable().defined()) return;
  Stored& stored = body_->stored;
  if (stored.file != nullptr) {
    stored.file->release(stored.bytes);
  } else if (packed_has_all) {
    stored.owner.reset();
    stored.bytes = {};
  }
}

std::vector<WeightBytes> Weight::bytes() const {
  std::vector<WeightBytes> all;
  const Stored& from = stored();
  if (!from.bytes.empty()) {
    all.push_back({fmt::format("stored {}", from.encoding->name),
                   static_cast<int64_t>(from.bytes.size()), from.file != nullptr});
  }
  if (packed() != nullptr) {
    for (WeightBytes& part : packed()->bytes()) all.push_back(std::move(part));
  }
  return all;
}

}  // namespace pronghorn
