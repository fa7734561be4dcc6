#include <memory>

#include "bindings.h"

namespace pronghorn::python {

py::array_t<float> to_array(std::vector<float>&& numbers, std::vector<py::ssize_t> shape) {
  auto owner = std::make_unique<std::vector<float>>(std::move(numbers));
  float* data = owner->data();
  const py::capsule release(owner.get(),
                            [](void* all) { delete static_cast<std::vector<float>*>(all); });
  owner.release();
  return py::array_t<float>(std::move(shape), data, release);
}

py::array_t<float> to_array(TokenMatrix&& matrix) {
  return to_array(std::move(matrix.values), {matrix.rows, matrix.columns});
}

std::vector<int32_t> to_ids(const Ids& ids) {
  if (ids.ndim() != 1) throw py::value_error("ids: one row of token ids is wanted");
  return {ids.data(), ids.data() + ids.size()};
}

}  // namespace pronghorn::python
