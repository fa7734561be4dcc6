// Files that are odd: devices, pipes, links, other endings, changed while they are read.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing_cli::CliTest;
using testing_cli::Conditions;
using testing_cli::Finished;

class FilesTest : public CliTest {
 protected:
  std::vector<std::string> train_on(const std::string& data, const std::string& out,
                                    const std::string& steps = "2") {
    return {"train", "tiny.json", "--data", data, "--out", out, "--steps", steps};
  }
};

TEST_F(FilesTest, PipesAndDevicesNeverBlock) {
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  output_of(train_on("text.txt", "run"));
  std::filesystem::create_directory(folder_ / "model");
  for (const std::string file : {"config.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(folder_ / "run" / file, folder_ / "model" / file);
  }
  ASSERT_EQ(::mkfifo((folder_ / "model/model.safetensors").c_str(), 0600), 0);
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {train_on("pipe", "x"), "pipe: is a pipe"},
      {train_on("/dev/zero", "x"), "/dev/zero: is a pipe or a device"},
      {{"train", "pipe", "--data", "text.txt", "--out", "x", "--steps", "1"}, "is a pipe"},
      {{"inspect", "pipe"}, "is a pipe"},
      {{"inspect", "/dev/zero"}, "is a device"},
      {{"eval", "run", "--data", "pipe"}, "is a pipe"},
      {{"generate", "run", "--prompt-file", "pipe"}, "is a pipe"},
      {{"generate", "run", "--prompt-file", "/dev/zero"}, "is a device"},
      {{"generate", "run", "--prompt", "a", "--session", "pipe"}, "is a pipe"},
      {{"generate", "model", "--prompt", "a"}, "is a pipe"},
      {{"tokenize", "run", "--file", "pipe"}, "is a pipe"},
      {{"logits", "run", "--tokens", "1", "--out", "pipe"}, "is a pipe"},
      {{"logits", "run", "--tokens", "1", "--out", "/dev/null"}, "is a device"}};
  for (const auto& [arguments, expected] : cases) {
    EXPECT_THAT(failure_of(1, arguments), HasSubstr(expected));
  }
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_F(FilesTest, LinksThatLeadNowhereArePassedOver) {
  std::filesystem::create_directory(folder_ / "texts");
  put("texts/a.TXT", text());
  std::filesystem::create_symlink("loop", folder_ / "texts/loop");
  std::filesystem::create_symlink("gone", folder_ / "texts/dangling");
  std::filesystem::create_directory_symlink("..", folder_ / "texts/up");
  const testing_cli::Finished finished = run(train_on("texts", "run"));
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, AllOf(HasSubstr("texts/loop"), HasSubstr("texts/dangling")));
  EXPECT_THAT(failure_of(1, train_on("texts/loop", "x")), HasSubstr("texts/loop: Too many"));
  EXPECT_THAT(failure_of(1, {"inspect", "texts/loop"}), HasSubstr("texts/loop: Too many levels"));
}

TEST_F(FilesTest, AChangeOfTheSameSizeIsNoticed) {
  std::string changed = text();
  changed[100] = 'X';
  output_of(train_on("text.txt", "run"));
  const auto time = std::filesystem::last_write_time(folder_ / "text.txt");
  for (const bool same_time : {false, true}) {
    put("text.txt", changed);
    if (same_time) std::filesystem::last_write_time(folder_ / "text.txt", time);
    std::vector<std::string> resume = train_on("text.txt", "run");
    resume.push_back("--resume");
    EXPECT_THAT(failure_of(1, resume), HasSubstr("data")) << same_time;
    // The old text again, in another place and at another time, is the same.
    put("moved.txt", text());
    resume[3] = "moved.txt";
    output_of(resume);
  }
}

TEST_F(FilesTest, TwoRunsInOneDirectoryAreToldApart) {
  std::thread first([&] {
    // Ended by a signal as soon as the second has been refused.
    Conditions stop;
    stop.signal_after = 1;
    stop.after_file = "refused";
    run({"train", "tiny.json", "--data", "text.txt", "--out", "run", "--time", "20s"}, stop);
  });
  for (int i = 0; i < 3000 && !std::filesystem::exists(folder_ / "run/.lock"); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const std::string command = fmt::format(
      "cd '{}' && '{}' train tiny.json --data text.txt --out run --steps 1 --resume 2> second",
      folder_.path().string(), PRONGHORN_CLI);
  const int status = std::system(command.c_str());
  put("refused", "");
  first.join();
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(read_file(folder_ / "second"), HasSubstr("another run is writing"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run/.lock"));
}

TEST_F(FilesTest, AConversionThatIsStoppedLeavesNothingHalfWritten) {
  output_of({"train", "llama.json", "--data", "text.txt", "--out", "run", "--steps", "1", "--vocab",
             "300"});
  // Forty megabytes of experts: some of the signals come while they are written.
  for (const double after : {0.05, 0.1, 0.2, 0.3, 0.5}) {
    Conditions stop;
    stop.signal_after = after;
    stop.signal = SIGTERM;
    const Finished stopped =
        run({"convert", "run", fmt::format("mixture{}", after), "--upcycle", "1024"}, stop);
    EXPECT_TRUE(stopped.code == 0 || stopped.signal == SIGTERM) << stopped.err;
    for (const auto& item : std::filesystem::recursive_directory_iterator(folder_.path())) {
      EXPECT_NE(item.path().extension(), ".partial") << item.path();
    }
  }
  // What a process left that was killed outright goes with the next conversion.
  const std::string dead = ".2147483647.partial";
  std::filesystem::create_directory(folder_ / "next");
  put("next/model.safetensors" + dead, "half");
  put("m.gguf" + dead, "half");
  output_of({"convert", "run", "next"});
  output_of({"convert", "run", "m.gguf"});
  EXPECT_FALSE(std::filesystem::exists(folder_ / ("next/model.safetensors" + dead)));
  EXPECT_FALSE(std::filesystem::exists(folder_ / ("m.gguf" + dead)));
}

// A model of ours was trained for its window.
TEST_F(FilesTest, TextsBeyondTheTrainedContextAreSaidOrRefused) {
  output_of(train_on("text.txt", "run"));  // window 32
  EXPECT_EQ(json_of({"inspect", "run"})["trained_context"]["tokens"], 32);
  EXPECT_THAT(output_of({"inspect", "run"}), HasSubstr("trained for 32 tokens"));
  const std::string tokens =
      "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 "
      "27 28 29 30 31 32 33";
  const std::vector<std::vector<std::string>> beyond = {
      {"generate", "run", "--prompt", "line 5", "-n", "60"},
      {"generate", "run", "--prompt", std::string(40, 'x'), "-n", "1"},
      {"eval", "run", "--data", "text.txt", "--window", "33"},
      {"logits", "run", "--tokens", tokens, "--out", "l.npy"}};
  for (std::vector<std::string> command : beyond) {
    const testing_cli::Finished warned = run(command);
    EXPECT_EQ(warned.code, 0) << command[0] << warned.err;
    EXPECT_THAT(warned.err, HasSubstr("warning: context: ")) << command[0];
    command.push_back("--strict-context");
    const testing_cli::Finished refused = run(command);
    EXPECT_EQ(refused.code, 1) << command[0];
    EXPECT_THAT(refused.err, HasSubstr("trained for 32 tokens")) << command[0];
  }
  const testing_cli::Finished within =
      run({"generate", "run", "--prompt", "line 5", "-n", "26", "--strict-context"});
  EXPECT_EQ(within.code, 0) << within.err;
  EXPECT_EQ(within.err, "");
}

TEST_F(FilesTest, NamesAreQuotedInMessages) {
  const std::string evil = "evil\x1b[31m\nname";
  nlohmann::json bad = config("a");
  bad[evil] = 1;
  bad["train"][std::string(5000, 'x')] = 1;
  put("bad.json", bad.dump());
  EXPECT_THAT(failure_of(1, {"inspect", "bad.json"}),
              AllOf(HasSubstr(R"(evil\x1b[31m\nname)"), Not(HasSubstr("\x1b"))));
  bad.erase(evil);
  bad["model_type"] = evil;
  put("bad.json", bad.dump());
  EXPECT_THAT(failure_of(1, {"inspect", "bad.json"}), Not(HasSubstr("\x1b")));
  EXPECT_THAT(failure_of(1, {"inspect", evil}), AllOf(HasSubstr(R"(evil\x1b[31m\nname)")));
  EXPECT_THAT(failure_of(1, {"inspect", std::string(300, 'y') + "/" + std::string(3000, 'z')}),
              HasSubstr("yyy"));
  EXPECT_THAT(failure_of(1, {"train", "tiny.json", "--task", evil, "--out", "x", "--steps", "1"}),
              HasSubstr(R"(evil\x1b)"));
}

TEST_F(FilesTest, WhatIsNoTextSaysWhatItIs) {
  put("model.gguf", std::string("GGUF\3\0\0\0", 8));
  put("text.gz.txt", std::string("\x1f\x8b\x08\x00", 4));
  put("wide.txt", std::string("\xff\xfe"
                              "a\0b\0",
                              6));
  put("squeezed.txt", "BZh9\xff");
  EXPECT_THAT(failure_of(1, train_on("model.gguf", "x")), HasSubstr("GGUF"));
  EXPECT_THAT(failure_of(1, train_on("text.gz.txt", "x")), HasSubstr(".gz"));
  EXPECT_THAT(failure_of(1, train_on("wide.txt", "x")), HasSubstr("UTF-16"));
  EXPECT_THAT(failure_of(1, train_on("squeezed.txt", "x")), HasSubstr("compressed"));
}

}  // namespace
}  // namespace pronghorn
