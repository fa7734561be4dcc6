#include "tensor/weight.h"

#include <utility>

#include "base/error.h"

namespace pronghorn {

Weight::Weight(Tensor value)
    : value_(std::move(value)), packed_(std::make_shared<std::shared_ptr<PackedWeight>>()) {
  require(value_.defined() && value_.shape().size() == 2 && value_.dtype() == DType::f32, "weight",
          "shape {} where a matrix [out, in] was expected", shape_string(value_.shape()));
}

}  // namespace pronghorn
