#include "lab/table.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "lab/text.h"

namespace pronghorn::lab {
namespace {

constexpr size_t kGap = 2;  // blanks between columns

std::string padded(std::string_view text, size_t width, Align align) {
  const size_t taken = display_width(text);
  const std::string blanks(width > taken ? width - taken : 0, ' ');
  return align == Align::kLeft ? std::string(text) + blanks : blanks + std::string(text);
}

// The heading of a group, drawn out over its columns: "--- decode ---".
std::string heading(const std::string& group, size_t width) {
  if (group.empty()) return std::string(width, ' ');
  const size_t spare = width - display_width(group);
  if (spare < 4) return padded(group, width, Align::kRight);
  const size_t left = (spare - 2) / 2;
  return std::string(left, '-') + " " + group + " " + std::string(spare - 2 - left, '-');
}

void end_line(std::string& text) {
  text.erase(text.find_last_not_of(' ') + 1);
  text += '\n';
}

}  // namespace

Cell number_cell(std::optional<double> value, const std::function<std::string(double)>& format) {
  if (!value || !std::isfinite(*value)) return {};
  return {format(*value), *value};
}

// Columns beside each other with their widths: of the values, and of the mark after them.
struct Table::Layout {
  std::vector<size_t> columns, widths, marks;

  // The end of the run of columns that share the group of the one at `first`.
  size_t group_end(const Table& table, size_t first) const {
    size_t end = first + 1;
    const std::string& group = table.columns_[columns[first]].group;
    while (end < columns.size() && !group.empty() && table.columns_[columns[end]].group == group) {
      ++end;
    }
    return end;
  }
  size_t span(size_t first, size_t end) const {
    size_t total = (end - first - 1) * kGap;
    for (size_t i = first; i < end; ++i) total += widths[i] + marks[i];
    return total;
  }
};

Table::Table(std::vector<Column> columns, std::string title)
    : title_(std::move(title)), columns_(std::move(columns)) {}

void Table::add_row(std::vector<Cell> cells) {
  require(cells.size() == columns_.size(), "table", "a row of {} cells under {} columns",
          cells.size(), columns_.size());
  rows_.push_back(std::move(cells));
}

bool Table::is_best(size_t row, size_t column) const {
  const Best best = columns_[column].best;
  if (best == Best::kNone || !rows_[row][column].value) return false;
  const Cell* winner = nullptr;
  for (const std::vector<Cell>& cells : rows_) {
    const Cell& cell = cells[column];
    if (!cell.value) continue;
    if (winner == nullptr ||
        (best == Best::kHighest ? *cell.value > *winner->value : *cell.value < *winner->value)) {
      winner = &cell;
    }
  }
  const auto as_good = [&](const Cell& cell) {
    return cell.text == winner->text || std::abs(*cell.value - *winner->value) <=
                                            columns_[column].margin * std::abs(*winner->value);
  };
  const bool contested = std::ranges::any_of(rows_, [&](const std::vector<Cell>& cells) {
    return cells[column].value && !as_good(cells[column]);
  });
  return contested && as_good(rows_[row][column]);
}

bool Table::has_best() const {
  for (size_t row = 0; row < rows_.size(); ++row) {
    for (size_t column = 0; column < columns_.size(); ++column) {
      if (is_best(row, column)) return true;
    }
  }
  return false;
}

Table::Layout Table::layout(const std::vector<size_t>& columns) const {
  Layout result{columns, {}, {}};
  for (const size_t column : columns) {
    size_t width = display_width(columns_[column].title), mark = 0;
    for (size_t row = 0; row < rows_.size(); ++row) {
      width = std::max(width, display_width(one_line(rows_[row][column].text)));
      if (is_best(row, column)) mark = 1;
    }
    result.widths.push_back(width);
    result.marks.push_back(mark);
  }
  // A group's heading that is wider than its columns widens the first of them.
  for (size_t first = 0, end = 0; first < columns.size(); first = end) {
    end = result.group_end(*this, first);
    const size_t needed = display_width(columns_[columns[first]].group);
    const size_t span = result.span(first, end);
    if (needed > span) result.widths[first] += needed - span;
  }
  return result;
}

size_t Table::width() const {
  std::vector<size_t> all(columns_.size());
  std::iota(all.begin(), all.end(), size_t{0});
  return all.empty() ? 0 : layout(all).span(0, all.size());
}

std::vector<std::vector<size_t>> Table::blocks(size_t max_width) const {
  std::vector<std::vector<size_t>> result;
  for (size_t column = 0; column < columns_.size(); ++column) {
    if (!result.empty()) {
      std::vector<size_t> wider = result.back();
      wider.push_back(column);
      if (max_width == 0 || wider.size() <= 2 || layout(wider).span(0, wider.size()) <= max_width) {
        result.back() = std::move(wider);
        continue;
      }
    }
    result.push_back(column == 0 ? std::vector<size_t>{0} : std::vector<size_t>{0, column});
  }
  return result;
}

std::string Table::text(bool bold, size_t max_width) const {
  std::string result;
  if (!title_.empty()) result += title_ + "\n";
  bool first_block = true;
  for (const std::vector<size_t>& block : blocks(max_width)) {
    if (!std::exchange(first_block, false)) result += '\n';
    const Layout places = layout(block);
    const auto has_group = [this](size_t column) { return !columns_[column].group.empty(); };
    std::string line;
    if (std::any_of(block.begin(), block.end(), has_group)) {
      for (size_t first = 0, end = 0; first < block.size(); first = end) {
        end = places.group_end(*this, first);
        if (first > 0) line.append(kGap, ' ');
        line += heading(columns_[block[first]].group, places.span(first, end));
      }
      end_line(line);
      result += std::exchange(line, {});
    }
    for (size_t i = 0; i < block.size(); ++i) {
      const Column& column = columns_[block[i]];
      if (i > 0) line.append(kGap, ' ');
      line += padded(column.title, places.widths[i], column.align);
      line.append(places.marks[i], ' ');
    }
    end_line(line);
    result += std::exchange(line, {});
    result += std::string(places.span(0, block.size()), '-') + "\n";
    for (size_t row = 0; row < rows_.size(); ++row) {
      for (size_t i = 0; i < block.size(); ++i) {
        const bool best = is_best(row, block[i]);
        const std::string shown = one_line(rows_[row][block[i]].text);
        // The mark follows the value; what the column has left over is filled outside of both.
        const std::string blanks(places.widths[i] - display_width(shown), ' ');
        const bool left = columns_[block[i]].align == Align::kLeft;
        if (i > 0) line.append(kGap, ' ');
        if (!left) line += blanks;
        line += best && bold ? "\x1b[1m" + shown + "*\x1b[0m" : best ? shown + "*" : shown;
        if (!best) line.append(places.marks[i], ' ');
        if (left) line += blanks;
      }
      end_line(line);
      result += std::exchange(line, {});
    }
  }
  return result;
}

std::string Table::markdown() const {
  // Names come from files: what would end a cell, or be markup, is shown as itself.
  const auto plain = [](const std::string& text) {
    std::string result;
    for (const char c : one_line(text)) {
      if (std::string_view("\\|*_<>[]`").find(c) != std::string_view::npos) result += '\\';
      result += c;
    }
    return result;
  };
  std::string result = title_.empty() ? "" : fmt::format("**{}**\n\n", plain(title_));
  std::string line = "|", rule = "|";
  for (const Column& column : columns_) {
    const std::string title =
        column.group.empty() ? column.title : column.group + " " + column.title;
    line += fmt::format(" {} |", plain(title));
    rule += column.align == Align::kLeft ? "---|" : "---:|";
  }
  result += line + "\n" + rule + "\n";
  for (size_t row = 0; row < rows_.size(); ++row) {
    line = "|";
    for (size_t column = 0; column < columns_.size(); ++column) {
      const std::string text = plain(rows_[row][column].text);
      line += is_best(row, column) ? fmt::format(" **{}** |", text) : fmt::format(" {} |", text);
    }
    result += line + "\n";
  }
  return result;
}

namespace {

std::optional<double> as_double(std::optional<int64_t> value) {
  if (!value) return {};
  return static_cast<double>(*value);
}

Cell name_cell(const ArchitectureResult& result) {
  return result.failure ? result.name + " (failed)" : result.name;
}

// The mean, and of several seeds the standard deviation. A bound is marked as one.
Cell quality_cell(const ArchitectureResult& result) {
  Cell cell = number_cell(result.held_out_bits_per_byte, format_bits);
  if (cell.value && result.bound_samples) cell.text = "≤ " + cell.text;
  const auto count = static_cast<double>(result.seed_bits_per_byte.size());
  if (!cell.value || count < 2) return cell;
  double squares = 0;
  for (const double value : result.seed_bits_per_byte) {
    squares += (value - *cell.value) * (value - *cell.value);
  }
  cell.text += " ± " + format_bits(std::sqrt(squares / (count - 1)));
  return cell;
}

Table quality_table(const CompareRun& run) {
  const auto given = [&run](auto member) {
    return std::any_of(run.architectures.begin(), run.architectures.end(),
                       [member](const ArchitectureResult& a) { return (a.*member).has_value(); });
  };
  const bool images = given(&ArchitectureResult::images);
  const bool sound = given(&ArchitectureResult::sound);
  const bool quality = given(&ArchitectureResult::held_out_bits_per_byte) ||
                       (measured_tasks(run).empty() && !images && !sound);
  const bool peak = given(&ArchitectureResult::train_fraction_of_peak);
  const bool recall = given(&ArchitectureResult::mqar_accuracy);
  std::vector<Column> columns{{"architecture", Align::kLeft}};
  if (is_grouped(run)) columns.push_back({"kind", Align::kLeft});
  columns.push_back({"parameters"});
  if (quality) {
    columns.push_back(
        {"held-out bits/byte", Align::kRight, Best::kLowest, {}, quality_margin(run)});
  }
  if (images) {
    columns.push_back({"accuracy", Align::kRight, Best::kHighest});
    columns.push_back({"images/s", Align::kRight, Best::kHighest});
    columns.push_back({"images/s", Align::kRight, Best::kHighest, "training"});
  }
  if (sound) {
    columns.push_back({"words right", Align::kRight, Best::kHighest});
    columns.push_back({"characters right", Align::kRight, Best::kHighest});
    columns.push_back({"sound s/s", Align::kRight, Best::kHighest});
    columns.push_back({"sound s/s", Align::kRight, Best::kHighest, "training"});
  }
  columns.push_back({"tokens/s", Align::kRight, Best::kHighest, "training"});
  if (peak) columns.push_back({"% of peak", Align::kRight, Best::kHighest, "training"});
  columns.push_back({"memory", Align::kRight, Best::kLowest, "training"});
  if (recall) columns.push_back({"MQAR recall", Align::kRight, Best::kHighest});
  Table table(std::move(columns), "Quality and training");
  for (const ArchitectureResult& a : run.architectures) {
    const double parameters = static_cast<double>(a.parameters);
    std::vector<Cell> cells{name_cell(a)};
    if (is_grouped(run)) cells.push_back(a.kind ? Cell(*a.kind) : Cell());
    cells.push_back(a.parameters > 0 ? Cell(format_count(parameters), parameters) : Cell());
    if (quality) cells.push_back(quality_cell(a));
    if (images) {
      const auto cell = [&](double ImageScore::*value, std::string (*format)(double)) {
        cells.push_back(a.images ? number_cell((*a.images).*value, format) : Cell());
      };
      cell(&ImageScore::accuracy, format_recall);
      cell(&ImageScore::images_per_second, format_count);
      cell(&ImageScore::train_images_per_second, format_count);
    }
    if (sound) {
      const auto cell = [&](double SpeechScore::*value, std::string (*format)(double)) {
        cells.push_back(a.sound ? number_cell((*a.sound).*value, format) : Cell());
      };
      cell(&SpeechScore::word_accuracy, format_recall);
      cell(&SpeechScore::symbol_accuracy, format_recall);
      cell(&SpeechScore::sound_per_second, format_count);
      cell(&SpeechScore::train_sound_per_second, format_count);
    }
    cells.push_back(number_cell(a.train_tokens_per_second, format_count));
    if (peak) cells.push_back(number_cell(a.train_fraction_of_peak, format_percent));
    cells.push_back(number_cell(as_double(a.peak_training_bytes), format_bytes));
    if (recall) cells.push_back(number_cell(a.mqar_accuracy, format_recall));
    table.add_row(std::move(cells));
  }
  return table;
}

// One column a context for each measure.
struct Measure {
  std::string group;
  Best best;
  std::function<std::optional<double>(const InferencePoint&)> value;
  std::string (*format)(double);
};

Table context_table(const CompareRun& run, std::string title,
                    const std::vector<Measure>& measures) {
  const std::vector<int64_t> contexts = measured_contexts(run);
  std::vector<Column> columns{{"architecture", Align::kLeft}};
  for (const Measure& measure : measures) {
    for (const int64_t context : contexts) {
      columns.push_back({format_context(context), Align::kRight, measure.best, measure.group});
    }
  }
  Table table(std::move(columns), std::move(title));
  for (const ArchitectureResult& a : run.architectures) {
    std::vector<Cell> cells{name_cell(a)};
    for (const Measure& measure : measures) {
      for (const int64_t context : contexts) {
        const InferencePoint* point = inference_at(a, context);
        cells.push_back(point == nullptr ? Cell()
                                         : number_cell(measure.value(*point), measure.format));
      }
    }
    table.add_row(std::move(cells));
  }
  return table;
}

// One column a length for each task, of one of the shares that a TaskPoint has.
Table task_table(const CompareRun& run, const std::vector<TaskLengths>& tasks, std::string title,
                 double TaskPoint::*share) {
  std::vector<Column> columns{{"architecture", Align::kLeft}};
  for (const TaskLengths& task : tasks) {
    for (const int64_t length : task.lengths) {
      columns.push_back({format_context(length), Align::kRight, Best::kHighest, task.task});
    }
  }
  Table table(std::move(columns), std::move(title));
  for (const ArchitectureResult& a : run.architectures) {
    std::vector<Cell> cells{name_cell(a)};
    for (const TaskLengths& task : tasks) {
      for (const int64_t length : task.lengths) {
        const TaskPoint* point = task_point(a, task.task, length);
        cells.push_back(point == nullptr ? Cell() : number_cell(point->*share, format_recall));
      }
    }
    table.add_row(std::move(cells));
  }
  return table;
}

// "by chance: mqar 0.4%"
std::string chance_text(const CompareRun& run, const std::vector<TaskLengths>& tasks) {
  std::string text;
  for (const TaskLengths& task : tasks) {
    for (const ArchitectureResult& a : run.architectures) {
      const TaskPoint* point = task_point(a, task.task, task.lengths.front());
      if (point == nullptr) continue;
      text += fmt::format("{}{} {}", text.empty() ? "by chance: " : ", ", task.task,
                          format_recall(point->chance));
      break;
    }
  }
  return text;
}

Table joined(const std::vector<Table>& tables) {
  std::vector<Column> columns = tables.front().columns();
  std::vector<std::vector<Cell>> rows = tables.front().rows();
  for (size_t t = 1; t < tables.size(); ++t) {
    columns.insert(columns.end(), tables[t].columns().begin() + 1, tables[t].columns().end());
    for (size_t row = 0; row < rows.size(); ++row) {
      const std::vector<Cell>& more = tables[t].rows()[row];
      rows[row].insert(rows[row].end(), more.begin() + 1, more.end());
    }
  }
  Table result(std::move(columns));
  for (std::vector<Cell>& row : rows) result.add_row(std::move(row));
  return result;
}

// What marks and failures mean. mark: of the best.
std::string notes_of(const CompareRun& run, const std::vector<Table>& tables,
                     std::string_view mark) {
  std::string notes;
  if (std::ranges::any_of(tables, [](const Table& table) { return table.has_best(); })) {
    notes += fmt::format("{} best of its column", mark);
    const double margin = quality_margin(run);
    if (std::ranges::count_if(run.architectures, [](const ArchitectureResult& a) {
          return a.held_out_bits_per_byte.has_value();
        }) > 1) {
      notes += run.seeds > 1
                   ? fmt::format(
                         "; bits/byte within {} count as equal: two standard errors of {} "
                         "seeds",
                         format_percent(margin), run.seeds)
                   : fmt::format("; bits/byte within {} count as equal: one seed cannot tell more",
                                 format_percent(margin));
    }
    notes += '\n';
  }
  for (const ArchitectureResult& a : run.architectures) {
    if (a.failure) notes += fmt::format("{} failed: {}\n", one_line(a.name), one_line(*a.failure));
  }
  if (run.data.gzip_bits_per_byte) {
    notes += fmt::format("gzip -9 on the same held-out text: {} bits/byte\n",
                         format_bits(*run.data.gzip_bits_per_byte));
  }
  return notes;
}

}  // namespace

std::vector<Table> comparison_tables(const CompareRun& given) {
  const CompareRun run = in_order(given);
  std::vector<Table> tables{quality_table(run)};
  const std::vector<TaskLengths> tasks = measured_tasks(run);
  if (!tasks.empty()) {
    tables.push_back(task_table(run, tasks, "Examples solved by length (all answers of each)",
                                &TaskPoint::accuracy));
    tables.push_back(
        task_table(run, tasks, fmt::format("Answers right by length ({})", chance_text(run, tasks)),
                   &TaskPoint::answers));
  }
  if (measured_contexts(run).empty()) return tables;
  tables.push_back(context_table(
      run, "Inference speed by context",
      {{"prompt tokens/s", Best::kHighest,
        [](const InferencePoint& point) { return point.prompt_tokens_per_second; }, format_count},
       {"decode tokens/s", Best::kHighest,
        [](const InferencePoint& point) { return point.decode_tokens_per_second; },
        format_count}}));
  tables.push_back(context_table(
      run, "State of one sequence by context",
      {{"state", Best::kLowest,
        [](const InferencePoint& point) { return as_double(point.state_bytes); }, format_bytes}}));
  return tables;
}

std::string compare_table(const CompareRun& run, bool bold, size_t max_width) {
  const std::vector<Table> tables = comparison_tables(run);
  std::string text;
  const Table whole = joined(tables);
  // Columns of tasks need the titles that say which share they are.
  const bool one = measured_tasks(run).empty();
  if (one && (max_width == 0 || whole.width() <= max_width)) {
    text = whole.text(bold);
  } else {
    for (const Table& table : tables) {
      if (!text.empty()) text += '\n';
      text += table.text(bold, max_width);
    }
  }
  const std::string notes = notes_of(run, tables, "*");
  return notes.empty() ? text : text + "\n" + notes;
}

std::string compare_markdown(const CompareRun& run) {
  const std::vector<Table> tables = comparison_tables(run);
  std::string text = fmt::format("{} · {}, {} threads · {} · {} each, seed {}\n",
                                 one_line(run.date), one_line(run.machine.cpu), run.machine.threads,
                                 one_line(run.title), budget_words(run), run.seed);
  for (const Table& table : tables) text += "\n" + table.markdown();
  std::istringstream notes(notes_of(run, tables, "Bold:"));  // each a paragraph
  for (std::string note; std::getline(notes, note);) text += "\n" + note + "\n";
  return text;
}

}  // namespace pronghorn::lab
