// Training.
#include "bindings.h"

namespace pronghorn::python {
namespace {

TrainingResult run(const TrainingOptions& options, py::object on_step) {
  std::exception_ptr failure;
  TrainingCallback callback = [&](const TrainingProgress& progress) {
    const py::gil_scoped_acquire lock;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (on_step.is_none()) return true;
      const py::object answer = on_step(progress);
      return answer.is_none() || answer.cast<bool>();
    } catch (py::error_already_set&) {
      failure = std::current_exception();
      return false;
    }
  };
  TrainingResult result;
  {
    const py::gil_scoped_release released;
    result = train(options, callback);
  }
  if (failure) std::rethrow_exception(failure);
  return result;
}

TrainingResult train_with(const std::filesystem::path& config,
                          const std::vector<std::filesystem::path>& data,
                          const std::filesystem::path& directory, double seconds, int64_t tokens,
                          int64_t steps, int64_t vocab_size, double held_out,
                          const std::string& settings, uint64_t seed, bool resume,
                          const std::filesystem::path& tokenizer, const std::string& task,
                          int64_t task_length, int64_t evaluate_every, int64_t lora_rank,
                          double lora_alpha, const std::vector<std::string>& lora_targets,
                          py::object on_step) {
  TrainingOptions options;
  options.config = config;
  options.data = data;
  options.directory = directory;
  options.seconds = seconds;
  options.tokens = tokens;
  options.steps = steps;
  options.vocab_size = vocab_size;
  options.held_out = held_out;
  options.settings = settings;
  options.seed = seed;
  options.resume = resume;
  options.tokenizer = tokenizer;
  options.task.name = task;
  options.task.length = task_length;
  options.evaluate_every = evaluate_every;
  options.adapter = {lora_rank, lora_alpha, lora_targets};
  return run(options, std::move(on_step));
}

std::string compare_with(const std::vector<std::filesystem::path>& configs,
                         const std::vector<std::filesystem::path>& data,
                         const std::filesystem::path& directory, double seconds, int64_t tokens,
                         int64_t vocab_size, const std::vector<int64_t>& contexts,
                         double context_seconds, const std::string& settings, uint64_t seed,
                         int64_t seeds) {
  ComparisonOptions options;
  options.configs = configs;
  options.data = data;
  options.directory = directory;
  options.seconds = seconds;
  options.tokens = tokens;
  options.vocab_size = vocab_size;
  options.contexts = contexts;
  options.context_seconds = context_seconds;
  options.settings = settings;
  options.seed = seed;
  options.seeds = seeds;
  const py::gil_scoped_release released;
  return compare(options);
}

}  // namespace

void add_training(py::module_& module) {
  py::class_<TrainingProgress>(module, "TrainingProgress")
      .def_readonly("step", &TrainingProgress::step)
      .def_readonly("tokens", &TrainingProgress::tokens)
      .def_readonly("seconds", &TrainingProgress::seconds)
      .def_readonly("loss", &TrainingProgress::loss)
      .def_readonly("learning_rate", &TrainingProgress::learning_rate)
      .def_readonly("held_out_bits_per_byte", &TrainingProgress::held_out_bits_per_byte);
  py::class_<TrainingResult>(module, "TrainingResult")
      .def_readonly("steps", &TrainingResult::steps)
      .def_readonly("tokens", &TrainingResult::tokens)
      .def_readonly("seconds", &TrainingResult::seconds)
      .def_readonly("tokens_per_second", &TrainingResult::tokens_per_second)
      .def_readonly("held_out_bits_per_byte", &TrainingResult::held_out_bits_per_byte)
      .def_readonly("stopped", &TrainingResult::stopped)
      .def_readonly("start_bits_per_byte", &TrainingResult::start_bits_per_byte)
      .def_readonly("best_bits_per_byte", &TrainingResult::best_bits_per_byte)
      .def_readonly("accuracy", &TrainingResult::accuracy)
      .def_readonly("parameters", &TrainingResult::parameters)
      .def_readonly("peak_bytes", &TrainingResult::peak_bytes);
  module.def("_train", &train_with, py::kw_only(), py::arg("config"), py::arg("data"),
             py::arg("directory"), py::arg("seconds"), py::arg("tokens"), py::arg("steps"),
             py::arg("vocab_size"), py::arg("held_out"), py::arg("settings"), py::arg("seed"),
             py::arg("resume"), py::arg("tokenizer"), py::arg("task"), py::arg("task_length"),
             py::arg("evaluate_every"), py::arg("lora_rank"), py::arg("lora_alpha"),
             py::arg("lora_targets"), py::arg("on_step"));
  module.def("_compare", &compare_with, py::kw_only(), py::arg("configs"), py::arg("data"),
             py::arg("directory"), py::arg("seconds"), py::arg("tokens"), py::arg("vocab_size"),
             py::arg("contexts"), py::arg("context_seconds"), py::arg("settings"), py::arg("seed"),
             py::arg("seeds"));
}

}  // namespace pronghorn::python
