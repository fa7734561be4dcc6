#include "lab/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "lab/fake_run.h"
#include "lab/summary.h"
#include "lab/table.h"
#include "lab/text.h"
#include "support/folder.h"

namespace pronghorn::lab {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

size_t count(std::string_view text, std::string_view part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

// The JSON in <script id="results">.
std::string embedded_results(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"results\">";
  const size_t begin = page.find(open) + open.size();
  return page.substr(begin, page.find("</script", begin) - begin);
}

const Finding& finding(const std::vector<Finding>& findings, std::string_view topic) {
  for (const Finding& f : findings) {
    if (f.topic.starts_with(topic)) return f;
  }
  throw std::runtime_error("no finding: " + std::string(topic));
}

TEST(Report, IsOneCompletePage) {
  const testing_support::Folder folder;
  const auto path = folder / "run.html";
  save_report(fake_run(), path);
  const std::string page = read_file(path);
  EXPECT_TRUE(page.starts_with("<!DOCTYPE html>"));
  EXPECT_TRUE(page.ends_with("</html>\n"));
  // Every placeholder is filled, Chart.js is inside, and nothing is fetched.
  EXPECT_THAT(page.substr(0, page.find("<script")), Not(HasSubstr("{{")));
  EXPECT_THAT(page, HasSubstr("Chart.js v3"));
  EXPECT_EQ(count(page, " src="), 0u);
  EXPECT_EQ(count(page, "<link"), 0u);
  EXPECT_EQ(count(page, "<canvas"), 9u);
  EXPECT_EQ(count(page, "<article class=\"model\">"), 5u);
}

// What a page says of its numbers is said of those that it has.
TEST(Report, TellsHowWhatItHasWasMeasured) {
  const auto method = [](const CompareRun& run) {
    const std::string page = render_report(run);
    const size_t begin = page.find("<h2>How this was measured</h2>");
    return page.substr(begin, page.find("</section>", begin) - begin);
  };
  CompareRun run = fake_run();
  EXPECT_THAT(method(run), AllOf(HasSubstr("the same text"), HasSubstr("bits per byte"),
                                 HasSubstr("nats a token"), HasSubstr("MQAR"),
                                 Not(HasSubstr("Words right")), Not(HasSubstr("image"))));
  for (ArchitectureResult& a : run.architectures) {
    a.held_out_bits_per_byte = a.best_held_out_bits_per_byte = a.mqar_accuracy = std::nullopt;
    a.inference.clear();
    a.tasks.clear();
    a.sample.clear();
    a.sound = SpeechScore{0.9, 0.95, 100, 200};
  }
  run.data.vocab_size = 28;
  EXPECT_THAT(method(run), AllOf(HasSubstr("the same sounds"), HasSubstr("Words right"),
                                 HasSubstr("nats a character"), HasSubstr("a frame counts"),
                                 Not(HasSubstr("byte")), Not(HasSubstr("MQAR")),
                                 Not(HasSubstr("same tokenizer"))));
  EXPECT_THAT(render_report(run),
              AllOf(HasSubstr("<dt>Characters</dt><dd>27</dd>"), HasSubstr("<dt>Words right</dt>"),
                    Not(HasSubstr("<dt>Tokenizer</dt>")), Not(HasSubstr("No sample."))));
  for (ArchitectureResult& a : run.architectures) {
    a.sound.reset();
    a.images = ImageScore{0.9, 0.1, 100, 200};
  }
  EXPECT_THAT(method(run), AllOf(HasSubstr("the same images"), HasSubstr("Images a second"),
                                 HasSubstr("nats an image"), HasSubstr("a patch counts"),
                                 Not(HasSubstr("byte")), Not(HasSubstr("sound"))));
}

TEST(Report, EmbedsTheResults) {
  EXPECT_EQ(parse_run(embedded_results(render_report(fake_run())), "page"), fake_run());
}

// Ten architectures, the second five of which are worse.
CompareRun large_run() {
  CompareRun run = fake_run();
  for (ArchitectureResult a : fake_run().architectures) {
    a.name += "-2";
    a.held_out_bits_per_byte = *a.held_out_bits_per_byte + 0.5;
    run.architectures.push_back(a);
  }
  run.architectures[9].held_out_bits_per_byte.reset();
  return run;
}

TEST(Report, ManyArchitecturesAreShownByKind) {
  const CompareRun run = in_order(large_run());
  std::vector<std::string> names;
  for (const ArchitectureResult& a : run.architectures) names.push_back(a.name);
  // The kinds by their best, and within each the best first.
  EXPECT_THAT(names, testing::ElementsAre("hybrid", "hybrid-2", "gated-deltanet", "mamba2", "mamba",
                                          "gated-deltanet-2", "mamba2-2", "mamba-2", "transformer",
                                          "transformer-2"));
  const std::string page = render_report(large_run());
  EXPECT_EQ(count(page, "<td class=\"text\">state space</td>"), 6u);
  // A colour for each kind: in three tables of ten rows, and on the cards of the models.
  EXPECT_GE(count(page, "swatch series-1"), 4u * 6u);
  EXPECT_EQ(count(page, "swatch series-3"), 0u);
  EXPECT_EQ(parse_run(embedded_results(page), "page"), run);
  // Few are shown as they were given, and of results without kinds there is nothing to show.
  EXPECT_EQ(in_order(fake_run()), fake_run());
  EXPECT_THAT(render_report(fake_run()), Not(HasSubstr("<td class=\"text\"")));
  CompareRun old = large_run();
  for (ArchitectureResult& a : old.architectures) a.kind.reset();
  EXPECT_EQ(in_order(old), old);
}

TEST(Report, LongCurvesAreThinnedToMeans) {
  CompareRun run = fake_run();
  std::vector<CurvePoint>& curve = run.architectures[0].curve;
  curve.clear();
  for (int64_t step = 1; step <= 20'000; ++step) {
    curve.push_back({step, 10 * step, 0.5 * static_cast<double>(step), step % 2 == 0 ? 3.0 : 1.0,
                     step == 777 ? std::optional<double>(2.5) : std::nullopt});
  }
  const CompareRun read = parse_run(embedded_results(render_report(run)), "page");
  const std::vector<CurvePoint>& thin = read.architectures[0].curve;
  ASSERT_EQ(thin.size(), 2001u);  // one for every ten steps, and the one that was evaluated
  EXPECT_EQ(thin[0].step, 10);
  EXPECT_EQ(thin[0].loss, 2.0);
  EXPECT_EQ(thin[77].step, 777);
  EXPECT_EQ(thin[77].held_out_bits_per_byte, 2.5);
  EXPECT_EQ(thin.back().step, 20'000);
  EXPECT_EQ(read.architectures[1], run.architectures[1]);
}

TEST(Report, TextOfModelsCannotBreakOut) {
  const std::string hostile =
      "</script><script>alert(1)</script><!-- --> </pre><img src=x onerror=alert(2)> ]]> & \" ' "
      "{{results}} \x1b[2J \xFF";
  CompareRun plain = fake_run(), run = plain;
  run.title = run.machine.cpu = run.data.tokenizer = run.date = hostile;
  run.data.paths = {hostile};
  ArchitectureResult& a = run.architectures[0];
  a.name = a.pattern = a.config_path = a.sample = hostile;
  a.failure = hostile;
  const std::string page = render_report(run);
  const std::string before = render_report(plain);
  // Not one element more than the page of harmless text, but for the notes of the failure.
  for (const char* tag : {"<script", "</script", "<!--", "<img", "</pre"}) {
    EXPECT_EQ(count(page, tag), count(before, tag)) << tag;
  }
  EXPECT_THAT(page, HasSubstr("&lt;/script&gt;&lt;script&gt;alert(1)"));
  EXPECT_THAT(page, HasSubstr("{{results}}"));
  EXPECT_THAT(page, Not(HasSubstr("\x1b")));
  EXPECT_THAT(page, Not(HasSubstr("\xFF")));
  // And it is still whole for those who read the JSON.
  std::string expected = hostile;
  expected.replace(expected.find('\xFF'), 1, "\xEF\xBF\xBD");
  EXPECT_EQ(parse_run(embedded_results(page), "page").architectures[0].sample, expected);
}

TEST(Report, EscapesHtml) {
  EXPECT_EQ(html_escape("a<b>&\"'\n\tc"), "a&lt;b&gt;&amp;&quot;&#39;\n\tc");
  EXPECT_EQ(html_escape(std::string_view("\0x\r", 3)), "\xEF\xBF\xBDx\xEF\xBF\xBD");
  EXPECT_EQ(html_escape("\xE2\x82\xAC \xF0\x9F\xA6\x8C"), "\xE2\x82\xAC \xF0\x9F\xA6\x8C");
  // Overlong "/", a surrogate, past Unicode, cut short.
  EXPECT_EQ(html_escape("\xC0\xAF"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(html_escape("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(html_escape("\xE2\x82"), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Report, MissingContextIsADash) {
  const std::string page = render_report(fake_run());
  // The transformer at 256k: prompt, decode, state.
  EXPECT_EQ(count(page, ">–</td>"), 3u);
}

TEST(Report, FailedArchitectureIsShown) {
  CompareRun run = fake_run();
  ArchitectureResult failed;
  failed.name = "broken";
  failed.failure = "out of memory at step 3";
  run.architectures.push_back(failed);
  const std::string page = render_report(run);
  EXPECT_THAT(page, HasSubstr("<strong>broken</strong> failed: out of memory at step 3"));
  EXPECT_THAT(page, HasSubstr("1 of 6 architectures failed."));
}

TEST(Report, StatesTheTokensThatWereTrained) {
  CompareRun run = fake_run();
  run.budget = {{}, 2000};
  EXPECT_THAT(render_report(run), Not(HasSubstr("2.00k training tokens")));
  for (ArchitectureResult& a : run.architectures) a.train_tokens = 4096;  // one step
  std::string page = render_report(run);
  EXPECT_THAT(page, AllOf(HasSubstr("5 architectures, 4.10k training tokens each"),
                          HasSubstr("4.10k training tokens for each architecture")));
  EXPECT_THAT(page, Not(HasSubstr("2.00k training tokens")));
  run.architectures[1].train_tokens = 2048;
  run.architectures[2].train_tokens = 0;  // failed
  EXPECT_THAT(render_report(run), HasSubstr("2.05k to 4.10k training tokens each"));
}

TEST(Report, RunsWithNothingInThem) {
  EXPECT_THAT(render_report(CompareRun{}), HasSubstr("</html>"));
  CompareRun run;
  run.architectures.resize(2);
  EXPECT_THAT(render_report(run), HasSubstr("</html>"));
}

TEST(Summary, NamesTheWinners) {
  const CompareRun run = fake_run();
  const std::vector<Finding> findings = find_winners(run);
  EXPECT_EQ(winner_names(run, finding(findings, "Held-out")), "hybrid");
  EXPECT_THAT(finding(findings, "Held-out").detail, HasSubstr("gated-deltanet is next"));
  EXPECT_EQ(winner_names(run, finding(findings, "Training speed")), "mamba2");
  EXPECT_THAT(finding(findings, "Training speed").detail,
              HasSubstr("1.16× as fast as transformer"));
  EXPECT_EQ(winner_names(run, finding(findings, "State at 256k")), "mamba");
  EXPECT_EQ(finding(findings, "State at 256k").value, "1.18 MB");
  EXPECT_THAT(headline(run), HasSubstr("hybrid models the held-out text best"));
  EXPECT_THAT(headline(run), HasSubstr("All beat gzip -9 (2.634 bits/byte)."));
}

TEST(Summary, CallsEqualWhatOneSeedCannotTell) {
  CompareRun run = fake_run();
  run.architectures[1].held_out_bits_per_byte =
      1.004 * *run.architectures[4].held_out_bits_per_byte;
  Finding quality = find_winners(run).front();
  EXPECT_EQ(quality.winners.size(), 2u);
  EXPECT_TRUE(quality.close);
  EXPECT_THAT(headline(run), HasSubstr("are about equal: each models the held-out text best"));
  EXPECT_THAT(compare_table(run),
              AllOf(HasSubstr("* best of its column"), HasSubstr("one seed cannot tell more")));

  // Seeds that agree to the last digit tell the same difference.
  run.seeds = 3;
  for (ArchitectureResult& a : run.architectures) {
    const double bits = *a.held_out_bits_per_byte;
    a.seed_bits_per_byte = {bits - 1e-4, bits, bits + 1e-4};
  }
  quality = find_winners(run).front();
  EXPECT_EQ(winner_names(run, quality), "hybrid");
  EXPECT_FALSE(quality.close);
  EXPECT_THAT(compare_table(run), AllOf(HasSubstr("1.287 ± 0.000"), HasSubstr("3 seeds")));
  EXPECT_EQ(parse_run(run_text(run), "again"), run);

  // Others hide a larger one.
  for (ArchitectureResult& a : run.architectures) {
    const double bits = *a.held_out_bits_per_byte;
    a.seed_bits_per_byte = {bits - 0.05, bits, bits + 0.05};
  }
  EXPECT_GT(find_winners(run).front().winners.size(), 2u);
}

TEST(Report, TasksShowAnswersAndChance) {
  CompareRun run = fake_run();
  for (ArchitectureResult& a : run.architectures) {
    a.tasks = {{"needle", 64, 0.25, 0.75, 0.1}, {"needle", 128, 0.125, 0.5, 0.1}};
  }
  const std::string text = compare_table(run);
  EXPECT_THAT(text, AllOf(HasSubstr("Examples solved by length"),
                          HasSubstr("Answers right by length (by chance: needle 10.0%)"),
                          HasSubstr("75.0%")));
}

TEST(Summary, TellsWhereTheLeadChanges) {
  CompareRun run = fake_run();
  for (InferencePoint& point : run.architectures[0].inference) {
    if (point.context <= 4096) point.decode_tokens_per_second = 5000;
  }
  const std::vector<Finding> findings = find_winners(run);
  EXPECT_THAT(finding(findings, "Decoding at 256k").detail, HasSubstr("at 512, 4k: transformer"));
}

TEST(Summary, TiesAreTies) {
  CompareRun run = fake_run();
  run.architectures[1].held_out_bits_per_byte = run.architectures[4].held_out_bits_per_byte;
  const Finding quality = find_winners(run).front();
  EXPECT_EQ(quality.winners.size(), 2u);
  EXPECT_THAT(winner_names(run, quality), HasSubstr(" and "));
}

TEST(Summary, OneAloneDoesNotWin) {
  CompareRun run = fake_run();
  run.architectures.resize(1);
  EXPECT_FALSE(find_winners(run).front().contested);
  EXPECT_EQ(headline(run), "The one that was judged beats gzip -9 (2.634 bits/byte).");
}

TEST(Summary, NothingMeasuredSaysNothing) {
  EXPECT_TRUE(find_winners(CompareRun{}).empty());
  EXPECT_EQ(headline(CompareRun{}), "");
}

}  // namespace
}  // namespace pronghorn::lab
