// What is made of parameters that do not change any more, for inference: once, not for every token.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <optional>

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

template <typename Value>
class Known {
 public:
  // What make() gives for these parameters: anew when gradients are recorded, or when one of the
  // parameters is another than in the last call.
  template <typename Make>
  Value get(const Context& context, std::initializer_list<Tensor> parameters, const Make& make) {
    if (context.tape != nullptr) return make();
    // Versions only grow, so their sum is another when one of them is.
    uint64_t version = 0;
    for (const Tensor& parameter : parameters) version += parameter.version();
    const std::scoped_lock lock(mutex_);
    if (!value_ || version != version_) value_ = make();
    version_ = version;
    return *value_;
  }

 private:
  std::mutex mutex_;
  uint64_t version_ = 0;
  std::optional<Value> value_;
};

}  // namespace pronghorn
