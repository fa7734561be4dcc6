#include "serve/http/chat_run.h"

#include <iterator>

#include "serve/http/chat_image.h"

namespace pronghorn::serve {
namespace {

constexpr int64_t kLowEffort = 1024, kMediumEffort = 4096;  // tokens

// The part of an answer that is reasoning; nothing where its marks are no tokens of the model.
std::optional<BoundedPart> reasoning_part(const ServedModel& model) {
  const std::optional<int32_t> begin = model.tokenizer->find_token(AnswerParser::kThink);
  const std::optional<int32_t> end = model.tokenizer->find_token(AnswerParser::kThinkEnd);
  if (!begin || !end) return {};
  return BoundedPart{*begin, *end, false, 0};
}

// What "low" and its like stand for; nothing for other words.
std::optional<int64_t> tokens_of_effort(const Json& effort) {
  if (effort == "none") return 0;
  if (effort == "minimal" || effort == "low") return kLowEffort;
  if (effort == "medium") return kMediumEffort;
  if (effort == "high" || effort == "xhigh") return -1;
  return {};
}

// What chat_template_kwargs say goes before.
void tell_template(Chat& chat, const char* name, const Json& value) {
  if (!chat.variables.contains(name)) chat.variables[name] = value;
}

// Special tokens that the parts of an answer are told apart by: their text must come.
std::vector<int32_t> mark_tokens(const Tokenizer& tokenizer, bool tools) {
  std::vector<int32_t> tokens;
  for (const std::string_view mark : AnswerParser::all_marks(tools)) {
    const std::optional<int32_t> token = tokenizer.find_token(mark);
    if (token && tokenizer.is_special(*token)) tokens.push_back(*token);
  }
  return tokens;
}

}  // namespace

void read_reasoning(Fields& fields, const ServedModel& model, Chat& chat) {
  const bool bounded = reasoning_part(model).has_value();
  if (const Json& thinking = fields.peek("thinking"); thinking.is_object()) {
    Fields of(thinking, "thinking");
    const std::string type = of.text("type", "enabled");
    const bool disabled = type == "disabled";
    tell_template(chat, "enable_thinking", !disabled);
    const int64_t budget = of.integer("budget_tokens", -1, 0, int64_t{1} << 31);
    chat.reasoning_tokens = disabled ? 0 : budget;
    const bool told = model.format.mentions("enable_thinking") && (disabled || budget < 0);
    if (told || (bounded && chat.reasoning_tokens >= 0)) fields.raw("thinking");
  }
  const bool nested = fields.peek("reasoning").is_object();
  const Json effort =
      nested ? fields.peek("reasoning").value("effort", Json()) : fields.peek("reasoning_effort");
  const std::optional<int64_t> most = tokens_of_effort(effort);
  if (!most) return;
  if (*most >= 0 && (chat.reasoning_tokens < 0 || *most < chat.reasoning_tokens)) {
    chat.reasoning_tokens = *most;
  }
  tell_template(chat, "reasoning_effort", effort);
  if (*most == 0) tell_template(chat, "enable_thinking", false);
  const bool told = model.format.mentions("reasoning_effort") ||
                    (*most == 0 && model.format.mentions("enable_thinking"));
  if (bounded || told) {
    fields.raw(nested ? "reasoning" : "reasoning_effort");
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
  if (reasoning) {
    reasoning->begun = prompt.begins_in_reasoning;
    reasoning->tokens = chat.reasoning_tokens;
  }
  const bool tools = !chat.tools.is_null();
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
