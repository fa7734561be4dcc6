#include "layers/projection.h"

#include <map>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "ops/linear.h"
#include "ops/operands.h"
#include "ops/ternary.h"

namespace pronghorn {

struct Projector::Cache {
  struct Entry {
    uint64_t version = 0;
    Weight weight;
  };
  std::mutex mutex;
  // By the place of what the handles of a weight share.
  std::map<const void*, Entry> entries;
};

namespace {

// A read-only matrix, rounded, in the encoding that it is stored in where that holds single
// numbers: the reference rounds the factor to it, too.
Weight rounded_copy(const Weight& weight) {
  const int64_t out = weight.out(), in = weight.in();
  const Tensor whole = Tensor::empty({out, in});
  std::vector<int32_t> rows(static_cast<size_t>(out));
  std::iota(rows.begin(), rows.end(), 0);
  backend().matmul().read_rows(weight, rows, output_matrix(whole));
  weight.release_stored(false);
  const Encoding& stored = weight.encoding();
  const bool single = stored.block == 1 && stored.encode != nullptr;
  const Encoding& encoding = single ? stored : encodings::f32;
  const PooledVector<float> numbers = round_ternary({}, whole).read();
  const auto bytes =
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(encoding.bytes(out * in)));
  encoding.encode(numbers.data(), out * in, bytes->data());
  Weight few(out, in);
  few.assign({&encoding, *bytes, bytes, nullptr});
  return few;
}

}  // namespace

ProductBits read_product_bits(ConfigFields& f) {
  std::string name;
  f.one_of("bits", name, {"whole", "inputs", "ternary"}, "whole",
           "of products: `\"inputs\"`: inputs are rounded to 8 bits a row; `\"ternary\"`: also "
           "matrices, to -1, 0 and 1 times a factor");
  return name == "whole"    ? ProductBits::whole
         : name == "inputs" ? ProductBits::inputs
                            : ProductBits::ternary;
}

Projector::Projector(ProductBits bits)
    : bits_(bits), cache_(bits == ProductBits::ternary ? std::make_shared<Cache>() : nullptr) {}

Tensor Projector::input(const Context& context, const Tensor& x) const {
  return bits_ == ProductBits::whole ? x : round_rows(context, x);
}

Tensor Projector::operator()(const Context& context, const Tensor& input, const Weight& weight,
                             const Tensor& bias) const {
  if (bits_ != ProductBits::ternary) return linear(context, input, weight, bias);
  return linear(context, input, rounded(context, weight), bias);
}

void Projector::several(const Context& context, const Tensor& input,
                        std::span<const LinearMap> maps, std::span<Tensor> y) const {
  if (bits_ != ProductBits::ternary) return linear_maps(context, input, maps, y);
  std::array<Weight, kMostMaps> weights;
  std::array<LinearMap, kMostMaps> few;
  for (size_t i = 0; i < maps.size(); ++i) {
    if (maps[i].weight->defined()) weights[i] = rounded(context, *maps[i].weight);
    few[i] = {&weights[i], maps[i].bias};
  }
  linear_maps(context, input, std::span<const LinearMap>(few).first(maps.size()), y);
}

Weight Projector::rounded(const Context& context, const Weight& weight) const {
  if (weight.trainable().defined()) {
    const Weight few(round_ternary(context, weight.trainable()));
    few.adapt(weight.adapter());
    return few;
  }
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  Cache::Entry& entry = cache_->entries[&weight.stored()];
  if (!entry.weight.defined() || entry.version != weight.version()) {
    entry = {weight.version(), rounded_copy(weight)};
  }
  if (entry.weight.adapter() != weight.adapter()) entry.weight.adapt(weight.adapter());
  return entry.weight;
}

}  // namespace pronghorn
