// Modes of parameters that do not change any more, for inference: made once, not for every token.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <mutex>

#include "ops/diagonal_modes.h"

namespace pronghorn {

class KnownModes {
 public:
  // What make() gives for these parameters: anew when gradients are recorded, or when one of the
  // parameters is another than in the last call.
  template <typename Make>
  DiagonalModes get(const Context& context, std::initializer_list<Tensor> parameters,
                    const Make& make) {
    if (context.tape != nullptr) return make();
    // Versions only grow, so their sum is another when one of them is.
    uint64_t version = 0;
    for (const Tensor& parameter : parameters) version += parameter.version();
    const std::scoped_lock lock(mutex_);
    if (!modes_.poles.defined() || version != version_) modes_ = make();
    version_ = version;
    return modes_;
  }

 private:
  std::mutex mutex_;
  uint64_t version_ = 0;
  DiagonalModes modes_;
};

}  // namespace pronghorn
