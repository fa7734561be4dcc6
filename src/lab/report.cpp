#include "lab/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "lab/page.h"
#include "lab/summary.h"
#include "lab/table.h"
#include "lab/text.h"

namespace pronghorn::embedded {
extern const std::string_view kReportTemplate, kReportStyle, kReportScript, kChartScript,
    kChartParts;
}

namespace pronghorn::lab {
namespace {

// Colours of the palette in report.css; more architectures or kinds than these begin again.
constexpr size_t kColours = 8;

// Points of a curve that the page carries: more than its charts can show, and few enough that a
// run of many steps still makes a page of a few megabytes.
constexpr size_t kCurvePoints = 2000;

// In the colour of an architecture: its own or, in a run that is shown by kinds, that of its kind.
// report.js does the same.
std::string swatch(const CompareRun& run, size_t architecture) {
  size_t colour = architecture;
  if (is_grouped(run)) {
    const std::vector<std::string> kinds = kinds_of(run);
    const std::string kind = run.architectures[architecture].kind.value_or("");
    colour = static_cast<size_t>(std::ranges::find(kinds, kind) - kinds.begin());
  }
  return fmt::format("<i class=\"swatch series-{}\"></i>", colour % kColours);
}

std::string count_of(int64_t count) { return format_count(static_cast<double>(count)); }

std::string finding_cards(const CompareRun& run) {
  std::string html;
  for (const Finding& finding : find_winners(run)) {
    std::string winners;
    // A long tie is told, not listed.
    if (finding.winners.size() > 3) {
      winners = fmt::format("{} tie", finding.winners.size());
    } else {
      for (const size_t index : finding.winners) {
        winners += fmt::format("<span>{}{}</span> ", swatch(run, index),
                               html_escape(run.architectures[index].name));
      }
    }
    html += fmt::format(
        "<article class=\"finding\"><h3>{}</h3><p class=\"winner\">{}</p>"
        "<p class=\"value\">{}</p><p class=\"detail\">{}</p></article>\n",
        html_escape(finding.topic), winners, html_escape(finding.value),
        html_escape(finding.detail));
  }
  return html;
}

std::string failure_notes(const CompareRun& run) {
  std::string html;
  for (size_t i = 0; i < run.architectures.size(); ++i) {
    const ArchitectureResult& a = run.architectures[i];
    if (!a.failure) continue;
    html += fmt::format("<p class=\"failure\">{}<strong>{}</strong> failed: {}</p>\n",
                        swatch(run, i), html_escape(a.name), html_escape(*a.failure));
  }
  return html;
}

// Term and value; a value that is empty is omitted.
using Facts = std::vector<std::pair<std::string_view, std::string>>;

std::string fact_list(const Facts& facts) {
  std::string html = "<dl>";
  for (const auto& [term, value] : facts) {
    if (value.empty()) continue;
    html += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", term, html_escape(value));
  }
  return html + "</dl>\n";
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

// GFLOP/s as "812 GFLOP/s" or "1.62 TFLOP/s".
std::string flops(std::optional<double> gflops) {
  if (!gflops) return {};
  return *gflops < 1000 ? fmt::format("{:.0f} GFLOP/s", *gflops)
                        : fmt::format("{:.2f} TFLOP/s", *gflops / 1000);
}

std::string machine_facts(const CompareRun& run) {
  const Machine& machine = run.machine;
  return fact_list(
      {{"Processor", machine.cpu},
       {"Cores", fmt::format("{}, {} threads used", machine.cores, machine.threads)},
       {"Instruction sets", joined(machine.instruction_sets)},
       {"Matrix peak, f32", flops(machine.peak_f32_gflops)},
       {"Matrix peak, bf16", flops(machine.peak_bf16_gflops)},
       {"Read bandwidth", machine.read_gigabytes_per_second
                              ? fmt::format("{:.1f} GB/s", *machine.read_gigabytes_per_second)
                              : std::string()}});
}

// What the architectures were trained on, and so what words of the page stand for.
struct Subject {
  bool images = false, sound = false, tasks = false;
  std::string_view given, row,
      unit;  // what all learnt from; a row of it; what losses are divided by
};

Subject subject_of(const CompareRun& run) {
  Subject subject;
  for (const ArchitectureResult& a : run.architectures) {
    subject.images |= a.images.has_value();
    subject.sound |= a.sound.has_value();
    subject.tasks |= !a.tasks.empty();
  }
  subject.given = subject.images  ? "on the same images in the same order"
                  : subject.sound ? "on the same sounds in the same order"
                  : subject.tasks ? "on the same examples in the same order"
                                  : "with the same tokenizer, on the same text in the same order";
  subject.row = subject.images ? "a patch" : subject.sound ? "a frame" : "a token";
  subject.unit = subject.images  ? "nats an image"
                 : subject.sound ? "nats a character"
                                 : "nats a token";
  return subject;
}

std::string data_facts(const CompareRun& run) {
  const DataDescription& data = run.data;
  const Subject subject = subject_of(run);
  return fact_list(
      {{"Data", joined(data.paths)},
       {"Classes", subject.images ? count_of(data.vocab_size) : std::string()},
       // The blank of CTC is none of them.
       {"Characters", subject.sound ? count_of(data.vocab_size - 1) : std::string()},
       {"Tokenizer", subject.images || subject.sound
                         ? std::string()
                         : fmt::format("{}, {} tokens", data.tokenizer, data.vocab_size)},
       {"Training text",
        data.train_tokens > 0 ? count_of(data.train_tokens) + " tokens" : std::string()},
       {"Held-out text", data.held_out_tokens > 0
                             ? fmt::format("{} tokens, {}", count_of(data.held_out_tokens),
                                           format_bytes(static_cast<double>(data.held_out_bytes)))
                             : std::string()},
       {"gzip -9 on it", data.gzip_bits_per_byte
                             ? format_bits(*data.gzip_bits_per_byte) + " bits/byte"
                             : std::string()},
       {"Budget", budget_words(run) + " for each architecture"},
       {"Seed", run.seeds > 1 ? fmt::format("{} to {}", run.seed,
                                            run.seed + static_cast<uint64_t>(run.seeds) - 1)
                              : fmt::format("{}", run.seed)}});
}

// The run with curves of at most about kCurvePoints points: steps without a held-out value are put
// together, and the mean of their losses stands where the last of them was.
CompareRun thinned(CompareRun run) {
  for (ArchitectureResult& a : run.architectures) {
    const size_t together = (a.curve.size() + kCurvePoints - 1) / kCurvePoints;
    if (together <= 1) continue;
    std::vector<CurvePoint> kept;
    double sum = 0;
    size_t count = 0;
    for (size_t i = 0; i < a.curve.size(); ++i) {
      CurvePoint point = a.curve[i];
      if (std::isfinite(point.loss)) {
        sum += point.loss;
        ++count;
      }
      const bool last = (i + 1) % together == 0 || i + 1 == a.curve.size();
      if (!last && !point.held_out_bits_per_byte) continue;
      if (count > 0) point.loss = std::exchange(sum, 0) / static_cast<double>(count);
      count = 0;
      kept.push_back(point);
    }
    a.curve = std::move(kept);
  }
  return run;
}

// The first line of headings: what neighbouring columns share.
std::string group_row(const Table& table) {
  const std::vector<Column>& columns = table.columns();
  std::string cells;
  bool any = false;
  for (size_t first = 0, end = 0; first < columns.size(); first = end) {
    const std::string& group = columns[first].group;
    for (end = first + 1; end < columns.size() && columns[end].group == group; ++end) {
    }
    any = any || !group.empty();
    cells += fmt::format("<th colspan=\"{}\"{}>{}</th>", end - first,
                         group.empty() ? "" : " class=\"group\"", html_escape(group));
  }
  return any ? "<tr class=\"groups\">" + cells + "</tr>" : std::string();
}

std::string table_html(const CompareRun& run, const Table& table) {
  std::string html = fmt::format(
      "<figure class=\"table\"><figcaption>{}</figcaption><div class=\"scroll\"><table><thead>{}"
      "<tr>",
      html_escape(table.title()), group_row(table));
  for (size_t c = 0; c < table.columns().size(); ++c) {
    const Column& column = table.columns()[c];
    const bool first_of_group = c > 0 && column.group != table.columns()[c - 1].group;
    html += fmt::format("<th scope=\"col\"{}><button type=\"button\">{}</button></th>",
                        first_of_group ? " class=\"first\"" : "", html_escape(column.title));
  }
  html += "</tr></thead><tbody>\n";
  for (size_t row = 0; row < table.rows().size(); ++row) {
    html += "<tr>";
    for (size_t c = 0; c < table.columns().size(); ++c) {
      const Cell& cell = table.rows()[row][c];
      if (c == 0) {
        html +=
            fmt::format("<th scope=\"row\">{}{}</th>", swatch(run, row), html_escape(cell.text));
        continue;
      }
      if (table.columns()[c].align == Align::kLeft) {
        html += fmt::format("<td class=\"text\">{}</td>", html_escape(cell.text));
        continue;
      }
      const bool best = table.is_best(row, c);
      const bool first = table.columns()[c].group != table.columns()[c - 1].group;
      const std::string classes = std::string(best ? "best " : "") + (first ? "first" : "");
      html += fmt::format("<td{}{}>{}</td>",
                          classes.empty() ? "" : fmt::format(" class=\"{}\"", classes),
                          cell.value ? fmt::format(" data-value=\"{}\"", *cell.value) : "",
                          cell.value ? html_escape(cell.text) : "–");
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div></figure>\n";
}

std::string tables_html(const CompareRun& run) {
  std::string html;
  for (const Table& table : comparison_tables(run)) html += table_html(run, table);
  return html;
}

std::string model_cards(const CompareRun& run) {
  std::string html;
  for (size_t i = 0; i < run.architectures.size(); ++i) {
    const ArchitectureResult& a = run.architectures[i];
    const auto bits = [&](std::optional<double> value) {
      if (!value) return std::string();
      return (a.bound_samples ? "at most " : "") + format_bits(*value) + " bits/byte";
    };
    html += fmt::format("<article class=\"model\"><h3>{}{}</h3>\n", swatch(run, i),
                        html_escape(a.name));
    html += fact_list(
        {{"Pattern", a.pattern},
         {"Kind", a.kind.value_or("")},
         {"Configuration", a.config_path},
         {"Parameters", fmt::format("{}, {} without embeddings", count_of(a.parameters),
                                    count_of(a.non_embedding_parameters))},
         {"Active", a.active_parameters ? count_of(*a.active_parameters) + " that a token meets"
                                        : std::string()},
         {"Experts", a.least_expert_share && a.most_expert_share
                         ? fmt::format("{:.2f} to {:.2f} of an equal share of the "
                                       "held-out text",
                                       *a.least_expert_share, *a.most_expert_share)
                         : std::string()},
         {"Trained", fmt::format("{} {} in {}", count_of(a.train_tokens),
                                 a.images  ? "patches"
                                 : a.sound ? "frames"
                                           : "tokens",
                                 format_duration(a.train_seconds))},
         {"Accuracy", a.images ? format_recall(a.images->accuracy) : std::string()},
         {"Words right", a.sound ? format_recall(a.sound->word_accuracy) : std::string()},
         {"Held out", bits(a.held_out_bits_per_byte)},
         {"Best on the way", bits(a.best_held_out_bits_per_byte)}});
    if (a.failure) {
      html += "<p class=\"failure\">Failed: " + html_escape(*a.failure) + "</p>\n";
    }
    // A newline that begins a <pre> is dropped by browsers, so one is given to drop.
    html += !a.sample.empty()
                ? "<pre dir=\"auto\" tabindex=\"0\">\n" + html_escape(a.sample) + "</pre>"
            : a.images || a.sound ? ""
                                  : "<p class=\"none\">No sample.</p>";
    html += "</article>\n";
  }
  return html;
}

// How the numbers came about that this run has.
std::string method_items(const CompareRun& run) {
  const Subject subject = subject_of(run);
  const auto any = [&](const auto& has) {
    return std::any_of(run.architectures.begin(), run.architectures.end(), has);
  };
  using Result = ArchitectureResult;
  std::string html = fmt::format(
      "<li>Every architecture was trained from random weights by the same program on the same "
      "machine, {}, and with the same budget: {}, seed {}. Differences that another seed could "
      "turn around are not findings; run the comparison with <code>--seeds 3</code> before drawing "
      "conclusions from small ones.</li>\n",
      subject.given, html_escape(budget_words(run)), run.seed);
  const auto add = [&](std::string_view name, std::string_view text) {
    html += fmt::format("<li><b>{}</b>: {}</li>\n", name, text);
  };
  if (any([](const Result& a) { return a.held_out_bits_per_byte.has_value(); })) {
    add("Held-out bits per byte",
        "the summed −log<sub>2</sub> probability of the held-out tokens divided by the bytes of "
        "the held-out text. It does not depend on the tokenizer. Lower is better. gzip -9 "
        "compresses "
        "the same bytes.");
  }
  if (subject.images) {
    add("Accuracy",
        "the share of all images of the test part, which training never saw, whose "
        "class has the highest score. <b>Images a second</b>: of the model in "
        "that test and in training; reading files does not count.");
  }
  if (subject.sound) {
    add("Words right",
        "1 - (insertions + deletions + substitutions) / words, 0 at least, over all sounds of the "
        "test part, which training never heard, by the best score of each row; likewise of "
        "characters. <b>Sound a second</b>: seconds of sound that the model gets through in that "
        "test and in training; reading files and spectrograms do not count.");
  }
  add("Training loss",
      fmt::format("{} on the training batches. Long curves are drawn as means of neighbouring "
                  "steps.",
                  subject.unit));
  if (subject.images || subject.sound) {
    add("Tokens", fmt::format("{} counts as one{}.", subject.row,
                              subject.sound ? ", and each sound as many as the longest has" : ""));
  }
  add("% of peak",
      "floating-point operations of training a second, as a share of the matrix product speed that "
      "was measured on this machine.");
  if (any([](const Result& a) { return !a.inference.empty(); })) {
    add("Prompt and decode tokens a second at a context of n",
        "one sequence; reading a prompt of n tokens, and generating one token at a time after n "
        "tokens.");
    add("State",
        "bytes that one sequence keeps between tokens after n of them: keys and values, "
        "recurrent states, convolution tails.");
  }
  add("Training memory",
      "the most that training held at once, weights, gradients, optimizer and "
      "activations together.");
  if (any([](const Result& a) { return a.mqar_accuracy.has_value(); })) {
    add("MQAR recall",
        "the share of queries answered right in multi-query associative recall, a "
        "synthetic task.");
  }
  if (subject.tasks) {
    add("Examples solved by length",
        "each architecture was trained on examples of a synthetic task and judged on new ones of "
        "the same and of greater lengths; an example is solved if all its answers are right. "
        "The state is what a sequence of that length keeps.");
  }
  return html;
}

}  // namespace

std::string render_report(const CompareRun& given) {
  const CompareRun run = in_order(given);
  const std::string title = run.title.empty() ? "Comparison of architectures" : run.title;
  const size_t count = run.architectures.size();
  return filled_page(embedded::kReportTemplate,
                     {{"title", html_escape(title)},
                      {"style", std::string(embedded::kReportStyle)},
                      {"chart_script", std::string(embedded::kChartScript)},
                      {"chart_parts", std::string(embedded::kChartParts)},
                      {"report_script", std::string(embedded::kReportScript)},
                      {"results", script_escape(run_text(thinned(run), -1))},
                      {"byline", html_escape(fmt::format("{}{} architecture{}, {} each, on {}",
                                                         run.date.empty() ? "" : run.date + " · ",
                                                         count, count == 1 ? "" : "s",
                                                         budget_words(run), run.machine.cpu))},
                      {"headline", html_escape(headline(run))},
                      {"findings", finding_cards(run)},
                      {"failures", failure_notes(run)},
                      {"machine", machine_facts(run)},
                      {"data", data_facts(run)},
                      {"tables", tables_html(run)},
                      {"models", model_cards(run)},
                      {"method", method_items(run)}});
}

void save_report(const CompareRun& run, const std::filesystem::path& path) {
  write_file(path, render_report(run));
}

}  // namespace pronghorn::lab
