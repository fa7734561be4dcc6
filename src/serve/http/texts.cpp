// POST /tokenize, /detokenize and /apply-template, and GET /v1/models.
#include <utility>

#include "model/weight_bytes.h"
#include "serve/http/api_error.h"
#include "serve/http/chat_image.h"
#include "serve/http/chat_run.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"
#include "serve/http/text_fields.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

// What is to be tokenized: `content` or `prompt`, as different servers call it.
std::string text_field(Fields& fields) {
  if (!fields.has("prompt")) return fields.text("content");
  if (fields.has("content")) {
    refuse_field("prompt", "cannot be given together with content: both are the text");
  }
  return fields.text("prompt");
}

// A chat as its completion would read it. Throws ApiError for one that would be refused there.
Chat read_answerable_chat(Fields& fields, const ServedModel& model) {
  Chat chat = read_chat(fields);
  read_reasoning(fields, model, chat);
  seen_image(model, chat);
  return chat;
}

json model_json(const ServedModel& model) {
  const int64_t context = model.engine->context();
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "pronghorn"},
          {"status", "ready"},
          {"context_length", context > 0 ? json(context) : json()},
          {"max_model_len", context > 0 ? json(context) : json()},
          {"parameters", model.model->parameter_count()},
          {"precision", model.options.precision == Precision::bf16 ? "bf16" : "f32"},
          {"chat_template", model.format.has_template()},
          {"draft", model.options.draft.empty() ? json() : json(model.options.draft)}};
}

}  // namespace

json models_json(const Service& service) {
  json data = json::array();
  for (const ModelTable::Entry& entry : service.models.entries()) {
    if (entry.model != nullptr) {
      data.push_back(model_json(*entry.model));
    } else {
      data.push_back({{"id", entry.name},
                      {"object", "model"},
                      {"created", 0},
                      {"owned_by", "pronghorn"},
                      {"status", entry.loading           ? "loading"
                                 : entry.problem.empty() ? "on_demand"
                                                         : "failed"}});
    }
  }
  return {{"object", "list"}, {"data", data}};
}

Reply tokenize(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  std::vector<int32_t> tokens;
  if (fields.has("messages")) {
    for (const char* text : {"content", "prompt"}) {
      if (fields.has(text)) refuse_field(text, "cannot be given together with messages");
    }
    tokens = model->tokenizer->encode(chat_text(*model, read_answerable_chat(fields, *model)),
                                      {.add_special = false, .parse_special = true});
  } else {
    const std::string text = text_field(fields);
    tokens =
        model->tokenizer->encode(text, {.add_special = fields.boolean("add_special", true),
                                        .parse_special = fields.boolean("parse_special", true)});
  }
  const int64_t context = model->engine->context();
  json document = {{"tokens", tokens},
                   {"count", tokens.size()},
                   {"max_model_len", context > 0 ? json(context) : json()}};
  if (fields.boolean("with_pieces", false)) {
    document["pieces"] = json::array();
    for (const int32_t token : tokens) document["pieces"].push_back(token_name(*model, token));
  }
  return with_ignored(std::move(document), fields);
}

Reply detokenize(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const std::vector<int32_t> tokens = read_tokens(fields.required("tokens"), "tokens", *model);
  const std::string text = model->tokenizer->decode(tokens, fields.boolean("special", true));
  return with_ignored({{"content", text}, {"prompt", text}}, fields);
}

Reply apply_template(Service& service, Call& call) {
  Fields fields(call.body);
  const std::shared_ptr<ServedModel> model = find_model(service, fields);
  call.record.model = model->name;
  const ChatPrompt prompt =
      chat_prompt(*model, read_answerable_chat(fields, *model), call.client_is_gone);
  return with_ignored(
      {{"prompt", prompt.text}, {"tokens", prompt.tokens}, {"message_ends", prompt.message_ends}},
      fields);
}

}  // namespace pronghorn::serve
