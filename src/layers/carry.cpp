#include "layers/carry.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "ops/subsample.h"

namespace pronghorn {

void Carry::set(std::string_view name, Tensor tensor) {
  require(tensor.rows() == rows_, name, "{} rows are carried in a batch of {}", tensor.rows(),
          rows_);
  for (Entry& entry : entries_) {
    if (entry.name != name) continue;
    entry.tensor = std::move(tensor);
    return;
  }
  entries_.push_back({std::string(name), std::move(tensor)});
}

const Tensor* Carry::find(std::string_view name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &found->tensor;
}

const Tensor& Carry::at(std::string_view name) const {
  const Tensor* found = find(name);
  if (found == nullptr) {
    throw Error(name, "is carried by no layer before this one",
                "a layer that sets it must come earlier in the pattern, and not inside a "
                "subsampled span that has ended");
  }
  return *found;
}

void Carry::lend(LentKeys lent) {
  for (LentKeys& other : lent_) {
    if (other.number != lent.number) continue;
    other = std::move(lent);
    return;
  }
  lent_.push_back(std::move(lent));
}

const LentKeys& Carry::borrow(int64_t number) const {
  const auto found = std::ranges::find(lent_, number, &LentKeys::number);
  if (found == lent_.end()) {
    throw Error("keys_from", fmt::format("no layer before this one has keys_to {}", number),
                "a layer that has it must come earlier in the pattern, in the same subsampled "
                "span");
  }
  return *found;
}

void Carry::add_loss(std::string_view name, Tensor value, double weight) {
  require(value.size() == 1, name, "a layer's loss has {} numbers", value.size());
  if (wanted_.losses) losses_.push_back({std::string(name), std::move(value), weight});
}

void Carry::add_load(ExpertLoad load) {
  if (wanted_.loads) loads_.push_back(std::move(load));
}

Carry Carry::select(const Context& context, std::span<const int32_t> rows) const {
  Carry inner(static_cast<int64_t>(rows.size()), wanted_);
  if (rows.empty()) return inner;
  for (const Entry& entry : entries_) {
    inner.entries_.push_back({entry.name, gather_rows(context, entry.tensor, rows)});
  }
  return inner;
}

void Carry::take(const Carry& inner) {
  losses_.insert(losses_.end(), inner.losses_.begin(), inner.losses_.end());
  loads_.insert(loads_.end(), inner.loads_.begin(), inner.loads_.end());
}

}  // namespace pronghorn
