// POST /v1/completions
#include <algorithm>
#include <ctime>

#include "serve/http/api_error.h"
#include "serve/http/endpoints.h"
#include "serve/http/reply_parts.h"
#include "serve/http/scoring.h"
#include "serve/http/text_fields.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {
namespace {

using nlohmann::json;

constexpr int64_t kDefaultTokens = 16;  // as OpenAI's API has it

struct Prompt {
  std::vector<int32_t> tokens;
  std::string text;                  // as the answer repeats it (echo)
  std::vector<WrittenToken> scored;  // of its tokens but the first, if asked for
};

struct CompletionReply {
  std::string id = new_id("cmpl-");
  std::time_t created = std::time(nullptr);
  std::shared_ptr<ServedModel> model;
  std::vector<Prompt> prompts;
  std::shared_ptr<TextRun> run;  // null: the prompts are not continued
  size_t per_prompt = 1;         // choices
  std::vector<std::string> ignored;
  bool include_usage = false, echo = false;
  int likeliest = -1;

  size_t choices() const { return prompts.size() * per_prompt; }
  const Prompt& prompt(size_t choice) const { return prompts[choice / per_prompt]; }
};

size_t characters(std::string_view text) {
  return static_cast<size_t>(
      std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

Prompt text_prompt(const ServedModel& model, const std::string& text) {
  return {model.tokenizer->encode(text, {.add_special = true, .parse_special = true}), text, {}};
}

Prompt token_prompt(const ServedModel& model, const Json& list) {
  Prompt prompt;
  prompt.tokens = read_tokens(list, "prompt", model);
  prompt.text = model.tokenizer->decode(prompt.tokens);
  return prompt;
}

// A text, a list of texts, a list of token ids, or a list of such lists.
std::vector<Prompt> read_prompts(Fields& fields, const ServedModel& model, int64_t most) {
  const Json& value = fields.required("prompt");
  std::vector<Prompt> prompts;
  if (value.is_string()) {
    prompts.push_back(text_prompt(model, value.get<std::string>()));
  } else if (value.is_array() && !value.empty() && value.front().is_number()) {
    prompts.push_back(token_prompt(model, value));
  } else if (value.is_array()) {
    for (const Json& item : value) {
      if (static_cast<int64_t>(prompts.size()) >= most) {
        ApiError error(413, "too_many_items",
                       fmt::format("prompt has {} items, more than {}", value.size(), most),
                       "prompt");
        error.details["limit"] = most;
        throw error;
      }
      prompts.push_back(item.is_string() ? text_prompt(model, item.get<std::string>())
                                         : token_prompt(model, item));
    }
  } else {
    refuse_field("prompt", "must be a string or a list, is " + shown(value));
  }
  if (prompts.empty()) refuse_field("prompt", "is an empty list");
  for (const Prompt& prompt : prompts) {
    if (prompt.tokens.empty()) refuse_field("prompt", "holds no token");
  }
  return prompts;
}

// The lists of OpenAI's API, one item per token.
class LogprobsJson {
 public:
  LogprobsJson(const ServedModel& model, size_t offset) : model_(model), offset_(offset) {}

  // A token that nothing stands before has no log-probability.
  void add_first(int32_t token) { push(token, nullptr, nullptr); }
  void add(const WrittenToken& token) {
    json top = json::object();
    for (const TokenScore& score : token.likeliest) {
      const std::string text = token_name(model_, score.token);
      if (!top.contains(text)) top[text] = score.log_probability;
    }
    push(token.token, token.log_probability, top);
  }
  void add(const std::vector<WrittenToken>& tokens) {
    for (const WrittenToken& token : tokens) add(token);
  }
  size_t offset() const { return offset_; }
  const json& lists() const { return lists_; }

 private:
  void push(int32_t token, const json& logprob, const json& top) {
    lists_["tokens"].push_back(token_name(model_, token));
    lists_["token_logprobs"].push_back(logprob);
    lists_["top_logprobs"].push_back(top);
    lists_["text_offset"].push_back(offset_);
    offset_ += characters(model_.tokenizer->token_bytes(token));
  }

  const ServedModel& model_;
  size_t offset_;
  json lists_ = {{"tokens", json::array()},
                 {"token_logprobs", json::array()},
                 {"top_logprobs", json::array()},
                 {"text_offset", json::array()}};
};

// The prompts' log-probabilities, where they are to be shown.
void score_prompts(Service& service, const Call& call, CompletionReply& reply) {
  if (!reply.echo || reply.likeliest < 0) return;
  for (Prompt& prompt : reply.prompts) {
    prompt.scored = scored_tokens(service, *reply.model, prompt.tokens, reply.likeliest, call);
  }
}

LogprobsJson prompt_logprobs(const CompletionReply& reply, const Prompt& prompt) {
  LogprobsJson logprobs(*reply.model, reply.echo ? 0 : characters(prompt.text));
  if (reply.echo) {
    logprobs.add_first(prompt.tokens.front());
    logprobs.add(prompt.scored);
  }
  return logprobs;
}

json head_json(const CompletionReply& reply) {
  return {{"id", reply.id},
          {"object", "text_completion"},
          {"created", reply.created},
          {"model", reply.model->name},
          {"system_fingerprint", fingerprint(*reply.model)}};
}

json choice_json(size_t index, const std::string& text) {
  return {{"index", index}, {"text", text}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
}

void finish_choice(const TextSummary& summary, json& choice) {
  choice["finish_reason"] = finish_reason(summary);
  choice["stop_reason"] = summary.stop.empty() ? json() : json(summary.stop);
}

TextSummary total_of(const CompletionReply& reply) {
  if (reply.run != nullptr) return reply.run->total();
  TextSummary total;  // nothing was to be written
  for (const Prompt& prompt : reply.prompts) {
    total.prompt_tokens += static_cast<int64_t>(prompt.tokens.size());
  }
  total.cache = "the prompts were not continued";
  return total;
}

void finish_document(const CompletionReply& reply, json& document) {
  const TextSummary total = total_of(reply);
  document["usage"] = usage_json(total);
  document.update(extension_json(*reply.model, total, reply.ignored));
}

json whole(Service& service, Call& call, CompletionReply& reply) {
  score_prompts(service, call, reply);
  std::vector<std::string> texts;
  std::vector<LogprobsJson> logprobs;
  for (size_t i = 0; i < reply.choices(); ++i) {
    texts.push_back(reply.echo ? reply.prompt(i).text : std::string());
    logprobs.push_back(prompt_logprobs(reply, reply.prompt(i)));
  }
  while (reply.run != nullptr) {
    const auto delivery = reply.run->next();
    if (!delivery) break;
    texts[delivery->choice] += delivery->text;
    if (reply.likeliest >= 0) logprobs[delivery->choice].add(delivery->tokens);
  }
  json document = head_json(reply);
  document["choices"] = json::array();
  for (size_t i = 0; i < reply.choices(); ++i) {
    json choice = choice_json(i, texts[i]);
    if (reply.likeliest >= 0) choice["logprobs"] = logprobs[i].lists();
    finish_choice(reply.run != nullptr ? reply.run->summary(i) : TextSummary(), choice);
    document["choices"].push_back(choice);
  }
  finish_document(reply, document);
  return document;
}

class CompletionStream {
 public:
  CompletionStream(const CompletionReply& reply, EventStream& out) : reply_(reply), out_(out) {
    for (size_t i = 0; i < reply.choices(); ++i) {
      const LogprobsJson of_prompt = prompt_logprobs(reply, reply.prompt(i));
      offsets_.push_back(of_prompt.offset());
      if (!reply.echo) continue;
      json choice = choice_json(i, reply.prompt(i).text);
      if (reply.likeliest >= 0) choice["logprobs"] = of_prompt.lists();
      send(choice);
    }
  }

  void add(const Delivery& delivery) {
    json choice = choice_json(delivery.choice, delivery.text);
    if (reply_.likeliest >= 0 && !delivery.tokens.empty()) {
      LogprobsJson logprobs(*reply_.model, offsets_[delivery.choice]);
      logprobs.add(delivery.tokens);
      offsets_[delivery.choice] = logprobs.offset();
      choice["logprobs"] = logprobs.lists();
    } else if (delivery.text.empty()) {
      return;
    }
    send(choice);
  }

  void finish(size_t index, const TextSummary& summary) {
    json choice = choice_json(index, "");
    finish_choice(summary, choice);
    const bool last = ++finished_ == reply_.choices();
    send(choice,
         last ? extension_json(*reply_.model, total_of(reply_), reply_.ignored) : json::object());
  }

  void finish() {
    if (reply_.include_usage) {
      json chunk = head_json(reply_);
      chunk["choices"] = json::array();
      finish_document(reply_, chunk);
      out_.data(chunk);
    }
    out_.text("[DONE]");
  }

 private:
  void send(const json& choice, const json& extension = json::object()) {
    json chunk = head_json(reply_);
    chunk["choices"] = json::array({choice});
    chunk.update(extension);
    out_.data(chunk);
  }

  const CompletionReply& reply_;
  EventStream& out_;
  std::vector<size_t> offsets_;
  size_t finished_ = 0;  // choices
};

void stream(const CompletionReply& reply, EventStream& out) {
  CompletionStream chunks(reply, out);
  if (reply.run == nullptr) {
    for (size_t i = 0; i < reply.choices(); ++i) chunks.finish(i, {});
    return chunks.finish();
  }
  while (const auto delivery = reply.run->next([&] { out.comment(); })) {
    chunks.add(*delivery);
    if (delivery->end) chunks.finish(delivery->choice, *delivery->end);
  }
  chunks.finish();
}

void submit(Service& service, Call& call, const TextFields& text, int64_t most,
            CompletionReply& reply) {
  for (const Prompt& prompt : reply.prompts) {
    check_fits(*reply.model, static_cast<int64_t>(prompt.tokens.size()), most == 0 ? 0 : 1);
  }
  if (most == 0) return;
  reply.run = std::make_shared<TextRun>(service, reply.model, call);
  std::vector<bool> counted;
  for (const Prompt& prompt : reply.prompts) {
    for (int64_t i = 0; i < text.choices; ++i) {
      TextRequest request = text.request(*reply.model, prompt.tokens, i, most);
      request.likeliest = reply.likeliest;
      reply.run->submit(std::move(request));
      counted.push_back(i == 0);
    }
  }
  reply.run->count_prompts(std::move(counted));
}

}  // namespace

Reply completions(Service& service, Call& call) {
  Fields fields(call.body);
  CompletionReply reply;
  reply.model = find_model(service, fields);
  TextFields text = read_text_fields(fields, *reply.model, service.options);
  text.options.stop = read_stops(fields, "stop", service.options);
  text.options.grammar = text_grammar(*reply.model, text.format);
  const int64_t most = read_most_tokens(fields, kDefaultTokens);
  reply.prompts = read_prompts(fields, *reply.model, service.options.choices / text.choices);
  reply.per_prompt = static_cast<size_t>(text.choices);
  reply.include_usage = text.include_usage;
  reply.echo = fields.boolean("echo", false);
  reply.likeliest = static_cast<int>(fields.integer("logprobs", -1, -1, service.options.likeliest));
  reply.ignored = fields.unread();
  call.record.model = reply.model->name;
  submit(service, call, text, most, reply);
  if (!text.stream) return whole(service, call, reply);
  return StreamFunction([&service, &call, reply](EventStream& out) mutable {
    score_prompts(service, call, reply);
    stream(reply, out);
  });
}

}  // namespace pronghorn::serve
