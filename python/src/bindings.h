// The parts of the module, and what they share.
#pragma once

#include <pronghorn/pronghorn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <string>
#include <vector>

namespace pronghorn::python {

namespace py = pybind11;

void add_model(py::module_& module);
void add_media(py::module_& module);
void add_training(py::module_& module);

// An array that owns the numbers: nothing is copied.
py::array_t<float> to_array(TokenMatrix&& matrix);
py::array_t<float> to_array(std::vector<float>&& numbers, std::vector<py::ssize_t> shape);

// "stored", "f32" or "bf16". Throws ValueError for anything else.
Rounding to_rounding(const std::string& name);

// Ids in any sequence or array of whole numbers.
using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
std::vector<int32_t> to_ids(const Ids& ids);

}  // namespace pronghorn::python
