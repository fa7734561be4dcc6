// Diffusion models from end to end: trained, judged by a bound, compared, and writing.
#include <gmock/gmock.h>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_cli::CliTest;

class DiffusionCliTest : public CliTest {
 protected:
  DiffusionCliTest() {
    nlohmann::json whole = config("a m");
    whole["diffusion"] = nlohmann::json::object();
    put("whole.json", whole.dump());
    nlohmann::json blocks = config("a");
    blocks["diffusion"] = {{"block", 8}};
    put("blocks.json", blocks.dump());
  }
};

TEST_F(DiffusionCliTest, TrainsJudgesAndWrites) {
  for (const std::string name : {"whole", "blocks"}) {
    SCOPED_TRACE(name);
    const auto trained =
        json_of({"train", name + ".json", "--data", "text.txt", "--out", name, "--steps", "5"});
    EXPECT_EQ(trained["bits_are_bound"], true);
    const auto eval = json_of({"eval", name, "--data", "text.txt", "--samples", "2"});
    EXPECT_EQ(eval["bound_samples"], 2);
    EXPECT_EQ(eval["bytes"], text().size() - 1);
    EXPECT_THAT(output_of({"eval", name, "--data", "text.txt"}), HasSubstr("upper bounds"));
    const std::vector<std::string> generate = {"generate", name, "--prompt", "line 5", "-n", "24"};
    const auto plain = json_of(generate);
    EXPECT_EQ(plain["tokens"], 24);
    auto fewer = generate;
    fewer.insert(fewer.end(), {"--steps", "2", "--block", "8", "--remask", "margin"});
    EXPECT_LT(json_of(fewer)["steps"], plain["steps"]);
    auto sure = generate;
    sure.insert(sure.end(), {"--threshold", "0.00001"});
    EXPECT_LT(json_of(sure)["steps"], plain["steps"]);
    EXPECT_EQ(output_of(generate), "line 5" + plain["text"].get<std::string>() + "\n");
    EXPECT_EQ(json_of({"logits", name, "--tokens", "1 2 256", "--out", "l.npy"})["shape"],
              (std::vector<int>{3, 257}));
  }
  EXPECT_THAT(
      failure_of(2, {"generate", "whole", "--prompt", "a", "--no-echo", "--draft", "ngram"}),
      HasSubstr("several tokens a step by itself"));
  EXPECT_THAT(failure_of(1, {"eval", "whole", "--data", "text.txt", "--stream", "100"}),
              HasSubstr("in windows"));
  EXPECT_THAT(failure_of(1, {"bench", "whole", "--prompt", "9", "--generate", "2"}),
              AllOf(HasSubstr("whole: is a diffusion model"), HasSubstr("bench --train")));
  output_of({"train", "tiny.json", "--data", "text.txt", "--out", "causal", "--steps", "1"});
  // Before the prompt is shown.
  const auto refused = run({"generate", "causal", "--prompt", "a", "--steps", "3"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_EQ(refused.out, "");
  EXPECT_THAT(refused.err, HasSubstr("for diffusion models"));
}

TEST_F(DiffusionCliTest, ComparesByABound) {
  const auto run = json_of({"compare", "whole.json", "tiny.json", "--data", "text.txt", "--out",
                            "out", "--tokens", "2560", "--vocab", "0", "--contexts", "32"});
  ASSERT_EQ(run["architectures"].size(), 2u);
  EXPECT_TRUE(run["architectures"][0]["failure"].is_null()) << run["architectures"][0]["failure"];
  EXPECT_TRUE(run["architectures"][0]["bound_samples"].is_number());
  EXPECT_TRUE(run["architectures"][1]["bound_samples"].is_null());
  EXPECT_THAT(output_of({"compare", "whole.json", "tiny.json", "--data", "text.txt", "--out", "out",
                         "--tokens", "2560", "--vocab", "0", "--contexts", "32"}),
              HasSubstr("≤ "));
}

TEST_F(DiffusionCliTest, AdaptsAModelThatPredictsTheNextToken) {
  output_of({"train", "llama.json", "--data", "text.txt", "--out", "causal", "--steps", "3"});
  // Bytes fill the vocabulary: some token has to do.
  EXPECT_THAT(failure_of(2, {"train", "causal", "--masked-diffusion", "--data", "text.txt", "--out",
                             "adapted", "--steps", "2"}),
              AllOf(HasSubstr("--mask-token"), HasSubstr("whole vocabulary")));
  const auto trained = json_of({"train", "causal", "--masked-diffusion", "--mask-token", "0",
                                "--data", "text.txt", "--out", "adapted", "--steps", "2"});
  EXPECT_EQ(trained["bits_are_bound"], true);
  EXPECT_TRUE(trained["start_held_out_bits_per_byte"].is_number());
  EXPECT_EQ(json_of({"generate", "adapted", "--prompt", "line", "-n", "9"})["tokens"], 9);
  EXPECT_THAT(failure_of(2, {"train", "tiny.json", "--masked-diffusion", "--data", "text.txt",
                             "--out", "no", "--steps", "2"}),
              AllOf(HasSubstr("--masked-diffusion: changes a trained model"),
                    HasSubstr("the key \"diffusion\"")));
}

}  // namespace
}  // namespace pronghorn
