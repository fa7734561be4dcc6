// `generate` and `chat` as people and scripts use them.
#include <gmock/gmock.h>

#include "command.h"
#include "model/model.h"
#include "support/chat_model.h"

namespace pronghorn {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using namespace testing_support;
using testing_cli::Conditions;
using testing_cli::Finished;

class ChatCommand : public testing_cli::CliTest {
 protected:
  ChatCommand() {
    json json = tiny_json("a m");
    json["vocab_size"] = kChatVocabulary;
    json["initializer_range"] = 0.3;
    Model(read_pronghorn_config(ConfigReader(json, "test")), 5).save(folder_ / "chat");
    write_chat_tokenizer(folder_ / "chat");
  }

  // A model whose every token is followed by `next` of it: no other weight does anything.
  void put_chain(const std::string& name, const std::vector<std::pair<int, int>>& next) {
    json json = {{"model_type", "pronghorn"},
                 {"vocab_size", kChatVocabulary + 5},  // five of them are padding
                 {"hidden_size", 64},
                 {"pattern", "a"},
                 {"tie_embeddings", false},
                 {"blocks", {{"a", {{"mixer", {{"type", "attention"}, {"heads", 1}}}}}}}};
    Model model(read_pronghorn_config(ConfigReader(json, "test")), 1);
    for (size_t place = 0; place < model.parameters().size(); ++place) {
      const Parameter& parameter = model.parameters()[place];
      std::vector<float> values(static_cast<size_t>(parameter.size()), 0.f);
      const bool head = parameter.name == "lm_head.weight";
      if (head || parameter.name == "embeddings.weight") {
        for (size_t i = 0; i < next.size(); ++i) {
          const auto row = static_cast<size_t>(head ? next[i].second : next[i].first);
          values[row * 64 + i] = head ? 1.f : 8.f;
        }
      } else if (parameter.name.find("norm") != std::string::npos) {
        std::fill(values.begin(), values.end(), 1.f);
      }
      model.assign(place, {&encodings::f32, std::as_bytes(std::span(values)), nullptr, nullptr});
    }
    model.save(folder_ / name);
    write_chat_tokenizer(folder_ / name);
  }

  std::vector<std::string> talk(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {"chat", "chat", "-n", "12", "--temperature", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  json document_of(const std::vector<std::string>& arguments, const std::string& input) const {
    Conditions conditions;
    conditions.input = input;
    const Finished finished = run(arguments, conditions);
    EXPECT_EQ(finished.code, 0) << finished.err;
    return json::parse(finished.out, nullptr, false);
  }
};

TEST_F(ChatCommand, ReadsLinesFromAPipe) {
  Conditions conditions;
  conditions.input = "Hello\n\n  \nmore\n";
  const Finished plain = run(talk({}), conditions);
  EXPECT_EQ(plain.code, 0);
  EXPECT_EQ(plain.err, "");
  const json both = document_of(talk({"--json"}), conditions.input);
  ASSERT_EQ(both["answers"].size(), 2u);
  EXPECT_EQ(plain.out, both["answers"][0]["text"].get<std::string>() + "\n" +
                           both["answers"][1]["text"].get<std::string>() + "\n");
  EXPECT_EQ(both["messages"].size(), 4u);
  EXPECT_EQ(both["messages"][2], (json{{"role", "user"}, {"content", "more"}}));
  EXPECT_EQ(both["tokens"].size(), both["context"]);
}

// Several turns, stopped between them or not, and as one prompt.
TEST_F(ChatCommand, ASessionGoesOnAsIfNeverStopped) {
  const json whole = document_of(talk({"--json", "--system", "be good"}), "one\ntwo\nthree\n");
  json last;
  for (const char* line : {"one\n", "two\n", "three\n"}) {
    last = document_of(talk({"--json", "--system", "be good", "--session", "kept"}), line);
  }
  EXPECT_EQ(last["messages"], whole["messages"]);
  EXPECT_EQ(last["tokens"], whole["tokens"]);
  EXPECT_EQ(last["answers"][0]["ids"], whole["answers"][2]["ids"]);

  json messages = whole["messages"];
  messages.erase(messages.size() - 1);
  put("variables.json", json({{"messages", messages}, {"add_generation_prompt", true}}).dump());
  const std::string text = output_of({"template", "chat", "--variables", "variables.json"});
  put("prompt.txt", text);
  const json tokens = json_of({"tokenize", "chat", "--file", "prompt.txt"})["tokens"];
  json read = whole["tokens"];
  for (size_t i = whole["answers"][2]["ids"].size(); i > 0; --i) read.erase(read.size() - 1);
  EXPECT_EQ(read, tokens);
}

TEST_F(ChatCommand, Commands) {
  const json document = document_of(
      talk({"--json"}),
      "/system be brief\nHello\n/save kept\nmore\n/load kept\n//slash\n/regenerate\n/stats\n/help\n"
      "/exit\nnever read\n");
  const json& messages = document["messages"];
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0], (json{{"role", "system"}, {"content", "be brief"}}));
  EXPECT_EQ(messages[1]["content"], "Hello");
  EXPECT_EQ(messages[3]["content"], "/slash");
  EXPECT_EQ(document["answers"].size(), 4u);
  EXPECT_NE(document["answers"][2]["ids"], document["answers"][3]["ids"]);  // another seed
  EXPECT_EQ(document_of(talk({"--json"}), "Hello\n/reset\nHello\n")["messages"].size(), 2u);

  Conditions conditions;
  conditions.input = "/nonsense\n";
  EXPECT_THAT(failure_of(2, talk({}), conditions), HasSubstr("/help"));
  conditions.input = "/save\n";
  EXPECT_THAT(failure_of(2, talk({}), conditions), HasSubstr("name of a file"));
  conditions.input = "/load nowhere\n";
  EXPECT_THAT(failure_of(1, talk({}), conditions), HasSubstr("nowhere"));
}

TEST_F(ChatCommand, NeedsATemplate) {
  put("chat/tokenizer_config.json", "{}");
  EXPECT_THAT(failure_of(1, {"chat", "chat"}), HasSubstr("no chat template"));
  EXPECT_THAT(failure_of(1, {"generate", "chat", "--chat", "--prompt", "a"}),
              HasSubstr("no chat template"));
}

TEST_F(ChatCommand, ConvertKeepsTheTemplate) {
  put("v.json", R"({"messages": [{"role": "user", "content": "a"}]})");
  const std::string rendered = output_of({"template", "chat", "--variables", "v.json"});
  output_of({"convert", "chat", "again"});
  EXPECT_EQ(output_of({"template", "again", "--variables", "v.json"}), rendered);
  EXPECT_NE(rendered, "\n");
}

TEST_F(ChatCommand, GenerateGivesOneAnswer) {
  const std::vector<std::string> ask = {"generate", "chat",          "--chat", "--system",
                                        "be good",  "--prompt",      "one",    "-n",
                                        "12",       "--temperature", "1"};
  const json chat = document_of(talk({"--json", "--system", "be good"}), "one\n");
  EXPECT_EQ(json_of(ask)["ids"], chat["answers"][0]["ids"]);
  EXPECT_EQ(output_of(ask), chat["answers"][0]["text"].get<std::string>() + "\n");
  EXPECT_THAT(failure_of(2, {"generate", "chat", "--chat"}), HasSubstr("--prompt"));
  EXPECT_THAT(failure_of(2, {"generate", "chat", "--system", "x", "--prompt", "a"}),
              HasSubstr("--chat"));
}

TEST_F(ChatCommand, CtrlCEndsTheAnswerAndNotTheProgram) {
  Conditions conditions;
  conditions.input = "/save started\nHello\n/exit\n";
  conditions.after_file = "started";
  conditions.signal_after = 1;
  const Finished finished =
      run({"chat", "chat", "-n", "100000000", "--temperature", "1", "--repetition-penalty", "1.1",
           "--session", "kept", "--stop", "never to be seen"},
          conditions);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.signal, 0);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "kept"));
}

// -- generate

const std::vector<std::pair<int, int>> kAbc = {
    {'x', 'a'}, {'a', 'b'}, {'b', 'c'}, {'c', kChatEnd}, {kChatEnd, 'd'}, {'d', 260}, {260, 'e'}};

TEST_F(ChatCommand, TextsEndWhereAnyFileSays) {
  put_chain("chain", kAbc);
  const std::vector<std::string> ask = {"generate", "chain", "--prompt", "x", "-n", "7"};
  const auto end_of = [&] {
    const json result = json_of(ask);
    return std::pair(result["text"].get<std::string>(), result["end"].get<std::string>());
  };
  using Ended = std::pair<std::string, std::string>;
  // A special token stands for nothing, and neither does one of the padded part.
  EXPECT_EQ(end_of(), Ended("abcde", "length"));
  put("chain/generation_config.json", R"({"eos_token_id": [258, 257]})");
  EXPECT_EQ(end_of(), Ended("abc", "end_token"));
  put("chain/generation_config.json", R"({"eos_token_id": 260})");
  EXPECT_EQ(end_of(), Ended("abcd", "end_token"));
  put("chain/generation_config.json", "{}");
  put("chain/tokenizer_config.json", R"({"eos_token": "<|end|>"})");
  EXPECT_EQ(end_of(), Ended("abc", "end_token"));
}

TEST_F(ChatCommand, StopStringsAreTakenAsTheyStand) {
  put_chain("chain", {{'x', 'a'},
                      {'a', '['},
                      {'[', ','},
                      {',', ']'},
                      {']', kChatEnd},
                      {kChatEnd, '{'},
                      {'{', '"'},
                      {'"', ' '},
                      {' ', '|'}});
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[,]", "a"},           {",", "a["},   {"<|end|>", "a[,]"}, {"]<|end|>{", "a[,"},
      {"<|end|>{\"", "a[,]"}, {"{", "a[,]"}, {"\" |", "a[,]{"},   {"{\"", "a[,]"}};
  for (const auto& [stop, text] : cases) {
    const json result = json_of({"generate", "chain", "--prompt", "x", "-n", "9", "--stop", stop});
    EXPECT_EQ(result["text"], text) << stop;
    EXPECT_EQ(result["end"], "stop_string") << stop;
  }
  EXPECT_THAT(failure_of(2, {"generate", "chain", "--prompt", "x", "--stop", ""}),
              HasSubstr("stop"));
}

// A character of three bytes, cut by the end of a call after each of them.
TEST_F(ChatCommand, ACharacterThatACallCutsIsFinishedByTheNext) {
  put_chain("chain", {{'x', 0xE4}, {0xE4, 0xBD}, {0xBD, 0xA0}, {0xA0, 'y'}});
  for (const char* tokens : {"1", "2"}) {
    std::filesystem::remove(folder_ / "kept");
    std::string text =
        json_of({"generate", "chain", "--prompt", "x", "-n", tokens, "--session", "kept"})["text"];
    EXPECT_EQ(text, "");
    text += json_of({"generate", "chain", "-n", "3", "--session", "kept"})["text"];
    EXPECT_THAT(text, testing::StartsWith("你"));
  }
  EXPECT_EQ(json_of({"generate", "chain", "--prompt", "x", "-n", "4"})["text"], "你y");
}

TEST_F(ChatCommand, LaterPromptsOfASessionReadSpecialTokens) {
  put_chain("chain", kAbc);
  json_of({"generate", "chain", "--prompt", "x", "-n", "0", "--session", "kept"});
  EXPECT_EQ(json_of({"generate", "chain", "--prompt", "<|end|>x", "-n", "0", "--session",
                     "kept"})["prompt_tokens"],
            2);
}

TEST_F(ChatCommand, PromptsFromStandardInput) {
  put_chain("chain", kAbc);
  Conditions conditions;
  conditions.input = "x";
  for (const char* option : {"--prompt", "--prompt-file"}) {
    const Finished finished = run({"generate", "chain", option, "-", "-n", "3"}, conditions);
    EXPECT_EQ(finished.out, "xabc\n") << finished.err;
  }
  EXPECT_EQ(run({"generate", "chain", "--prompt", "-", "-n", "3", "--no-echo"}, conditions).out,
            "abc\n");
  EXPECT_THAT(failure_of(2, {"generate", "chain", "--prompt", "a", "--prompt-file", "b"}),
              HasSubstr("one of them"));
}

TEST_F(ChatCommand, ABarePromptThatEndsAtOnceSaysSo) {
  put_chain("chain", {{'x', kChatTextEnd}});
  const Finished finished = run({"generate", "chain", "--prompt", "x"});
  EXPECT_EQ(finished.code, 0);
  EXPECT_EQ(finished.out, "x\n");
  EXPECT_THAT(finished.err, HasSubstr("--chat"));
}

TEST_F(ChatCommand, PrecisionIsThatOfTheFileAndSaid) {
  EXPECT_EQ(json_of({"generate", "chat", "--prompt", "x", "-n", "1"})["precision"], "f32");
  EXPECT_EQ(
      json_of({"generate", "chat", "--prompt", "x", "-n", "1", "--precision", "bf16"})["precision"],
      "bf16");
  EXPECT_THAT(run({"generate", "chat", "--prompt", "x", "-n", "1", "--stats"}).err,
              HasSubstr("precision f32"));
  EXPECT_EQ(json_of({"eval", "chat", "--data", "text.txt"})["precision"], "f32");
}

TEST_F(ChatCommand, MissingFilesAreNoticedBeforeAnythingIsLoaded) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"generate", "nowhere", "--prompt", "x", "--draft", "nodraft"},
           {"generate", "nowhere", "--prompt-file", "noprompt"}}) {
    const Finished finished = run(arguments);
    EXPECT_NE(finished.code, 0);
    EXPECT_THAT(finished.err, testing::AnyOf(HasSubstr("nodraft"), HasSubstr("noprompt")));
  }
}

TEST_F(ChatCommand, NumbersOutOfRangeAreRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--seed", "-1"},
      {"--seed", "18446744073709551616"},
      {"--seed", "1.5"},
      {"--seed", "x"},
      {"--top-k", "-1"},
      {"--top-k", "1e3"},
      {"--top-p", "0"},
      {"--top-p", "1.5"},
      {"--top-p", "nan"},
      {"--min-p", "-1"},
      {"--min-p", "2"},
      {"--temperature", "-0.5"},
      {"--temperature", "inf"},
      {"--repetition-penalty", "0"},
      {"-n", "-1"}};
  for (const auto& [option, value] : cases) {
    EXPECT_THAT(failure_of(2, {"generate", "x", "--prompt", "a", option, value}), HasSubstr(value))
        << option;
  }
}

TEST_F(ChatCommand, FullAndClosedOutputIsAnErrorAndTheSessionIsKept) {
  for (const char* output : {"/dev/full", "closed"}) {
    std::filesystem::remove(folder_ / "kept");
    Conditions conditions;
    conditions.output = output;
    const Finished finished =
        run({"generate", "chat", "--prompt", "x", "-n", "20", "--session", "kept"}, conditions);
    EXPECT_EQ(finished.code, 1) << output;
    EXPECT_THAT(finished.err, HasSubstr("standard output")) << output;
    EXPECT_GT(
        json_of({"generate", "chat", "--prompt", "y", "-n", "1", "--session", "kept"})["context"],
        2);
    conditions.input = "Hello\n";
    EXPECT_EQ(run(talk({"--session", "talk"}), conditions).code, 1) << output;
    EXPECT_EQ(run({"list"}, conditions).code, 1) << output;
  }
}

TEST_F(ChatCommand, WhoStopsReadingEndsTheWorkAndThatIsNoError) {
  Conditions conditions;
  conditions.output = "unread";
  const Finished finished =
      run({"generate", "chat", "--prompt", "x", "-n", "100000000"}, conditions);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.err, "");
}

TEST_F(ChatCommand, EvalCountsBytesThatWerePredicted) {
  // No weights but zeros: all tokens are equally likely, log2(264) bits each, a byte a token.
  put_chain("flat", {});
  put("two.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"abc\"}\n");
  const json score = json_of({"eval", "flat", "--data", "two.jsonl"});
  EXPECT_EQ(score["tokens"], 3);
  EXPECT_EQ(score["bytes"], 3);
  EXPECT_NEAR(score["bits_per_byte"], std::log2(264.0), 1e-5);
  put("one.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
  EXPECT_THAT(failure_of(1, {"eval", "flat", "--data", "one.jsonl"}), HasSubstr("predict"));
  EXPECT_THAT(failure_of(2, {"eval", "flat", "--data", "two.jsonl", "--window", "100000000000"}),
              HasSubstr("--window"));
}

TEST_F(ChatCommand, DraftersOfTheSameVocabularyAreAccepted) {
  put_chain("chain", kAbc);
  put_chain("draft", kAbc);
  const std::vector<std::string> ask = {"generate", "chain", "--prompt", "x",
                                        "-n",       "7",     "--draft",  "draft"};
  EXPECT_EQ(json_of(ask)["text"], "abcde");
  // Other words about the same tokens.
  put("draft/tokenizer_config.json", R"({"bos_token": "<|start|>", "model_max_length": 99})");
  json tokenizer = json::parse(read_file(folder_ / "draft" / "tokenizer.json"));
  tokenizer["added_tokens"][0]["lstrip"] = true;
  put("draft/tokenizer.json", tokenizer.dump());
  EXPECT_EQ(json_of(ask)["text"], "abcde");
  // Another number of padded ids, and added tokens that the other does not have.
  tokenizer["added_tokens"].push_back({{"id", 259}, {"content", "<|more|>"}, {"special", true}});
  put("draft/tokenizer.json", tokenizer.dump());
  EXPECT_EQ(json_of(ask)["text"], "abcde");
  // Other text.
  std::swap(tokenizer["model"]["vocab"]["a"], tokenizer["model"]["vocab"]["b"]);
  put("draft/tokenizer.json", tokenizer.dump());
  EXPECT_THAT(failure_of(1, ask), HasSubstr("token 97 stands for other text"));
}

}  // namespace
}  // namespace pronghorn
