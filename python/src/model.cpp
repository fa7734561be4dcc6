// Models and sessions.
#include <optional>

#include "bindings.h"

namespace pronghorn::python {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

CacheType to_cache_type(const std::string& name) {
  if (name == "f32") return CacheType::f32;
  if (name == "bf16") return CacheType::bf16;
  if (name == "f16") return CacheType::f16;
  if (name == "q8_0") return CacheType::q8_0;
  if (name == "q4_0") return CacheType::q4_0;
  throw py::value_error("cache_type: 'f32', 'bf16', 'f16', 'q8_0' or 'q4_0' is wanted, not '" +
                        name + "'");
}

// Tokens may be cut inside a character.
py::str decoded(const std::string& text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
}

const char* name_of(Continuation::End end) {
  switch (end) {
    case Continuation::End::stop_text:
      return "stop_text";
    case Continuation::End::end_token:
      return "end_token";
    case Continuation::End::stopped:
      return "stopped";
    case Continuation::End::length:
      break;
  }
  return "length";
}

ContinueOptions to_options(int64_t max_tokens, double temperature, int64_t top_k, double top_p,
                           double min_p, double repetition_penalty, uint64_t seed,
                           std::vector<std::string> stop, bool stop_at_end_token,
                           const std::string& precision, std::string draft, std::string grammar,
                           std::string json_schema) {
  ContinueOptions options;
  options.max_tokens = max_tokens;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  options.min_p = min_p;
  options.repetition_penalty = repetition_penalty;
  options.seed = seed;
  options.stop = std::move(stop);
  options.stop_at_end_token = stop_at_end_token;
  options.rounding = to_rounding(precision);
  options.draft = std::move(draft);
  options.grammar = std::move(grammar);
  options.json_schema = std::move(json_schema);
  return options;
}

// What Python code gives as a callback: called with the lock held; None counts as going on. What it
// raises ends the text, and is raised by whoever asked for it.
class Callback {
 public:
  explicit Callback(py::object function) : function_(std::move(function)) {}

  TextCallback text() {
    if (function_.is_none()) return {};
    return [this](std::string_view piece) {
      const py::gil_scoped_acquire lock;
      try {
        const py::object answer = function_(py::str(piece.data(), piece.size()));
        return answer.is_none() || answer.cast<bool>();
      } catch (py::error_already_set&) {
        failure_ = std::current_exception();
        return false;
      }
    };
  }
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  py::object function_;
  std::exception_ptr failure_;
};

std::vector<Message> to_messages(const py::list& list) {
  std::vector<Message> messages;
  for (const py::handle item : list) {
    const auto message = item.cast<py::dict>();
    messages.push_back(
        {message["role"].cast<std::string>(), message["content"].cast<std::string>()});
  }
  return messages;
}

py::dict to_dict(const LanguageModel& model) {
  py::dict all;
  for (const ParameterInfo& info : model.parameters()) {
    all[py::str(info.name)] =
        to_array(model.parameter(info.name), {info.shape.begin(), info.shape.end()});
  }
  return all;
}

LanguageModel with_parameters(const LanguageModel& model, const py::dict& changed) {
  std::map<std::string, std::vector<float>> numbers;
  for (const auto& [name, value] : changed) {
    const auto array = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(value);
    if (!array)
      throw py::type_error("parameters: " + py::str(name).cast<std::string>() +
                           " is no array of numbers");
    numbers[name.cast<std::string>()] = {array.data(), array.data() + array.size()};
  }
  const py::gil_scoped_release released;
  return model.with_parameters(numbers);
}

py::array_t<float> logits(const LanguageModel& model, const Ids& ids,
                          const std::string& precision) {
  const std::vector<int32_t> tokens = to_ids(ids);
  const Rounding rounding = to_rounding(precision);
  TokenMatrix result;
  {
    const py::gil_scoped_release released;
    result = model.logits(tokens, rounding);
  }
  return to_array(std::move(result));
}

py::array_t<float> hidden_states(const LanguageModel& model, const Ids& ids,
                                 const std::string& precision) {
  const std::vector<int32_t> tokens = to_ids(ids);
  const Rounding rounding = to_rounding(precision);
  TokenMatrix result;
  {
    const py::gil_scoped_release released;
    result = model.hidden_states(tokens, rounding);
  }
  return to_array(std::move(result));
}

std::vector<double> log_probabilities(const LanguageModel& model, const Ids& ids,
                                      const std::string& precision) {
  const std::vector<int32_t> tokens = to_ids(ids);
  const Rounding rounding = to_rounding(precision);
  const py::gil_scoped_release released;
  return model.log_probabilities(tokens, rounding);
}

Continuation generate(TextSession& session, const std::string& prompt,
                      const ContinueOptions& options, py::object on_text) {
  Callback callback(std::move(on_text));
  const TextCallback text = callback.text();
  Continuation result;
  {
    const py::gil_scoped_release released;
    result = session.generate(prompt, options, text);
  }
  callback.rethrow();
  return result;
}

Evaluation evaluate(const LanguageModel& model, const std::vector<std::filesystem::path>& data,
                    int64_t window, const std::string& precision) {
  const Rounding rounding = to_rounding(precision);
  const py::gil_scoped_release released;
  return model.evaluate(data, window, rounding);
}

void add_values(py::module_& module) {
  py::class_<ContinueOptions>(module, "Options")
      .def(py::init(&to_options), py::kw_only(), py::arg("max_tokens") = 128,
           py::arg("temperature") = 0.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0,
           py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0, py::arg("seed") = 0,
           py::arg("stop") = std::vector<std::string>(), py::arg("stop_at_end_token") = true,
           py::arg("precision") = "stored", py::arg("draft") = "", py::arg("grammar") = "",
           py::arg("json_schema") = "");
  py::class_<Continuation>(module, "Continuation")
      .def_readonly("text", &Continuation::text)
      .def_readonly("ids", &Continuation::ids)
      .def_property_readonly("end", [](const Continuation& c) { return name_of(c.end); })
      .def_readonly("prompt_tokens", &Continuation::prompt_tokens)
      .def_readonly("tokens", &Continuation::tokens)
      .def_readonly("prompt_seconds", &Continuation::prompt_seconds)
      .def_readonly("decode_seconds", &Continuation::decode_seconds)
      .def_readonly("drafted", &Continuation::drafted)
      .def_readonly("accepted", &Continuation::accepted);
  py::class_<Evaluation>(module, "Evaluation")
      .def_readonly("tokens", &Evaluation::tokens)
      .def_readonly("bytes", &Evaluation::bytes)
      .def_readonly("nll", &Evaluation::nll)
      .def_readonly("perplexity", &Evaluation::perplexity)
      .def_readonly("bits_per_byte", &Evaluation::bits_per_byte);
  py::class_<MemoryEstimate>(module, "MemoryEstimate")
      .def_readonly("weight_bytes", &MemoryEstimate::weight_bytes)
      .def_readonly("state_bytes", &MemoryEstimate::state_bytes);
}

void add_session(py::module_& module) {
  py::class_<TextSession>(module, "TextSession")
      .def("fork", [](const TextSession& session) { return session; })
      .def(
          "see",
          [](TextSession& session, const std::filesystem::path& image,
             const std::string& precision) {
            const Rounding rounding = to_rounding(precision);
            const py::gil_scoped_release released;
            session.see(image, rounding);
          },
          py::arg("image"), py::arg("precision") = "stored")
      .def("append", &TextSession::append, py::arg("text"), Released())
      .def(
          "append_ids",
          [](TextSession& session, const Ids& ids) { session.append_ids(to_ids(ids)); },
          py::arg("ids"))
      .def_property_readonly("ids", &TextSession::ids)
      .def_property_readonly("text",
                             [](const TextSession& session) { return decoded(session.text()); })
      .def("truncate", &TextSession::truncate, py::arg("length"), Released())
      .def(
          "next_logits",
          [](TextSession& session, const std::string& precision) {
            const Rounding rounding = to_rounding(precision);
            std::vector<float> scores;
            {
              const py::gil_scoped_release released;
              scores = session.next_logits(rounding);
            }
            const auto size = static_cast<py::ssize_t>(scores.size());
            return to_array(std::move(scores), {size});
          },
          py::arg("precision") = "stored")
      .def("_generate", &generate, py::arg("prompt"), py::arg("options"),
           py::arg("on_text") = py::none())
      .def("__len__", &TextSession::length)
      .def_property_readonly("state_bytes", &TextSession::state_bytes)
      .def("save", &TextSession::save, py::arg("file"), Released());
}

}  // namespace

Rounding to_rounding(const std::string& name) {
  if (name == "stored") return Rounding::stored;
  if (name == "f32") return Rounding::f32;
  if (name == "bf16") return Rounding::bf16;
  throw py::value_error("precision: 'stored', 'f32' or 'bf16' is wanted, not '" + name + "'");
}

void add_model(py::module_& module) {
  add_values(module);
  add_session(module);
  py::class_<LanguageModel>(module, "LanguageModel")
      .def_static("load", &LanguageModel::load, py::arg("checkpoint"),
                  py::arg("adapter") = std::filesystem::path(), Released())
      .def_static("build", &LanguageModel::build, py::arg("config"), py::arg("seed") = 0,
                  Released())
      .def_static(
          "estimate",
          [](const std::filesystem::path& checkpoint, int64_t tokens,
             const std::string& cache_type) {
            return LanguageModel::estimate(checkpoint, tokens, to_cache_type(cache_type));
          },
          py::arg("checkpoint"), py::arg("tokens") = 4096, py::arg("cache_type") = "f32")
      .def("save", &LanguageModel::save, py::arg("directory"), Released())
      .def_property_readonly("parameter_count", &LanguageModel::parameter_count)
      .def_property_readonly("active_parameter_count", &LanguageModel::active_parameter_count)
      .def_property_readonly("vocab_size", &LanguageModel::vocab_size)
      .def_property_readonly("hidden_size", &LanguageModel::hidden_size)
      .def_property_readonly("layers", &LanguageModel::layers)
      .def_property_readonly("trained_context", &LanguageModel::trained_context)
      .def_property_readonly("end_tokens", &LanguageModel::end_tokens)
      .def_property_readonly("has_chat_template", &LanguageModel::has_chat_template)
      .def("config_json", &LanguageModel::config_json)
      .def(
          "state_bytes",
          [](const LanguageModel& model, int64_t tokens, const std::string& cache_type) {
            return model.state_bytes(tokens, to_cache_type(cache_type));
          },
          py::arg("tokens"), py::arg("cache_type") = "f32")
      .def("parameters", &to_dict)
      .def("with_parameters", &with_parameters, py::arg("changed"))
      .def("tokenize", &LanguageModel::tokenize, py::arg("text"), py::arg("special") = true,
           Released())
      .def(
          "detokenize",
          [](const LanguageModel& model, const Ids& ids) {
            return decoded(model.detokenize(to_ids(ids)));
          },
          py::arg("ids"))
      .def(
          "apply_template",
          [](const LanguageModel& model, const py::list& messages, bool answer_follows) {
            return model.apply_template(to_messages(messages), answer_follows);
          },
          py::arg("messages"), py::arg("answer_follows") = true)
      .def("logits", &logits, py::arg("ids"), py::arg("precision") = "stored")
      .def("hidden_states", &hidden_states, py::arg("ids"), py::arg("precision") = "stored")
      .def("log_probabilities", &log_probabilities, py::arg("ids"), py::arg("precision") = "stored")
      .def(
          "start",
          [](const LanguageModel& model, const std::string& cache_type) {
            return model.start(to_cache_type(cache_type));
          },
          py::arg("cache_type") = "f32")
      .def(
          "resume",
          [](const LanguageModel& model, const std::filesystem::path& file,
             const std::string& cache_type) {
            return model.resume(file, to_cache_type(cache_type));
          },
          py::arg("file"), py::arg("cache_type") = "f32")
      .def(
          "_generate_together",
          [](const LanguageModel& model, const std::vector<std::string>& prompts,
             const ContinueOptions& options) {
            const py::gil_scoped_release released;
            return model.generate(prompts, options);
          },
          py::arg("prompts"), py::arg("options"))
      .def(
          "measure",
          [](const LanguageModel& model, int64_t prompt, int64_t generate, int64_t batch,
             int repeat) {
            Speed speed;
            {
              const py::gil_scoped_release released;
              speed = model.measure({prompt, generate, batch, repeat});
            }
            py::dict result;
            result["prompt"] = speed.prompt;
            result["decode"] = speed.decode;
            result["state_bytes"] = speed.state_bytes;
            return result;
          },
          py::arg("prompt"), py::arg("generate"), py::arg("batch"), py::arg("repeat"))
      .def("evaluate", &evaluate, py::arg("data"), py::arg("window") = 0,
           py::arg("precision") = "stored");
}

}  // namespace pronghorn::python
