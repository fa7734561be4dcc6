// The tensors of a model as a format that is published has them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// What a rule throws says what is wrong; this says of which tensors.
template <typename Function>
auto naming(const std::string& where, Function&& function) {
  try {
    return function();
  } catch (const Error& error) {
    throw Error(where, error.what());
  }
}

// where: the file or directory that is read or written, for messages.
std::vector<BoundRule> bound(const TensorRules& rules, const std::vector<Parameter>& parameters,
                             const std::string& where);

// The published tensors of a rule, with what they are made of as it is stored.
StoredTensors published(const Model& model, const BoundRule& rule, const std::string& where);

// The numbers of a tensor in another encoding.
StoredTensor encoded(StoredTensor tensor, const Encoding& to);

// Calls options.on_tensor, if it is there.
void note(const SaveOptions& options, std::string_view name, const Encoding& in,
          const StoredShape& shape);

}  // namespace pronghorn
