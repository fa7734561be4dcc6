#include "lab/results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "lab/fake_run.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn::lab {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string error_of(const json& document) {
  return testing_support::error_of([&] { parse_run(document.dump(), "results.json"); });
}

TEST(Results, RoundTripKeepsEveryField) {
  CompareRun run = fake_run();
  run.seed = std::numeric_limits<uint64_t>::max();
  run.architectures[1].failure = "out of memory";
  run.architectures[1].held_out_bits_per_byte.reset();
  run.architectures[2].sample = "a \"quoted\" line\n</script>\t\xE2\x82\xAC";
  run.budget = {{}, 1'000'000};
  EXPECT_EQ(parse_run(run_text(run), "text"), run);
  EXPECT_EQ(parse_run(run_text(run, -1), "text"), run);
}

TEST(Results, FileRoundTrip) {
  const testing_support::Folder folder;
  const auto path = folder / "run.json";
  save_run(fake_run(), path);
  EXPECT_EQ(load_run(path), fake_run());
}

TEST(Results, OneArchitectureRoundTrip) {
  const ArchitectureResult result = fake_run().architectures[3];
  EXPECT_EQ(json(result).get<ArchitectureResult>(), result);
}

TEST(Results, DivergedLossIsNullAndReadsAsNaN) {
  CompareRun run = fake_run();
  run.architectures[0].curve[5].loss = std::numeric_limits<double>::quiet_NaN();
  run.architectures[0].held_out_bits_per_byte = std::numeric_limits<double>::infinity();
  const CompareRun read = parse_run(run_text(run), "text");
  EXPECT_TRUE(std::isnan(read.architectures[0].curve[5].loss));
  EXPECT_FALSE(read.architectures[0].held_out_bits_per_byte.has_value());
}

TEST(Results, SampleThatIsNotUtf8StillGivesJson) {
  CompareRun run = fake_run();
  run.architectures[0].sample = "caf\xC3";
  EXPECT_EQ(parse_run(run_text(run), "text").architectures[0].sample, "caf\xEF\xBF\xBD");
}

TEST(Results, ErrorsNameTheField) {
  const json good = fake_run();
  EXPECT_EQ(error_of(good), "no error");

  json bad = good;
  bad["architectures"][2]["curve"][7]["tokens"] = -3;
  EXPECT_THAT(error_of(bad), HasSubstr("results.json: run.architectures[2].curve[7].tokens"));
  EXPECT_THAT(error_of(bad), HasSubstr("-3"));

  bad = good;
  bad["machine"].erase("cpu");
  EXPECT_THAT(error_of(bad), HasSubstr("run.machine.cpu: the field is missing"));

  bad = good;
  bad["architectures"][0]["mqar_accuracy"] = "high";
  EXPECT_THAT(error_of(bad), HasSubstr("mqar_accuracy: expected a number, found string"));

  bad = good;
  bad["data"]["vocab_size"] = 1.5;
  EXPECT_THAT(error_of(bad), HasSubstr("run.data.vocab_size: expected an integer"));

  bad = good;
  bad["data"]["vocab_size"] = std::numeric_limits<uint64_t>::max();
  EXPECT_THAT(error_of(bad), HasSubstr("run.data.vocab_size"));

  bad = good;
  bad["architectures"] = json::object();
  EXPECT_THAT(error_of(bad), HasSubstr("run.architectures: expected an array"));

  bad = good;
  bad["format"] = "something else";
  EXPECT_THAT(error_of(bad), HasSubstr("run.format"));

  EXPECT_THAT(error_of(json::array()), HasSubstr("expected an object"));
}

TEST(Results, TextThatIsNotJson) {
  EXPECT_THROW(parse_run("{", "x"), Error);
  EXPECT_THROW(parse_run("", "x"), Error);
}

TEST(Results, UnknownKeysArePassedOver) {
  json document = fake_run();
  document["from_the_future"] = 1;
  EXPECT_EQ(error_of(document), "no error");
}

TEST(Results, ContextsAreTheUnion) {
  CompareRun run = fake_run();
  EXPECT_EQ(measured_contexts(run), (std::vector<int64_t>{512, 4096, 32768, 262144}));
  EXPECT_EQ(inference_at(run.architectures[0], 262144), nullptr);
  ASSERT_NE(inference_at(run.architectures[1], 262144), nullptr);
  EXPECT_EQ(inference_at(run.architectures[1], 262144)->context, 262144);
}

}  // namespace
}  // namespace pronghorn::lab
