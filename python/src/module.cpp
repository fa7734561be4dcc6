#include "bindings.h"

PYBIND11_MODULE(_engine, module) {
  namespace py = pybind11;
  using namespace pronghorn;

  module.attr("__version__") = PRONGHORN_VERSION;
  module.def("show_messages", &show_messages, py::arg("shown"));
  module.def("use_threads", &use_threads, py::arg("count"));
  python::add_model(module);
  python::add_media(module);
  python::add_training(module);
}
