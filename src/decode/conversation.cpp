#include "decode/conversation.h"

#include <algorithm>

#include "base/error.h"
#include "formats/json.h"

namespace pronghorn {
namespace {

// Copies of a session share what they can, but a recurrence's state is a copy.
constexpr size_t kMostMarks = 4;

bool is_role(const nlohmann::ordered_json& message, std::string_view role) {
  return message.at("role").get_ref<const std::string&>() == role;
}

}  // namespace

std::vector<int32_t> closing_tokens(const ChatFormat& format, const Tokenizer& tokenizer) {
  constexpr std::string_view kAnswer = "pronghorn-answer";
  if (!format.has_template()) return {};
  const nlohmann::ordered_json messages = {
      {{"role", "user"}, {"content", "question"}},
      {{"role", "assistant"}, {"content", std::string(kAnswer)}}};
  try {
    const std::string text =
        format.render({{"messages", messages}, {"add_generation_prompt", false}});
    const size_t at = text.rfind(kAnswer);
    if (at == text.npos) return {};
    const std::vector<int32_t> behind =
        tokenizer.encode(std::string_view(text).substr(at + kAnswer.size()),
                         {.add_special = false, .parse_special = true, .after = After::text});
    if (!behind.empty() && tokenizer.is_added(behind.front())) return {behind.front()};
  } catch (const Error&) {
    // It wants other conversations, which it will be given, or does not parse.
  }
  return {};
}

Conversation::Conversation(const Model& model, const Tokenizer& tokenizer, const ChatFormat& format,
                           const CacheOptions& cache)
    : model_(model), tokenizer_(tokenizer), format_(format), cache_(cache), session_(model, cache) {
  format_.check_template();
  end_tokens_ = format_.end_tokens(tokenizer, model.config().vocab_size);
  const std::vector<int32_t> closing = closing_tokens(format, tokenizer);
  end_tokens_.insert(end_tokens_.end(), closing.begin(), closing.end());
}

void Conversation::set_system(std::string_view text) {
  if (!messages_.empty() && is_role(messages_.front(), "system")) messages_.erase(0);
  if (text.empty()) return;
  const nlohmann::ordered_json message = {{"role", "system"}, {"content", std::string(text)}};
  messages_.insert(messages_.begin(), message);
}

void Conversation::reset() {
  const bool keeps = !messages_.empty() && is_role(messages_.front(), "system");
  while (messages_.size() > (keeps ? 1u : 0u)) messages_.erase(messages_.size() - 1);
}

std::vector<int32_t> Conversation::render(bool add_generation_prompt) const {
  const std::string text =
      format_.render({{"messages", messages_}, {"add_generation_prompt", add_generation_prompt}});
  // The template writes what the model expects at the beginning.
  return tokenizer_.encode(text, {.add_special = false, .parse_special = true});
}

size_t Conversation::go_back(std::span<const int32_t> tokens) {
  const auto same = [&](size_t most) {
    const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(std::min(most, tokens_.size()));
    return static_cast<size_t>(
        std::mismatch(tokens_.begin(), end, tokens.begin(), tokens.end()).first - tokens_.begin());
  };
  const size_t common = std::min(same(tokens_.size()), tokens.size() - 1);
  if (session_.go_back(tokens.first(common))) {
    std::erase_if(marks_, [&](const Mark& mark) { return mark.tokens > common; });
    return common;
  }
  while (!marks_.empty()) {
    Mark mark = std::move(marks_.back());
    marks_.pop_back();
    if (mark.tokens > common) continue;
    session_ = std::move(mark.session);
    return mark.tokens;
  }
  session_ = Session(model_, cache_);
  return 0;
}

Generated Conversation::give_answer(GenerateOptions options,
                                    const std::function<void(std::string_view)>& emit,
                                    const std::function<bool()>& interrupted,
                                    Speculation* speculation) {
  const std::vector<int32_t> tokens = render(true);
  require(!tokens.empty(), "chat", "the template makes no text of the messages");
  const size_t kept = go_back(tokens);
  marks_.push_back({session_, kept});
  if (marks_.size() > kMostMarks) marks_.erase(marks_.begin());
  tokens_ = tokens;
  options.end_tokens.insert(options.end_tokens.end(), end_tokens_.begin(), end_tokens_.end());
  Generated result;
  try {
    result = generate(model_, tokenizer_, session_, std::span(tokens).subspan(kept), options, emit,
                      speculation, interrupted);
  } catch (...) {
    session_ = marks_.back().session;
    tokens_.resize(kept);
    throw;
  }
  tokens_.insert(tokens_.end(), result.ids.begin(), result.ids.end());
  messages_.push_back({{"role", "assistant"}, {"content", result.text}});
  return result;
}

Generated Conversation::answer(std::string_view message, GenerateOptions options,
                               const std::function<void(std::string_view)>& emit,
                               const std::function<bool()>& interrupted, Speculation* speculation) {
  messages_.push_back({{"role", "user"}, {"content", std::string(message)}});
  const size_t before = messages_.size();
  try {
    Generated result = give_answer(std::move(options), emit, interrupted, speculation);
    if (result.ids.empty() && result.end == Generated::End::interrupted) {
      while (messages_.size() >= before) messages_.erase(messages_.size() - 1);
    }
    return result;
  } catch (...) {
    if (messages_.size() == before) messages_.erase(before - 1);
    throw;
  }
}

Generated Conversation::regenerate(GenerateOptions options,
                                   const std::function<void(std::string_view)>& emit,
                                   const std::function<bool()>& interrupted,
                                   Speculation* speculation) {
  if (messages_.empty() || !is_role(messages_.back(), "assistant")) {
    throw Error("chat", "there is no answer to give again", "ask something first");
  }
  const nlohmann::ordered_json last = messages_.back();
  messages_.erase(messages_.size() - 1);
  const size_t before = messages_.size();
  try {
    return give_answer(std::move(options), emit, interrupted, speculation);
  } catch (...) {
    if (messages_.size() == before) messages_.push_back(last);
    throw;
  }
}

void Conversation::save(const std::filesystem::path& path) {
  session_.set_attachment(
      nlohmann::ordered_json({{"messages", messages_}, {"tokens", tokens_}})
          .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  session_.save(path);
}

void Conversation::load(const std::filesystem::path& path) {
  Session session = Session::load(path, model_, cache_);
  const std::string where = path.string();
  if (session.attachment().empty()) {
    throw Error(where, "is a session of a plain text, not a conversation",
                "continue it as a text, or name a new file");
  }
  const nlohmann::ordered_json saved = parse_variables(session.attachment(), where + ": messages");
  require(saved.is_object() && saved.contains("messages") && saved.contains("tokens") &&
              saved["messages"].is_array() && saved["tokens"].is_array(),
          where, "holds no messages");
  for (const nlohmann::ordered_json& message : saved["messages"]) {
    require(message.is_object() && message.contains("role") && message["role"].is_string() &&
                message.contains("content") && message["content"].is_string(),
            where, "holds a message without role or content");
  }
  std::vector<int32_t> tokens;
  for (const nlohmann::ordered_json& token : saved["tokens"]) {
    require(token.is_number_integer() && token.get<int64_t>() >= 0 &&
                token.get<int64_t>() < model_.config().vocab_size,
            where, "holds a token that is none of a vocabulary of {}", model_.config().vocab_size);
    tokens.push_back(token.get<int32_t>());
  }
  const std::span<const int32_t> recent = session.recent();
  require(
      static_cast<int64_t>(tokens.size()) == session.length() && tokens.size() >= recent.size() &&
          std::equal(recent.begin(), recent.end(),
                     tokens.end() - static_cast<std::ptrdiff_t>(recent.size())),
      where, "its {} tokens are not those of its state, of {}", tokens.size(), session.length());
  messages_ = saved["messages"];
  tokens_ = std::move(tokens);
  session_ = std::move(session);
  marks_.clear();
}

}  // namespace pronghorn
