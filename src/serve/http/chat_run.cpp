#include "serve/http/chat_run.h"

#include <iterator>

#include "serve/http/api_error.h"
#include "serve/http/chat_image.h"

namespace pronghorn::serve {
namespace {

constexpr int64_t kLowEffort = 1024, kMediumEffort = 4096;  // tokens

// The part of an answer that is reasoning; nothing where its marks are no tokens of the model.
std::optional<BoundedPart> reasoning_part(const ServedModel& model) {
  const PartMarks marks = answer_marks(false);
  const std::optional<int32_t> begin = model.tokenizer->find_token(marks.reasoning);
  const std::optional<int32_t> end = model.tokenizer->find_token(marks.reasoning_end);
  if (!begin || !end) return {};
  return BoundedPart{.begin = *begin, .end = *end};
}

// What "low" and its like stand for, -1 for no bound; nothing where it says nothing. path: of the
// field.
std::optional<int64_t> tokens_of_effort(const Json& effort, const std::string& path) {
  if (effort.is_null()) return {};
  if (effort == "none") return 0;
  if (effort == "minimal" || effort == "low") return kLowEffort;
  if (effort == "medium") return kMediumEffort;
  if (effort == "high" || effort == "xhigh") return -1;
  refuse_field(path,
               "must be \"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\", is " +
                   shown(effort));
}

// {"type": "enabled" or "disabled", "budget_tokens"}: the tokens of reasoning, -1 for no bound.
// "adaptive" is enabled without a budget.
int64_t tokens_of_thinking(const Json& thinking) {
  if (!thinking.is_object()) {
    refuse_field("thinking",
                 "must be an object with the type \"enabled\", \"disabled\" or \"adaptive\", is " +
                     shown(thinking));
  }
  Fields of(thinking, "thinking");
  const std::string type = of.text("type", "enabled");
  if (type != "enabled" && type != "disabled" && type != "adaptive") {
    refuse_field("thinking.type",
                 "must be \"enabled\", \"disabled\" or \"adaptive\", is " + shown(Json(type)));
  }
  const int64_t budget = of.integer("budget_tokens", -1, 0, int64_t{1} << 31);
  return type == "disabled" ? 0 : budget;
}

// The smaller of two bounds.
int64_t least(int64_t a, int64_t b) { return a < 0 || (b >= 0 && b < a) ? b : a; }

// What chat_template_kwargs say goes before.
void tell_template(Chat& chat, const char* name, const Json& value) {
  if (!chat.variables.contains(name)) chat.variables[name] = value;
}

// Special tokens that the parts of an answer are told apart by: their text must come.
std::vector<int32_t> mark_tokens(const Tokenizer& tokenizer, bool tools) {
  std::vector<int32_t> tokens;
  const PartMarks marks = answer_marks(tools);
  for (const std::string* mark :
       {&marks.reasoning, &marks.reasoning_end, &marks.call, &marks.call_end}) {
    if (mark->empty()) continue;
    const std::optional<int32_t> token = tokenizer.find_token(*mark);
    if (token && tokenizer.is_special(*token)) tokens.push_back(*token);
  }
  return tokens;
}

}  // namespace

void read_reasoning(Fields& fields, const ServedModel& model, Chat& chat) {
  const bool bounded = reasoning_part(model).has_value();
  if (const Json& thinking = fields.peek("thinking"); !thinking.is_null()) {
    const int64_t most = tokens_of_thinking(thinking);
    const bool disabled = thinking.value("type", Json()) == "disabled";
    tell_template(chat, "enable_thinking", !disabled);
    chat.reasoning_tokens = most;
    const bool told = model.format.mentions("enable_thinking") && (disabled || most < 0);
    if (told || (bounded && most >= 0)) fields.raw("thinking");
  }
  const Json& reasoning = fields.peek("reasoning");
  if (!reasoning.is_null() && !reasoning.is_object()) {
    refuse_field("reasoning", "must be an object with an effort, is " + shown(reasoning));
  }
  for (const char* field : {"reasoning", "reasoning_effort"}) {
    const bool nested = field == std::string_view("reasoning");
    const Json effort = nested && reasoning.is_object() ? reasoning.value("effort", Json())
                        : nested                        ? Json()
                                                        : fields.peek(field);
    const std::optional<int64_t> most =
        tokens_of_effort(effort, nested ? "reasoning.effort" : field);
    if (!most) continue;
    chat.reasoning_tokens = least(chat.reasoning_tokens, *most);
    tell_template(chat, "reasoning_effort", effort);
    if (*most == 0) tell_template(chat, "enable_thinking", false);
    const bool told = model.format.mentions("reasoning_effort") ||
                      (*most == 0 && model.format.mentions("enable_thinking"));
    if (bounded || told) fields.raw(field);
  }
}

ChatRun::ChatRun(Service& service, std::shared_ptr<ServedModel> model, Call& call, const Chat& chat,
                 const TextFields& text, int64_t most, int likeliest)
    : run_(service, std::move(model), call) {
  const ChatPrompt prompt = chat_prompt(run_.model(), chat, call.client_is_gone);
  const std::shared_ptr<const Image> image = seen_image(run_.model(), chat);
  prompt_tokens_ = static_cast<int64_t>(prompt.tokens.size());
  if (image != nullptr) prompt_tokens_ += run_.model().model->config().vision->rows();
  check_fits(run_.model(), prompt_tokens_, 1);
  const std::shared_ptr<TokenGrammar> grammar =
      answer_grammar(run_.model(), text.format, chat, prompt.begins_in_reasoning);
  std::optional<BoundedPart> reasoning;
  if (chat.reasoning_tokens >= 0) reasoning = reasoning_part(run_.model());
  const bool tools = !chat.tools.is_null();
  if (reasoning) {
    reasoning->begun = prompt.begins_in_reasoning;
    reasoning->tokens = chat.reasoning_tokens;
    PartMarks marks = answer_marks(tools);
    reasoning->call = std::move(marks.call);
    reasoning->call_end = std::move(marks.call_end);
  }
  const std::vector<int32_t> marks = mark_tokens(*run_.model().tokenizer, tools);
  std::vector<bool> counted;
  for (int64_t i = 0; i < text.choices; ++i) {
    TextRequest request = text.request(run_.model(), prompt.tokens, i, most);
    request.image = image;
    request.options.grammar = grammar;
    request.options.reasoning = reasoning;
    request.options.shown_tokens = marks;
    request.message_ends = prompt.message_ends;
    request.answers = prompt.answers;
    request.likeliest = likeliest;
    run_.submit(std::move(request));
    parsers_.emplace_back(tools, prompt.begins_in_reasoning, text.stream);
    counted.push_back(i == 0);
  }
  called_.resize(parsers_.size());
  run_.count_prompts(std::move(counted));
}

std::optional<ChatRun::Event> ChatRun::next(const std::function<void()>& on_silence) {
  std::optional<Delivery> delivery = run_.next(on_silence);
  if (!delivery) return {};
  Event event{delivery->choice, {}, std::move(delivery->tokens), delivery->end.has_value()};
  AnswerParser& parser = parsers_[event.choice];
  event.pieces = parser.push(delivery->text);
  if (event.ended) {
    std::vector<AnswerPiece> rest = parser.finish();
    event.pieces.insert(event.pieces.end(), std::make_move_iterator(rest.begin()),
                        std::make_move_iterator(rest.end()));
  }
  for (const AnswerPiece& piece : event.pieces) {
    if (piece.kind == AnswerPiece::Kind::tool_call && piece.ends) called_[event.choice] = true;
  }
  return event;
}

int64_t ChatRun::malformed_calls() const {
  int64_t count = 0;
  for (const AnswerParser& parser : parsers_) count += parser.malformed_calls();
  return count;
}

}  // namespace pronghorn::serve
