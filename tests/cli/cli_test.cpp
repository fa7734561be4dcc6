// The command line's contract: exit codes, one line of error, one JSON document, round trips.
#include <gmock/gmock.h>

#include <cstring>
#include <map>
#include <numbers>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_cli::CliTest;
using testing_cli::Conditions;
using testing_cli::Finished;

std::vector<std::string> train_of(const std::string& config, const std::string& data,
                                  const std::string& out, const std::string& steps = "12") {
  return {"train", config, "--data", data, "--out", out, "--steps", steps};
}

TEST_F(CliTest, WrongUsageIsTwo) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "no command"},
      {{"trian"}, "did you mean 'train'"},
      {{"xyzzy"}, "choose from list, inspect, train"},
      {{"--nope"}, "--nope"},
      {{"train"}, "config is required"},
      {{"train", "tiny.json", "--out", "x", "--data", "text.txt"}, "--time 60s"},
      {{"train", "tiny.json", "--out", "x", "--steps", "3"}, "--data: missing"},
      {{"train", "tiny.json", "--out", "x", "--steps", "3", "--tokens", "5"}, "more than one"},
      {{"train", "tiny.json", "--out", "x", "--steps", "3", "--nope"}, "--nope"},
      {{"train", "tiny.json", "--out", "x", "--data", "text.txt", "--steps", "3", "--lora", "2"},
       "--lora: changes a trained model"},
      {{"train", "tiny.json", "--out", "x", "--steps", "3", "--task", "mqar", "--data", "text.txt"},
       "--data: given to a task that needs none"},
      {{"train", "tiny.json", "--out", "x", "--steps", "0"}, "--steps: '0' is not a whole number"},
      {{"train", "tiny.json", "--out", "x", "--steps", "1e3"}, "'1e3' is not a whole number"},
      {{"train", "tiny.json", "--out", "x", "--steps", "99999999999999999999"}, "--steps"},
      {{"train", "tiny.json", "--out", "x", "--set", "nothing", "--steps", "1"}, "KEY=VALUE"},
      {{"eval", "x"}, "--data or --task"},
      {{"generate", "x", "--temperature", "-1"}, "--temperature: '-1'"},
      {{"generate", "x", "--prompt", "a", "--precision", "f16"}, "--precision"},
      {{"logits", "x", "--tokens", "1 b", "--out", "y"}, "'b' is not a token id"},
      {{"bench"}, "needs a model"},
      {{"generate", "x", "--prompt", "a", "--adapter", ""}, "--adapter: is empty"},
      {{"chat", "x", "--adapter", ""}, "--adapter: is empty"},
      {{"eval", "x", "--data", "text.txt", "--adapter", ""}, "--adapter: is empty"},
      {{"serve", "x", "--adapter", ""}, "--adapter: is empty"},
      {{"list", "--threads", "0"}, "--threads"}};
  for (const auto& [arguments, expected] : cases) {
    EXPECT_THAT(failure_of(2, arguments), HasSubstr(expected));
  }
  for (const char* time : {"nonsense", "0", "-5s", "5 parsecs", "inf", "nan", ""}) {
    EXPECT_THAT(
        failure_of(2, {"train", "tiny.json", "--data", "text.txt", "--out", "x", "--time", time}),
        testing::AnyOf(HasSubstr("--time"), HasSubstr("budget")))
        << time;
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x"));
}

TEST_F(CliTest, InspectShowsHowSurprisingATextWas) {
  auto memory = config("t");
  memory["blocks"] = {{"t", {{"mixer", {{"type", "titans_mac"}, {"heads", 2}, {"segment", 16}}}}}};
  put("memory.json", memory.dump());
  output_of({"train", "memory.json", "--data", "text.txt", "--out", "run", "--steps", "2"});
  put("words.txt", "far and wide <b>the</b> plain, far and wide");
  const auto json = json_of({"inspect", "run", "--text", "words.txt", "--html", "page.html"});
  ASSERT_EQ(json["tokens"], 43);
  ASSERT_EQ(json["surprise"].size(), 43u);
  for (const auto& token : json["surprise"]) {
    EXPECT_EQ(token["memories"].size(), 1u);
    EXPECT_GT(token["surprise"].get<double>(), 0);
  }
  EXPECT_THAT(read_file(folder_ / "page.html"), HasSubstr("surprise "));
  EXPECT_THAT(output_of({"inspect", "run", "--text", "words.txt"}), HasSubstr("2 heads of 16"));
  // Rows before the sequence are of no token.
  memory["prefix_tokens"] = 20;
  put("prefix.json", memory.dump());
  output_of({"train", "prefix.json", "--data", "text.txt", "--out", "run20", "--steps", "2"});
  const auto behind = json_of({"inspect", "run20", "--text", "words.txt"});
  ASSERT_EQ(behind["surprise"].size(), 43u);
  for (const auto& token : behind["surprise"]) EXPECT_EQ(token["memories"].size(), 1u);
  EXPECT_THAT(failure_of(1, {"train", "prefix.json", "--data", "text.txt", "--out", "heads",
                             "--steps", "1", "--mtp", "1"}),
              HasSubstr("prefix_tokens: 20 beside heads for multi-token prediction"));
  output_of({"train", "tiny.json", "--data", "text.txt", "--out", "plain", "--steps", "1"});
  EXPECT_THAT(failure_of(1, {"inspect", "plain", "--text", "words.txt"}), HasSubstr("no memory"));
}

TEST_F(CliTest, EvalTellsWhatSpansKept) {
  auto spans = config("a(a(m)a)a");
  spans["subsample"] = {{"keep", 0.5}, {"score_norm", true}};
  put("spans.json", spans.dump());
  output_of({"train", "spans.json", "--data", "text.txt", "--out", "run", "--steps", "3"});
  const auto shares = json_of({"eval", "run", "--data", "text.txt"})["kept_shares"];
  ASSERT_EQ(shares.size(), 2u);
  EXPECT_LE(shares[0], 1);
  EXPECT_GT(shares[0], shares[1]);  // both of all tokens
  EXPECT_THAT(output_of({"eval", "run", "--data", "text.txt"}), HasSubstr("kept "));
}

TEST_F(CliTest, HelpIsZero) {
  EXPECT_THAT(output_of({"--help"}), AllOf(HasSubstr("train"), HasSubstr("compare")));
  EXPECT_THAT(output_of({"--version"}), HasSubstr("0."));
  for (const char* command :
       {"list", "inspect", "train", "generate", "eval", "compare", "bench", "logits", "tokenize"}) {
    EXPECT_THAT(output_of({command, "--help"}), HasSubstr("--json")) << command;
  }
}

TEST_F(CliTest, BadInputIsOneLineThatNamesIt) {
  put("binary.txt", std::string("text\xff\xfe\x00\x01", 8));
  put("empty.txt", "");
  put("short.txt", "a\n");
  put("broken.json", "{\"model_type\": \"pron");
  auto bad = config("2a");
  bad["hidden_sise"] = 3;
  put("unknown.json", bad.dump());
  bad = config("2[a");
  put("pattern.json", bad.dump());
  bad = config("a");
  bad["blocks"]["a"]["mixer"]["heads"] = 5;
  put("heads.json", bad.dump());
  bad = config("a");
  bad["train"]["windw"] = 5;
  put("setting.json", bad.dump());
  bad = config("a");
  bad["blocks"]["a"]["mixer"]["type"] = "atention";
  put("mixer.json", bad.dump());
  const std::vector<std::tuple<std::string, std::string, std::string>> cases = {
      {"tiny.json", "binary.txt", "binary.txt: invalid UTF-8 at byte 4"},
      {"tiny.json", "empty.txt", "empty.txt: the file is empty"},
      {"tiny.json", "missing.txt", "missing.txt: no such file"},
      {"tiny.json", "short.txt", "fewer than one window of 32"},
      {"missing.json", "text.txt", "missing.json: cannot open"},
      {"broken.json", "text.txt", "broken.json: not JSON at line"},
      {"unknown.json", "text.txt", "unknown.json: unknown key 'hidden_sise'"},
      {"pattern.json", "text.txt", "pattern.json: pattern: "},
      {"heads.json", "text.txt", "heads.json: blocks.a.mixer.heads: 5 does not divide"},
      {"setting.json", "text.txt", "setting.json: train: unknown key 'windw'"},
      {"mixer.json", "text.txt", "mixer.json: blocks.a.mixer.type"}};
  for (const auto& [config_file, data, expected] : cases) {
    EXPECT_THAT(failure_of(1, train_of(config_file, data, "x")), HasSubstr(expected));
  }
  EXPECT_THAT(failure_of(1, {"eval", "missing", "--data", "text.txt"}), HasSubstr("missing"));
  EXPECT_THAT(failure_of(1, {"inspect", "missing"}), HasSubstr("missing"));
  EXPECT_THAT(failure_of(1, {"generate", "missing", "--prompt", "a"}), HasSubstr("missing"));
  EXPECT_THAT(failure_of(1, {"eval", "missing", "--task", "mqar"}), HasSubstr("missing"));
  EXPECT_THAT(
      failure_of(1, {"train", "tiny.json", "--task", "nothing", "--out", "x", "--steps", "1"}),
      HasSubstr("unknown task 'nothing'"));
}

TEST_F(CliTest, CorruptCheckpoints) {
  output_of(train_of("tiny.json", "text.txt", "run", "2"));
  const auto weights = folder_ / "run/model.safetensors";
  const std::string good = read_file(weights);
  for (const size_t length :
       {size_t{0}, size_t{7}, size_t{100}, good.size() / 2, good.size() - 1}) {
    write_file(weights, good.substr(0, length));
    EXPECT_THAT(failure_of(1, {"generate", "run", "--prompt", "a"}), HasSubstr("model.safetensors"))
        << length;
  }
  write_file(weights, good);
  output_of({"generate", "run", "--prompt", "a", "-n", "1"});
  put("run/config.json", "{}");
  EXPECT_THAT(failure_of(1, {"eval", "run", "--data", "text.txt"}), HasSubstr("config.json"));
}

// A server says at its start what it could not load later.
TEST_F(CliTest, OnlyModelsAreServed) {
  put("notes.txt", "no model at all");
  put("head.gguf", "GGUF");
  output_of(train_of("tiny.json", "text.txt", "run", "2"));
  const std::string weights = read_file(folder_ / "run/model.safetensors");
  put("run/model.safetensors", weights.substr(0, weights.size() / 2));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"notes.txt", "notes.txt: not JSON"},
      {"head.gguf", "head.gguf"},
      {"tiny.json", "tiny.json"},  // a configuration without weights
      {"run", "model.safetensors"}};
  for (const auto& [path, expected] : cases) {
    EXPECT_THAT(failure_of(1, {"serve", path, "--port", "0"}), HasSubstr(expected));
    EXPECT_THAT(failure_of(1, {"serve", path, "--port", "0", "--load-on-demand"}),
                HasSubstr(expected));
  }
}

TEST_F(CliTest, AnExistingRunIsLeftAlone) {
  output_of(train_of("tiny.json", "text.txt", "run", "3"));
  const std::string state = read_file(folder_ / "run/training_state.safetensors");
  const std::string tokens = read_file(folder_ / "run/data/train.tokens");
  EXPECT_THAT(failure_of(1, train_of("tiny.json", "text.txt", "run", "3")), HasSubstr("--resume"));
  put("other.txt", "quite another text\n" + text());
  EXPECT_THAT(failure_of(1, train_of("tiny.json", "other.txt", "run", "3")), HasSubstr("--resume"));
  EXPECT_TRUE(read_file(folder_ / "run/training_state.safetensors") == state);
  EXPECT_TRUE(read_file(folder_ / "run/data/train.tokens") == tokens);
  auto resumed = train_of("tiny.json", "text.txt", "run", "2");
  resumed.push_back("--resume");
  EXPECT_THAT(failure_of(1, resumed), HasSubstr("budget.steps: 3 then, 2 now"));
  // A larger budget goes on.
  resumed = train_of("tiny.json", "text.txt", "run", "5");
  resumed.push_back("--resume");
  EXPECT_THAT(output_of(resumed), HasSubstr("5 steps"));
}

TEST_F(CliTest, AFullDiskKeepsTheEarlierState) {
  auto command = train_of("tiny.json", "text.txt", "run", "40");
  command.insert(command.end(), {"--checkpoint-every", "0.001s"});
  // The state and the weights do not fit, the small files do.
  output_of(train_of("tiny.json", "text.txt", "whole", "40"));
  const auto state = folder_ / "run/training_state.safetensors";
  const auto size = std::filesystem::file_size(folder_ / "whole/training_state.safetensors");
  Conditions full;
  full.file_bytes = size / 2;
  EXPECT_THAT(failure_of(1, command, full),
              AllOf(HasSubstr("training_state.safetensors"), HasSubstr("cannot write")));
  EXPECT_FALSE(std::filesystem::exists(state));
  // Now the disk fills in the middle: the log grows past the limit of the second attempt.
  Conditions stop;
  stop.signal_after = 0.3;
  stop.after_file = "run/training_state.safetensors";
  run(command, stop);
  ASSERT_TRUE(std::filesystem::exists(state));
  const std::string good = read_file(state);
  command.push_back("--resume");
  const Finished failed = run(command, full);
  if (good.size() > *full.file_bytes) {
    EXPECT_EQ(failed.code, 1) << failed.err;
  }
  EXPECT_TRUE(read_file(state) == good);
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "run")) {
    EXPECT_NE(entry.path().extension(), ".partial");
  }
  output_of(command);
  EXPECT_TRUE(read_file(folder_ / "run/model.safetensors") ==
              read_file(folder_ / "whole/model.safetensors"));
}

TEST_F(CliTest, InterruptedTrainingContinues) {
  output_of(train_of("tiny.json", "text.txt", "whole", "300"));
  auto command = train_of("tiny.json", "text.txt", "run", "300");
  Conditions stop;
  stop.signal_after = 0.4;
  stop.after_file = "run/training_state.safetensors";
  const Finished stopped = run(command, stop);
  command.push_back("--resume");
  if (stopped.code != 0) {  // on a very fast machine it may have ended
    EXPECT_EQ(stopped.code, 1) << stopped.err;
    EXPECT_THAT(stopped.err, AllOf(HasSubstr("interrupted at step"), HasSubstr("--resume")));
    output_of(command);
  }
  EXPECT_TRUE(read_file(folder_ / "run/model.safetensors") ==
              read_file(folder_ / "whole/model.safetensors"));
  EXPECT_EQ(json_of(command)["steps"], 300);  // already done: says so, changes nothing
}

TEST_F(CliTest, JsonIsOneDocumentWithTheKeysOfTheContract) {
  nlohmann::json trained;
  {
    auto command = train_of("tiny.json", "text.txt", "run");
    trained = json_of(command);
  }
  for (const char* key : {"steps", "tokens", "seconds", "tokens_per_second"}) {
    EXPECT_TRUE(trained[key].is_number()) << key;
  }
  const auto bench =
      json_of({"bench", "run", "--prompt", "40", "--generate", "8", "--repeat", "2"});
  for (const char* part : {"prefill", "decode"}) {
    EXPECT_EQ(bench[part]["tokens"], part[0] == 'p' ? 40 : 8);
    const auto& rate = bench[part]["tokens_per_second"];
    EXPECT_GT(rate["min"].get<double>(), 0);
    EXPECT_LE(rate["min"], rate["median"]);
    EXPECT_LE(rate["median"], rate["max"]);
  }
  EXPECT_TRUE(bench["load_seconds"].is_number());
  EXPECT_GT(bench["peak_rss_bytes"].get<int64_t>(), 1 << 20);
  EXPECT_GT(bench["threads"].get<int64_t>(), 0);
  EXPECT_TRUE(bench["backend"].is_string());
  EXPECT_EQ(json_of({"bench", "run", "--prompt", "9", "--generate", "2", "--repeat", "1",
                     "--threads", "2"})["threads"],
            2);
  const auto machine = json_of({"bench", "--machine"});
  for (const char* ceiling :
       {"f32_gflops", "bf16_gflops", "int8_gops", "read_gigabytes_per_second"}) {
    EXPECT_GT(machine[ceiling].get<double>(), 0) << ceiling;
  }
  EXPECT_TRUE(machine["fork_nanoseconds"].is_number());
  EXPECT_TRUE(machine["join_nanoseconds"].is_number());
  const auto profile = json_of({"bench", "run", "--profile", "--train", "--prompt", "40",
                                "--generate", "8", "--repeat", "1", "--set", "batch_tokens=256"});
  ASSERT_EQ(profile["profiles"].size(), 3u);
  for (const auto& part : profile["profiles"]) {
    double share = 0;
    for (const auto& row : part["rows"]) share += row["share"].get<double>();
    // Of a run so short, a pause between two clocks may be a good part; lab/profile_test.cpp is
    // strict.
    EXPECT_GT(share, 0.5) << part["what"];
    EXPECT_LE(share, 1.001) << part["what"];
  }
  EXPECT_GT(json_of({"bench", "tiny.json", "--train", "--repeat", "1", "--set",
                     "batch_tokens=256"})["training"]["tokens_per_second"]["median"]
                .get<double>(),
            0);

  const auto eval = json_of({"eval", "run", "--data", "text.txt"});
  EXPECT_EQ(eval["bytes"], text().size() - 1);  // nothing predicts the first
  EXPECT_TRUE(eval["bytes"].is_number_integer());
  EXPECT_TRUE(eval["tokens"].is_number_integer());
  const double nll = eval["nll"], tokens = eval["tokens"], bytes = eval["bytes"];
  EXPECT_NEAR(eval["perplexity"], std::exp(nll / tokens), 1e-9 * eval["perplexity"].get<double>());
  EXPECT_NEAR(eval["bits_per_byte"], nll / std::numbers::ln2 / bytes, 1e-9);

  // As one sequence, carried on part by part: the same as in one window.
  put("part.txt", text().substr(0, 3001));
  const auto whole = json_of({"eval", "run", "--data", "part.txt", "--window", "3000"});
  const auto stream = json_of({"eval", "run", "--data", "part.txt", "--stream", "3000"});
  double sum = 0;
  int64_t before = 0;
  for (const auto& part : stream["parts"]) {
    const int64_t read = part["tokens"];
    sum += part["loss"].get<double>() * static_cast<double>(read - before);
    before = read;
    EXPECT_GT(part["tokens_per_second"].get<double>(), 0);
    EXPECT_GT(part["state_bytes"], 0);
  }
  EXPECT_EQ(before, 3000);
  EXPECT_NEAR(sum, whole["nll"], 1e-4 * sum);
  EXPECT_THAT(failure_of(1, {"eval", "run", "--data", "part.txt", "--stream", "3001"}),
              HasSubstr("--stream"));

  const auto list = json_of({"list"});
  EXPECT_GE(list["mixers"].size(), 4u);
  // All at 8 heads and what follows from the width, not at the sizes of tests.
  std::map<std::string, double> per_token, per_sequence;
  for (const auto& mixer : list["mixers"]) {
    const auto name = mixer["name"].get<std::string>();
    per_token[name] = mixer["state_bytes_per_token"].get<double>();
    per_sequence[name] = mixer["state_bytes_per_sequence"].get<double>();
  }
  EXPECT_EQ(per_token["attention"], 4 * 2 * 512);      // keys and values
  EXPECT_EQ(per_token["mla"], 4 * (4 * 64 + 64 / 2));  // a latent vector, and the key's turned part
  EXPECT_GT(per_token["dsa"], per_token["mla"]);
  EXPECT_GT(per_token["nsa"], per_token["attention"]);
  EXPECT_GT(per_sequence["s4d"], 4 * 512 * 64);
  EXPECT_EQ(per_token["longformer"], per_token["attention"]);
  const auto inspect = json_of({"inspect", "run", "--contexts", "10,100"});
  EXPECT_EQ(inspect["contexts"].size(), 2u);
  EXPECT_EQ(inspect["pattern"], "am");
  EXPECT_EQ(inspect["parameters"], trained["parameters"]);
  const auto generated = json_of({"generate", "run", "--prompt", "line", "-n", "5"});
  EXPECT_EQ(generated["tokens"], 5);
  const auto task = json_of(
      {"eval", "run", "--task", "induction_heads", "--task-length", "16", "--examples", "8"});
  EXPECT_EQ(task["answers"], 8);
  EXPECT_GT(task["chance"], 0);
  EXPECT_EQ(json_of({"logits", "run", "--tokens", "1 2 3", "--out", "l.npy"})["shape"],
            (std::vector<int>{3, 256}));
  EXPECT_EQ(json_of({"tokenize", "run", "--file", "text.txt"})["tokens"].size(), text().size());
}

// The float32 values of a .npy file that `logits` wrote.
std::vector<float> npy_values(const std::string& bytes) {
  const auto header =
      static_cast<unsigned char>(bytes.at(8)) + 256u * static_cast<unsigned char>(bytes.at(9));
  std::vector<float> values((bytes.size() - 10 - header) / sizeof(float));
  std::memcpy(values.data(), bytes.data() + 10 + header, values.size() * sizeof(float));
  return values;
}

TEST_F(CliTest, EvalEqualsWhatTheLogitsSay) {
  // llama.json is saved in a published family's format, tiny.json in our own.
  for (const std::string config : {"tiny", "llama"}) {
    SCOPED_TRACE(config);
    output_of(train_of(config + ".json", "text.txt", config));
    const std::string sample = text().substr(0, 150);
    put("sample.txt", sample);
    constexpr size_t kWindow = 64;
    const auto eval =
        json_of({"eval", config, "--data", "sample.txt", "--window", std::to_string(kWindow)});
    double nll = 0;
    for (size_t begin = 0; begin + 1 < sample.size(); begin += kWindow) {
      const size_t count = std::min(kWindow, sample.size() - 1 - begin);
      std::string tokens;
      for (size_t t = 0; t < count; ++t) {
        tokens += fmt::format("{} ", static_cast<unsigned char>(sample[begin + t]));
      }
      output_of({"logits", config, "--tokens", tokens, "--out", "l.npy"});
      const std::vector<float> logits = npy_values(read_file(folder_ / "l.npy"));
      ASSERT_EQ(logits.size(), count * 256);
      for (size_t t = 0; t < count; ++t) {
        double sum = 0;
        for (size_t i = 0; i < 256; ++i) sum += std::exp(static_cast<double>(logits[t * 256 + i]));
        nll += std::log(sum) - logits[t * 256 + static_cast<unsigned char>(sample[begin + t + 1])];
      }
    }
    const double expected = nll / std::numbers::ln2 / static_cast<double>(sample.size() - 1);
    // Both are f32 forwards; the fused loss sums in another order.
    EXPECT_NEAR(eval["bits_per_byte"], expected, 1e-4);
    EXPECT_EQ(eval["tokens"], sample.size() - 1);
    EXPECT_GT(json_of({"eval", config, "--data", "text.txt"})["tokens"], 0);
  }
}

TEST_F(CliTest, ConvertMergesAnAdapter) {
  output_of(train_of("llama.json", "text.txt", "run"));
  output_of({"train", "run", "--data", "text.txt", "--out", "lora", "--steps", "3", "--lora", "2",
             "--set", "learning_rate=0.1", "--set", "batch_tokens=256", "--set", "window=32"});
  output_of({"convert", "run", "merged", "--adapter", "lora"});
  const auto logits = [&](std::vector<std::string> model) {
    model.insert(model.begin(), "logits");
    model.insert(model.end(), {"--tokens", "10 20 30 40", "--out", "l.npy"});
    output_of(model);
    return npy_values(read_file(folder_ / "l.npy"));
  };
  const std::vector<float> plain = logits({"run"}), merged = logits({"merged"});
  const std::vector<float> adapted = logits({"run", "--adapter", "lora"});
  ASSERT_EQ(merged.size(), adapted.size());
  float difference = 0, change = 0;
  for (size_t i = 0; i < merged.size(); ++i) {
    difference = std::max(difference, std::abs(merged[i] - adapted[i]));
    change = std::max(change, std::abs(merged[i] - plain[i]));
  }
  EXPECT_LT(difference, 1e-4f);
  EXPECT_GT(change, 0.01f);
  EXPECT_THAT(failure_of(1, {"convert", "run", "x", "--adapter", "nothing"}), HasSubstr("nothing"));
}

TEST_F(CliTest, ConvertWritesNoModelOverAnotherAndNoFilesThatItDoesNotKnow) {
  output_of(train_of("llama.json", "text.txt", "run", "1"));
  output_of({"convert", "run", "copy"});
  const std::string before = read_file(folder_ / "copy/model.safetensors");
  EXPECT_THAT(failure_of(1, {"convert", "run", "copy", "--type", "bf16"}),
              HasSubstr("copy: already holds"));
  EXPECT_TRUE(read_file(folder_ / "copy/model.safetensors") == before);
  for (const std::string out : {"model.pth", "model.safetensors", "model.BIN"}) {
    EXPECT_THAT(failure_of(2, {"convert", "run", out}), HasSubstr("name a directory")) << out;
    EXPECT_FALSE(std::filesystem::exists(folder_ / out)) << out;
  }
  EXPECT_THAT(failure_of(2, {"convert", "run", ""}), HasSubstr("OUT is empty"));
  EXPECT_THAT(failure_of(2, {"convert", "run", "run"}), HasSubstr("the same"));
  EXPECT_THAT(failure_of(1, {"convert", "nothing", "other"}), HasSubstr("nothing"));
  EXPECT_THAT(failure_of(2, {"convert", "run", "other", "--split", "2G"}), HasSubstr(".gguf"));
  EXPECT_THAT(failure_of(2, {"convert", "run", "m.gguf", "--split", ""}), HasSubstr("empty"));
  for (const std::string size : {"0", "2X", "G", "-1M", "1.2345k", "99999999999T"}) {
    EXPECT_THAT(failure_of(2, {"convert", "run", "m.gguf", "--split=" + size}),
                HasSubstr("--split"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "other"));
}

TEST_F(CliTest, LineariseMakesAnOrdinaryModel) {
  output_of(train_of("llama.json", "text.txt", "run", "20"));
  const nlohmann::json told = nlohmann::json::parse(output_of(
      {"linearise", "run", "--pattern", "l a", "--data", "text.txt", "-o", "linear", "--steps", "4",
       "--transfer-steps", "6", "--set", "batch_tokens=256", "--set", "window=32", "--json"}));
  EXPECT_EQ(told.at("layers"), nlohmann::json::array({0}));
  EXPECT_EQ(told.at("transfer_losses").size(), 1u);
  EXPECT_EQ(told.at("steps"), 4);
  EXPECT_THAT(output_of({"inspect", "linear"}), HasSubstr("linear_attention"));
  EXPECT_FALSE(output_of({"generate", "linear", "--prompt", "line", "-n", "5"}).empty());
  EXPECT_THAT(failure_of(1, {"linearise", "run", "--pattern", "l", "--data", "text.txt", "-o", "x",
                             "--steps", "1"}),
              HasSubstr("1 layers for a model of 2"));
  EXPECT_THAT(failure_of(1, {"linearise", "run", "--pattern", "2l", "--mixer", "nothing", "--data",
                             "text.txt", "-o", "x", "--steps", "1"}),
              HasSubstr("nothing"));
}

TEST_F(CliTest, ExtendMakesAModelOfLongerTexts) {
  output_of(train_of("llama.json", "text.txt", "run", "20"));
  const auto extend = [](const std::string& out, std::vector<std::string> more) {
    std::vector<std::string> command = {"extend", "run",       "--data",  "text.txt",
                                        "-o",     out,         "--steps", "4",
                                        "--set",  "window=32", "--set",   "batch_tokens=256"};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  };
  auto command = extend("long", {"--context", "8192", "--json"});
  const nlohmann::json told = nlohmann::json::parse(output_of(command));
  EXPECT_EQ(told.at("context"), 8192);
  EXPECT_EQ(told.at("steps"), 4);
  for (const char* key : {"before_bits_per_byte", "scaled_bits_per_byte", "bits_per_byte"}) {
    EXPECT_GT(told.at(key).get<double>(), 0) << key;
  }
  EXPECT_THAT(output_of({"inspect", "long"}), HasSubstr("8192 tokens, by rotary positions"));
  EXPECT_FALSE(output_of({"generate", "long", "--prompt", "line", "-n", "5"}).empty());
  EXPECT_THAT(failure_of(1, extend("x", {"--context", "2"})), HasSubstr("no more"));
  auto bytes_in_pairs = train_of("llama.json", "text.txt", "pairs", "2");
  bytes_in_pairs.insert(bytes_in_pairs.end(), {"--vocab", "300"});
  output_of(bytes_in_pairs);
  output_of({"convert", "pairs", "run.gguf"});
  auto of_file = extend("x", {"--context", "8192"});
  of_file[1] = "run.gguf";
  EXPECT_THAT(failure_of(1, of_file),
              AllOf(HasSubstr("run.gguf: is a model in one file"), HasSubstr("pronghorn convert")));
  of_file[1] = "llama.json";
  EXPECT_THAT(failure_of(1, of_file), HasSubstr("is no checkpoint directory"));
  EXPECT_THAT(failure_of(1, {"train", "run.gguf", "--masked-diffusion", "--mask-token", "0",
                             "--data", "text.txt", "--out", "x", "--steps", "1"}),
              HasSubstr("pronghorn convert"));
  EXPECT_THAT(failure_of(2, extend("x", {"--context", "8192", "--scaling", "none"})),
              HasSubstr("--scaling"));
}

TEST_F(CliTest, GeneratesTheSameTextForTheSameSeed) {
  output_of(train_of("tiny.json", "text.txt", "run", "40"));
  const auto generate = [&](const std::string& seed, const std::string& threads) {
    return output_of({"generate", "run", "--prompt", "line 1", "-n", "40", "--temperature", "1",
                      "--seed", seed, "--threads", threads});
  };
  const std::string text = generate("5", "1");
  EXPECT_TRUE(text.starts_with("line 1"));
  EXPECT_EQ(generate("5", "4"), text);
  EXPECT_NE(generate("6", "1"), text);
  // Greedy: no seed matters.
  EXPECT_EQ(output_of({"generate", "run", "--prompt", "line", "-n", "9", "--seed", "1"}),
            output_of({"generate", "run", "--prompt", "line", "-n", "9", "--seed", "2"}));
}

TEST_F(CliTest, SessionsContinueWhereTheyWere) {
  output_of(train_of("tiny.json", "text.txt", "run", "40"));
  const auto whole = json_of({"generate", "run", "--prompt", "line 7", "-n", "30"});
  const auto first =
      json_of({"generate", "run", "--prompt", "line 7", "-n", "12", "--session", "s.bin"});
  const auto second = json_of({"generate", "run", "-n", "18", "--session", "s.bin"});
  EXPECT_EQ(first["text"].get<std::string>() + second["text"].get<std::string>(),
            whole["text"].get<std::string>());
  EXPECT_EQ(second["context"], 36);
  const std::string good = read_file(folder_ / "s.bin");
  put("s.bin", good.substr(0, good.size() / 2));
  EXPECT_THAT(failure_of(1, {"generate", "run", "-n", "1", "--session", "s.bin"}),
              HasSubstr("s.bin"));
  put("s.bin", good);
  output_of(train_of("llama.json", "text.txt", "other", "1"));
  EXPECT_THAT(failure_of(1, {"generate", "other", "-n", "1", "--session", "s.bin"}),
              HasSubstr("s.bin"));
}

TEST_F(CliTest, TextsWithoutEndInConstantMemory) {
  output_of(train_of("llama.json", "text.txt", "run", "3"));
  const auto generate = [&](const std::string& tokens, std::vector<std::string> more) {
    std::vector<std::string> command = {"generate", "run", "--prompt", "line 7", "-n", tokens};
    command.insert(command.end(), more.begin(), more.end());
    return json_of(command);
  };
  const std::vector<std::string> window = {"--attention-window", "16", "--attention-sinks", "2"};
  const auto some = generate("300", window), many = generate("620", window);
  EXPECT_EQ(some["state_bytes"], many["state_bytes"]);
  EXPECT_LT(many["state_bytes"], generate("620", {})["state_bytes"]);
  EXPECT_TRUE(many["text"].get<std::string>().starts_with(some["text"].get<std::string>()));
  // A window that holds the whole text, and pages for all of it, change nothing.
  const auto plain = generate("60", {});
  EXPECT_EQ(generate("60", {"--attention-window", "500"})["text"], plain["text"]);
  EXPECT_EQ(generate("60", {"--quest-pages", "50"})["text"], plain["text"]);
  const auto loss = [&](std::vector<std::string> more) {
    std::vector<std::string> command = {"eval", "run", "--data", "text.txt"};
    command.insert(command.end(), more.begin(), more.end());
    return json_of(command)["nll"].get<double>();
  };
  EXPECT_NE(loss({}), loss(window));
  EXPECT_THAT(failure_of(2, {"generate", "run", "--attention-sinks", "4"}),
              HasSubstr("--attention-window"));
  EXPECT_THAT(failure_of(2, {"generate", "run", "--attention-window", "4", "--quest-pages", "3"}),
              HasSubstr("--quest-pages"));
  // Rows that are looked at most.
  for (const std::string way : {"--snapkv", "--h2o"}) {
    const auto kept = generate("620", {way, "30"});
    EXPECT_LT(kept["state_bytes"], generate("620", {})["state_bytes"]) << way;
    EXPECT_EQ(generate("60", {way, "500"})["text"], plain["text"]) << way;
    EXPECT_THAT(failure_of(2, {"generate", "run", way, "4", "--attention-window", "3"}),
                HasSubstr(way));
    EXPECT_THAT(failure_of(2, {"generate", "run", "--prompt", "a", way, "4", "--draft", "ngram"}),
                HasSubstr(way));
  }
}

TEST_F(CliTest, CachesOfHalfTheWidth) {
  output_of(train_of("llama.json", "text.txt", "run", "3"));
  const auto bytes = [&](const std::string& type) {
    const auto inspected = json_of({"inspect", "run", "--contexts", "20", "--cache-type", type});
    return inspected["contexts"][0]["state_bytes"].get<int64_t>();
  };
  const auto generate = [&](std::vector<std::string> more) {
    std::vector<std::string> command = {"generate", "run", "-n", "9", "--session", "s.bin"};
    command.insert(command.end(), more.begin(), more.end());
    return json_of(command);
  };
  const auto first = generate({"--prompt", "line 7", "--cache-type", "bf16"});
  EXPECT_EQ(first["state_bytes"], bytes("bf16"));
  EXPECT_EQ(bytes("bf16"), bytes("f16"));
  // Positions stay 4 bytes each.
  EXPECT_LT(bytes("bf16"), 0.55 * static_cast<double>(bytes("f32")));
  for (const std::string other : {"f32", "f16"}) {
    EXPECT_THAT(
        failure_of(1, {"generate", "run", "-n", "1", "--session", "s.bin", "--cache-type", other}),
        HasSubstr("cache type"));
  }
  const auto second = generate({"--cache-type", "bf16"});
  const auto whole =
      json_of({"generate", "run", "--prompt", "line 7", "-n", "18", "--cache-type", "bf16"});
  EXPECT_EQ(first["text"].get<std::string>() + second["text"].get<std::string>(),
            whole["text"].get<std::string>());
  // Rounded keys and values move a loss a little, and do move it.
  const auto loss = [&](const std::string& type) {
    return json_of({"eval", "run", "--data", "text.txt", "--cache-type", type})["nll"]
        .get<double>();
  };
  const double exact = loss("f32"), rounded = loss("bf16");
  EXPECT_NE(exact, rounded);
  EXPECT_NEAR(exact, rounded, 1e-3 * exact);
  EXPECT_THAT(failure_of(1, {"generate", "run", "-n", "1", "--cache-type", "q8_0"}),
              HasSubstr("blocks of 32"));
}

TEST_F(CliTest, SpeculationWritesTheSameText) {
  auto command = train_of("tiny.json", "text.txt", "run", "40");
  command.insert(command.end(), {"--mtp", "1", "--set", "early_exit=1", "--vocab", "300"});
  output_of(command);
  command = train_of("llama.json", "text.txt", "small", "10");
  command.insert(command.end(), {"--tokenizer", "run"});
  output_of(command);
  const std::vector<std::string> plain = {"generate", "run", "--prompt", "line 7", "-n", "60"};
  const auto expected = json_of(plain);
  EXPECT_FALSE(expected.contains("speculation"));
  for (const char* draft : {"ngram", "suffix", "small", "early-exit", "mtp", "suffix,small"}) {
    auto with = plain;
    with.insert(with.end(), {"--draft", draft, "--stats", "--draft-tree", "2"});
    const auto result = json_of(with);
    EXPECT_EQ(result["text"], expected["text"]) << draft;
    const auto& report = result["speculation"];
    EXPECT_TRUE(report["same_text_as_plain"].get<bool>()) << draft;
    EXPECT_GT(report["speed_up"].get<double>(), 0);
    EXPECT_GE(report["tokens_per_step"].get<double>(), 1);
    EXPECT_LE(report["accepted"].get<int64_t>(), report["drafted"].get<int64_t>());
  }
  const auto table = json_of({"bench", "run", "--draft", "ngram", "--draft", "mtp", "--text",
                              "text.txt", "--prompt", "20", "--generate", "12", "--draft-prompts",
                              "3", "--batch", "2", "--repeat", "1"});
  ASSERT_EQ(table["drafters"].size(), 3u);
  for (const auto& row : table["drafters"]) {
    EXPECT_TRUE(row["same_text_as_plain"].get<bool>()) << row["drafter"];
    EXPECT_GT(row["tokens_per_second"]["median"].get<double>(), 0);
  }
  const auto own = json_of({"bench", "run", "--draft", "ngram", "--prompt-file", "text.txt",
                            "text.txt", "--stop", " ", "--generate", "12", "--repeat", "0"});
  EXPECT_EQ(own["prompts"], 2);
  EXPECT_TRUE(own["drafters"][1]["same_text_as_plain"].get<bool>());
  const auto read = json_of({"bench", "run", "--text", "text.txt", "--prompt", "40", "--generate",
                             "8", "--batch", "2", "--repeat", "1"});
  EXPECT_GT(read["decode"]["tokens_per_second"]["median"].get<double>(), 0);
  EXPECT_THAT(failure_of(1, {"bench", "run", "--text", "text.txt", "--prompt", "100000"}),
              HasSubstr("--text"));
  // A run without heads, with another tokenizer, without an early exit, and nonsense.
  output_of(train_of("tiny.json", "text.txt", "other", "1"));
  const auto refused = [&](const char* model, const char* draft, int code, const char* text) {
    EXPECT_THAT(failure_of(code, {"generate", model, "--prompt", "a", "--draft", draft}),
                HasSubstr(text));
  };
  refused("other", "mtp", 1, "no heads for multi-token prediction");
  refused("run", "other", 1, "tokenizer");
  refused("other", "early-exit", 2, "early exit");
  refused("run", "nowhere", 2, "nowhere");
  EXPECT_THAT(failure_of(2, {"bench", "run", "--draft", "ngram"}), HasSubstr("--text"));
  EXPECT_THAT(failure_of(2, {"bench", "run", "--draft", "ngram", "--text", "text.txt",
                             "--prompt-file", "text.txt"}),
              HasSubstr("--prompt-file"));
}

TEST_F(CliTest, TokenizeRoundTrip) {
  auto command = train_of("tiny.json", "text.txt", "run", "2");
  command.insert(command.end(), {"--vocab", "300"});
  output_of(command);
  put("sample.txt", "line 5 of the plain,  twice   spaced \xC3\xA9\n\n");
  put("ids", output_of({"tokenize", "run", "--file", "sample.txt", "--no-special"}));
  EXPECT_EQ(output_of({"tokenize", "run", "--file", "ids", "--decode"}),
            read_file(folder_ / "sample.txt"));
  put("ids", "1 2 x");
  EXPECT_THAT(failure_of(1, {"tokenize", "run", "--file", "ids", "--decode"}), HasSubstr("ids"));
  put("ids", "1 999999");
  EXPECT_THAT(failure_of(1, {"tokenize", "run", "--file", "ids", "--decode"}), HasSubstr("999999"));
}

TEST_F(CliTest, OutputThatCannotBeWritten) {
  const std::string command = fmt::format("cd '{}' && '{}' list > /dev/full 2> err",
                                          folder_.path().string(), PRONGHORN_CLI);
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(read_file(folder_ / "err"), HasSubstr("standard output: cannot write"));
}

}  // namespace
}  // namespace pronghorn
