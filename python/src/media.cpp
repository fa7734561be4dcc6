// Models of images and of sound.
#include "bindings.h"

namespace pronghorn::python {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

// For each image its classes and their probabilities: a dictionary keeps the order, the most
// probable first.
py::list classify(const ImageModel& model, const std::vector<std::filesystem::path>& images,
                  const std::string& precision) {
  const Rounding rounding = to_rounding(precision);
  std::vector<std::vector<ImageClass>> classified;
  {
    const py::gil_scoped_release released;
    classified = model.classify(images, rounding);
  }
  py::list result;
  for (const std::vector<ImageClass>& classes : classified) {
    py::dict probabilities;
    for (const ImageClass& one : classes) probabilities[py::str(one.name)] = one.probability;
    result.append(probabilities);
  }
  return result;
}

Transcript transcribe(const SoundModel& model, const std::filesystem::path& sound,
                      const std::string& precision) {
  const Rounding rounding = to_rounding(precision);
  const py::gil_scoped_release released;
  return model.transcribe(sound, rounding);
}

}  // namespace

void add_media(py::module_& module) {
  py::class_<ImageModel>(module, "ImageModel")
      .def_static("load", &ImageModel::load, py::arg("checkpoint"), Released())
      .def("classify", &classify, py::arg("images"), py::arg("precision") = "stored");
  py::class_<Transcript>(module, "Transcript")
      .def_readonly("text", &Transcript::text)
      .def_readonly("sound_seconds", &Transcript::sound_seconds)
      .def_readonly("seconds", &Transcript::seconds);
  py::class_<SoundModel>(module, "SoundModel")
      .def_static("load", &SoundModel::load, py::arg("checkpoint"), Released())
      .def("transcribe", &transcribe, py::arg("sound"), py::arg("precision") = "stored");
}

}  // namespace pronghorn::python
