// Values of options reach them as they were written: with brackets, commas, leading dashes or
// nothing in them, before and after the arguments that have no option.
#include <gmock/gmock.h>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_cli::CliTest;

class ArgumentsTest : public CliTest {
 protected:
  // A model that has seen nothing but this text.
  void train_on(const std::string& piece, const std::string& steps = "1") {
    std::string text;
    while (text.size() < 20000) text += piece;
    put("pieces.txt", text);
    output_of({"train", "llama.json", "--data", "pieces.txt", "--out", "run", "--steps", steps});
  }
};

TEST_F(ArgumentsTest, TextsAreTakenAsTheyAre) {
  train_on("abc ");
  for (const char* prompt : {"[a,b]", "[END]", "--no-such=3x", "-5 degrees", "- item", "--", "a,b",
                             "{}", "%%", "\"quoted\"", "a b", "[", "]", "=", "\\n"}) {
    EXPECT_EQ(output_of({"generate", "run", "-n", "0", "--prompt", prompt}),
              std::string(prompt) + "\n")
        << prompt;
    EXPECT_EQ(output_of({"generate", "run", "-n", "0", std::string("--prompt=") + prompt}),
              std::string(prompt) + "\n")
        << prompt;
  }
  // What is an option itself may be meant as one.
  EXPECT_THAT(failure_of(2, {"generate", "run", "--prompt", "--stop", "x"}),
              AllOf(HasSubstr("--prompt"), HasSubstr("--prompt=--stop")));
  EXPECT_EQ(output_of({"generate", "run", "-n", "0", "--prompt=--stop"}), "--stop\n");
  EXPECT_THAT(failure_of(2, {"generate", "run", "--prompt"}), HasSubstr("needs a value"));
  // An empty text is a text.
  EXPECT_THAT(failure_of(1, {"generate", "run", "--prompt", ""}), HasSubstr("no text"));
}

TEST_F(ArgumentsTest, StopTextsAreNotSplit) {
  train_on("[a,b]", "60");
  const std::string text =
      json_of({"generate", "run", "--prompt", "a,b]", "-n", "60"})["text"].get<std::string>();
  for (const char* stop : {"[a,b]", ",b]", "b][", "]["}) {
    const size_t at = text.find(stop);
    ASSERT_NE(at, std::string::npos) << stop << " in " << text;
    const nlohmann::json result = json_of(
        {"generate", "--stop", stop, "--stop", "[never],", "run", "--prompt", "a,b]", "-n", "60"});
    EXPECT_EQ(result["text"], text.substr(0, at)) << stop;
    EXPECT_EQ(result["end"], "stop_string");
  }
}

TEST_F(ArgumentsTest, OptionsMayStandBeforeTheModel) {
  train_on("abc ");
  const std::string name = "[odd], name.txt";
  put(name, text());
  put("-dash.txt", text());
  const nlohmann::json expected = json_of({"eval", "run", "--data", name});
  EXPECT_EQ(json_of({"eval", "--data", name, "run"}), expected);
  EXPECT_EQ(json_of({"eval", "--data", name, "--window", "32", "run"}), expected);
  EXPECT_EQ(json_of({"eval", "--data=" + name, "run"}), expected);
  EXPECT_EQ(nlohmann::json::parse(output_of({"eval", "--json", "--data", name, "--", "run"})),
            expected);
  EXPECT_EQ(json_of({"eval", "run", "--data=-dash.txt"}), expected);
  // A list may be given at once or one by one.
  const nlohmann::json twice = json_of({"eval", "run", "--data", name, "text.txt"});
  EXPECT_EQ(twice["bytes"], 2 * expected["bytes"].get<int64_t>());
  EXPECT_EQ(json_of({"eval", "--data", name, "--data", "text.txt", "run"}), twice);
  EXPECT_EQ(json_of({"eval", "--data", name, "text.txt", "run"}), twice);

  const nlohmann::json inspected = json_of({"inspect", "--contexts", "10,100", "run"});
  ASSERT_EQ(inspected["contexts"].size(), 2u);
  EXPECT_EQ(json_of({"inspect", "--contexts", "10", "--contexts", "100", "run"}), inspected);
  output_of({"train", "--set", "window=16", "llama.json", "--data", "pieces.txt", "--out", "two",
             "--steps", "1"});
  output_of({"logits", "--tokens", "1 2", "--out", "[a,b].npy", "run"});
  EXPECT_TRUE(std::filesystem::exists(folder_ / "[a,b].npy"));
}

TEST_F(ArgumentsTest, ListsThatLeaveNothingSaySo) {
  EXPECT_THAT(failure_of(2, {"eval", "--data", "text.txt"}), HasSubstr("model is required"));
  EXPECT_THAT(failure_of(2, {"compare", "--out", "x", "--time", "1s", "--data", "text.txt",
                             "tiny.json", "llama.json"}),
              AllOf(HasSubstr("--data"), HasSubstr("after --")));
}

TEST_F(ArgumentsTest, NumbersAreNumbers) {
  for (const char* value : {"", "x", "-1", "1.5", "99999999999999999999"}) {
    EXPECT_THAT(failure_of(2, {"train", "tiny.json", "--data", "text.txt", "--out", "x", "--steps",
                               "1", "--seed", value}),
                HasSubstr("--seed"))
        << value;
  }
  for (const char* option : {"--task-length", "--task-items", "--task-questions",
                             "--task-haystacks", "--task-vocab", "--task-curriculum"}) {
    for (const char* value : {"", "x", "-1", "99999999999999999999"}) {
      EXPECT_THAT(failure_of(2, {"train", "tiny.json", "--task", "mqar", "--out", "x", "--steps",
                                 "1", option, value}),
                  HasSubstr(option))
          << value;
    }
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x"));
}

TEST_F(ArgumentsTest, CountsMayBeInThousands) {
  // 256 tokens a step.
  const auto steps_of = [&](const std::string& option, const std::string& value) {
    const auto result = json_of({"train", "tiny.json", "--data", "text.txt", "--out",
                                 "run" + option + value, option, value});
    return result["steps"].get<int64_t>();
  };
  EXPECT_EQ(steps_of("--tokens", "1k"), 4);
  EXPECT_EQ(steps_of("--tokens", "1.5K"), 6);
  EXPECT_EQ(steps_of("--tokens", "0.001M"), 4);
  EXPECT_EQ(steps_of("--steps", "0.003k"), 3);
  for (const char* count : {"k", "1.k", ".5k", "1.0005k", "1kk", "1 k", "1e3", "2Q", "-1k", "0k",
                            "0x1k", "10000000T", "k1", "1.-5k", "1..5k"}) {
    EXPECT_THAT(failure_of(2, {"train", "tiny.json", "--data", "text.txt", "--out", "x",
                               std::string("--tokens=") + count}),
                AllOf(HasSubstr("--tokens"), HasSubstr("such as")))
        << count;
  }
  const auto contexts = json_of({"inspect", "tiny.json", "--contexts", "1k,2k"})["contexts"];
  EXPECT_EQ(contexts, json_of({"inspect", "tiny.json", "--contexts", "1000,2000"})["contexts"]);
  EXPECT_THAT(failure_of(2, {"inspect", "tiny.json", "--contexts", "2G"}), HasSubstr("--contexts"));
  const auto shorter = json_of({"train", "tiny.json", "--data", "text.txt", "--out", "set",
                                "--steps", "1", "--set", "batch_tokens=0.512k"});
  EXPECT_EQ(shorter["tokens"], 512);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x"));
}

}  // namespace
}  // namespace pronghorn
