#include "serve/http/chat_run.h"

#include <iterator>

#include "serve/http/chat_image.h"

namespace pronghorn::serve {

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
  std::vector<bool> counted;
  for (int64_t i = 0; i < text.choices; ++i) {
    TextRequest request = text.request(run_.model(), prompt.tokens, i, most);
    request.image = image;
    request.options.grammar = grammar;
    request.message_ends = prompt.message_ends;
    request.answers = prompt.answers;
    request.likeliest = likeliest;
    run_.submit(std::move(request));
    parsers_.emplace_back(!chat.tools.is_null(), prompt.begins_in_reasoning, text.stream);
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
