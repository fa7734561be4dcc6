// POST /v1/embeddings
#include <bit>
#include <cstring>
#include <utility>

#include "base/base64.h"
#include "serve/http/api_error.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"
#include "serve/http/scoring.h"
#include "serve/http/text_fields.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

json vector_json(const std::vector<float>& vector, bool as_base64) {
  if (!as_base64) return vector;
  static_assert(std::endian::native == std::endian::little);
  return to_base64({reinterpret_cast<const char*>(vector.data()), vector.size() * sizeof(float)});
}

std::vector<int32_t> encoded(const ServedModel& model, const Json& text) {
  return model.tokenizer->encode(text.get_ref<const std::string&>(),
                                 {.add_special = true, .parse_special = true});
}

// A text, a list of texts, a list of token ids, or a list of such lists.
std::vector<std::vector<int32_t>> read_inputs(Fields& fields, const ServedModel& model,
                                              int64_t most) {
  const Json& value = fields.required("input");
  if (value.is_string()) return {encoded(model, value)};
  if (!value.is_array() || value.empty()) {
    refuse_field("input", "must be a string or a list that is not empty");
  }
  if (value.front().is_number()) return {read_tokens(value, "input", model)};
  if (static_cast<int64_t>(value.size()) > most) {
    throw ApiError(413, "too_many_items",
                   fmt::format("input has {} items, more than {}", value.size(), most), "input");
  }
  std::vector<std::vector<int32_t>> inputs;
  for (const Json& item : value) {
    inputs.push_back(item.is_string() ? encoded(model, item) : read_tokens(item, "input", model));
  }
  return inputs;
}

}  // namespace

Reply embeddings(Service& service, Call& call) {
  constexpr int64_t kMostInputs = 2048;
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const auto inputs = read_inputs(fields, *model, kMostInputs);
  const std::string format = fields.text("encoding_format", "float");
  if (format != "float" && format != "base64") {
    refuse_field("encoding_format", "must be \"float\" or \"base64\", is " + shown(Json(format)));
  }
  const int64_t size = model->model->config().hidden_size;
  if (fields.integer("dimensions", size, 1, INT32_MAX) != size) {
    refuse_field("dimensions", fmt::format("must be {}, the width of the model", size));
  }
  for (const std::vector<int32_t>& tokens : inputs) {
    if (tokens.empty()) refuse_field("input", "holds no token");
    check_fits(*model, static_cast<int64_t>(tokens.size()), 0);
    call.record.prompt_tokens += static_cast<int64_t>(tokens.size());
  }
  json data = json::array();
  for (size_t i = 0; i < inputs.size(); ++i) {
    data.push_back({{"object", "embedding"},
                    {"index", i},
                    {"embedding", vector_json(embedding(service, *model, inputs[i], call),
                                              format == "base64")}});
  }
  json document = {{"object", "list"},
                   {"data", data},
                   {"model", model->name},
                   {"usage",
                    {{"prompt_tokens", call.record.prompt_tokens},
                     {"total_tokens", call.record.prompt_tokens}}}};
  return with_ignored(std::move(document), fields);
}

}  // namespace pronghorn::serve
