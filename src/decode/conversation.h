// Conversation: a chat with a model, turn by turn. After every turn the text that the model has
// read is, token for token, what its chat template makes of all messages.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "decode/generator.h"
#include "formats/chat_format.h"

namespace pronghorn {

// The token by which the template closes an answer, which ends one beside the end tokens of the
// files: some checkpoints name another one there, that ends whole texts. Empty if the template puts
// no added token there, or refuses to write an answer.
std::vector<int32_t> closing_tokens(const ChatFormat& format, const Tokenizer& tokenizer);

class Conversation {
 public:
  // All three must outlive it. Throws Error if the format has no template, or one that does not
  // parse.
  Conversation(const Model& model, const Tokenizer& tokenizer, const ChatFormat& format,
               const CacheOptions& cache = {});

  // {"role", "content"} of each, the system message first.
  const nlohmann::ordered_json& messages() const { return messages_; }
  // The text that the model has read or has still to read.
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const Session& session() const { return session_; }

  // Replaces the system message, or removes it if `text` is empty.
  void set_system(std::string_view text);
  // Forgets all messages but the system message.
  void reset();

  // Adds a user's message and the model's answer to it. The answer ends with the end tokens of
  // `options`, with those of the checkpoint, and with the one by which the template closes an
  // answer. `Generated::prompt_tokens` are those read anew. A template that refuses throws
  // JinjaError, and the message is not added; neither is one that was interrupted before the first
  // token of the answer. `emit`, `interrupted` and `speculation` as for
  // generate().
  Generated answer(std::string_view message, GenerateOptions options,
                   const std::function<void(std::string_view)>& emit = {},
                   const std::function<bool()>& interrupted = {},
                   Speculation* speculation = nullptr);
  // Forgets the last answer and gives another (with another seed). Throws Error if there is none.
  Generated regenerate(GenerateOptions options,
                       const std::function<void(std::string_view)>& emit = {},
                       const std::function<bool()>& interrupted = {},
                       Speculation* speculation = nullptr);

  // A session file (Session::save) with the messages in it. load() throws Error for files that are
  // damaged, of another model, or of a session that is no conversation.
  void save(const std::filesystem::path& path);
  void load(const std::filesystem::path& path);

 private:
  // A place to go back to: the session before a turn.
  struct Mark {
    Session session;
    size_t tokens;
  };

  Generated give_answer(GenerateOptions options, const std::function<void(std::string_view)>& emit,
                        const std::function<bool()>& interrupted, Speculation* speculation);
  std::vector<int32_t> render(bool add_generation_prompt) const;
  // Takes the session back to the longest text that `tokens` begins with, and that leaves at least
  // one of them to be read; returns its length.
  size_t go_back(std::span<const int32_t> tokens);

  const Model& model_;
  const Tokenizer& tokenizer_;
  const ChatFormat& format_;
  CacheOptions cache_;
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();
  std::vector<int32_t> tokens_, end_tokens_;
  Session session_;
  std::vector<Mark> marks_;
};

}  // namespace pronghorn
