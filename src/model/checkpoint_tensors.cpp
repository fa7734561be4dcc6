#include "model/checkpoint_tensors.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>

#include "base/threads.h"

namespace pronghorn {
namespace {

StoredTensor stored(const Parameter& parameter) {
  const Stored numbers = parameter.stored();
  const auto owner = std::make_shared<Stored>(numbers);
  return {std::string(numbers.encoding->file_dtype), parameter.shape.to_vector(), numbers.bytes,
          owner};
}

}  // namespace

std::vector<BoundRule> bound(const TensorRules& rules, const std::vector<Parameter>& parameters,
                             const std::string& where) {
  std::vector<std::string> names;
  for (const Parameter& parameter : parameters) names.push_back(parameter.name);
  return naming(where, [&] { return bind_rules(rules, names); });
}

StoredTensors published(const Model& model, const BoundRule& rule, const std::string& where) {
  StoredTensors ours;
  for (const size_t place : rule.ours) ours.push_back(stored(model.parameters()[place]));
  return naming(fmt::format("{}: {}", where, fmt::join(rule.published, ", ")),
                [&] { return rule.transform.inverse(std::move(ours), rule.published.size()); });
}

StoredTensor encoded(StoredTensor tensor, const Encoding& to) {
  const Encoding& from = *find_encoding(tensor.dtype);
  if (&from == &to) return tensor;
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  const int64_t elements =
      std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  const auto bytes = static_cast<size_t>(to.bytes(elements));
  auto memory = std::make_shared<Storage>(std::max<size_t>(1, bytes), Lifetime::model);
  parallel_for(row == 0 ? 0 : elements / row, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> numbers(static_cast<size_t>(row));
    for (int64_t i = begin; i < end; ++i) {
      from.decode(tensor.bytes.data() + i * from.bytes(row), row, numbers.data());
      to.encode(numbers.data(), row, memory->data() + i * to.bytes(row));
    }
  });
  std::string dtype(to.file_dtype);
  const std::span<const std::byte> all(memory->data(), bytes);
  return {std::move(dtype), std::move(tensor.shape), all, std::move(memory)};
}

void note(const SaveOptions& options, std::string_view name, const Encoding& in,
          const StoredShape& shape) {
  if (!options.on_tensor) return;
  options.on_tensor(name, in,
                    std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()));
}

}  // namespace pronghorn
