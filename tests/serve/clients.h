// Clients of an engine, for its tests: what they asked for and what they heard.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "decode/syllable_tokenizer.h"
#include "serve/engine.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn::testing_support {

struct Client {
  TextRequest request;
  int64_t id = 0;
  std::string text;
  std::vector<WrittenToken> tokens;
  TextSummary summary;
  int ends = 0;

  std::vector<int32_t> ids() const {
    std::vector<int32_t> result;
    for (const WrittenToken& token : tokens) result.push_back(token.token);
    return result;
  }
  // Everything that must not depend on others: scores to the bit.
  std::string heard() const {
    std::string all = text + "|";
    for (const WrittenToken& token : tokens) {
      all += fmt::format("{}:{:a} ", token.token, token.log_probability);
      for (const TokenScore& other : token.likeliest) {
        all += fmt::format("{}:{:a},", other.token, other.log_probability);
      }
    }
    return all + fmt::format("|{}|{}", static_cast<int>(summary.end), summary.stop);
  }
};

using ClientPointer = std::shared_ptr<Client>;

inline ClientPointer client(std::vector<int32_t> prompt, int64_t tokens, uint64_t seed = 5) {
  auto result = std::make_shared<Client>();
  result->request.prompt = std::move(prompt);
  result->request.options.max_tokens = tokens;
  result->request.options.sampling.temperature = 0.8;
  result->request.options.sampling.seed = seed;
  result->request.likeliest = 2;
  return result;
}

// The same request, of somebody who has heard nothing yet.
inline ClientPointer again(const ClientPointer& other) {
  auto result = std::make_shared<Client>();
  result->request = other->request;
  return result;
}

inline void submit(Engine& engine, const ClientPointer& client) {
  TextRequest request = client->request;
  request.on_event = [client](const TextEvent& event) {
    client->text += event.text;
    client->tokens.insert(client->tokens.end(), event.tokens.begin(), event.tokens.end());
  };
  request.on_end = [client](const TextSummary& summary) {
    client->summary = summary;
    ++client->ends;
  };
  client->id = engine.submit(std::move(request));
}

inline void finish(Engine& engine) {
  while (engine.step()) {
  }
}

inline ClientPointer run(Engine& engine, const ClientPointer& client) {
  submit(engine, client);
  finish(engine);
  return client;
}

inline std::shared_ptr<const Model> tiny_model(const std::string& name, uint64_t seed = 31) {
  const auto found =
      std::ranges::find(model_configs(), name, &std::pair<std::string, std::string>::first);
  return std::make_shared<const Model>(model_config(found->second), seed);
}

inline std::shared_ptr<const Tokenizer> syllables(std::optional<int32_t> eos = {}) {
  return std::make_shared<const SyllableTokenizer>(eos);
}

// The next turn of a chat: what was said, the token that closes it, and a new message.
inline ClientPointer next_turn(const ClientPointer& turn, std::span<const int32_t> message,
                               int64_t tokens, uint64_t seed = 6) {
  std::vector<int32_t> prompt = turn->request.prompt;
  const std::vector<int32_t> answer = turn->ids();
  const auto begin = std::ssize(prompt);
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  prompt.push_back(60);
  ClientPointer next = client(prompt, tokens, seed);
  TextRequest& request = next->request;
  request.message_ends = turn->request.message_ends;
  request.answers = turn->request.answers;
  request.answers.push_back({begin, std::ssize(prompt)});
  request.message_ends.push_back(std::ssize(prompt));
  request.prompt.insert(request.prompt.end(), message.begin(), message.end());
  request.message_ends.push_back(std::ssize(request.prompt));
  // The template's beginning of an answer.
  request.prompt.insert(request.prompt.end(), {58, 59});
  return next;
}

// The first turn: a system message and a question.
inline ClientPointer first_turn(std::span<const int32_t> system, std::span<const int32_t> message,
                                int64_t tokens, uint64_t seed = 5) {
  std::vector<int32_t> prompt(system.begin(), system.end());
  prompt.insert(prompt.end(), message.begin(), message.end());
  ClientPointer turn = client(prompt, tokens, seed);
  turn->request.message_ends = {std::ssize(system), std::ssize(prompt)};
  turn->request.prompt.insert(turn->request.prompt.end(), {58, 59});
  return turn;
}

}  // namespace pronghorn::testing_support
