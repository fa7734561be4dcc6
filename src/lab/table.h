// Tables of results: aligned text for terminals, with the best of each column marked.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lab/results.h"

namespace pronghorn::lab {

enum class Align { kLeft, kRight };
enum class Best { kNone, kHighest, kLowest };

struct Column {
  std::string title;
  Align align = Align::kRight;
  Best best = Best::kNone;
  std::string group = {};  // a heading that neighbouring columns of the same group share
  double margin = 0;       // relative difference from the best up to which a cell is as good
};

// A cell: what is shown, and the number behind it if it takes part in finding the best.
struct Cell {
  Cell() = default;  // missing: shown as "-"
  Cell(std::string shown) : text(std::move(shown)) {}
  Cell(const char* shown) : text(shown) {}
  Cell(std::string shown, double number) : text(std::move(shown)), value(number) {}

  std::string text = "-";
  std::optional<double> value;
};

// The cell of a value: missing if absent, not a number or infinite.
Cell number_cell(std::optional<double> value, const std::function<std::string(double)>& format);

// Rows under columns. Add rows, then print or walk through them.
class Table {
 public:
  explicit Table(std::vector<Column> columns, std::string title = {});

  // Throws Error unless there is one cell a column.
  void add_row(std::vector<Cell> cells);

  const std::string& title() const { return title_; }
  const std::vector<Column>& columns() const { return columns_; }
  const std::vector<std::vector<Cell>>& rows() const { return rows_; }

  // Whether a cell is the best of its column, or reads the same as the best, or is within the
  // margin of it. Nothing is best in a column with fewer than two different numbers.
  bool is_best(size_t row, size_t column) const;

  // Whether any cell is, so that the mark wants to be explained.
  bool has_best() const;

  // Columns that the widest line needs when the table is not broken.
  size_t width() const;

  // Lines of text, each ended by a newline. The best cells carry a "*", and bold type if asked.
  // max_width: 0 for no limit; otherwise a wider table is broken into blocks that each repeat the
  // first column. Control characters in cells are replaced, so that a name cannot drive the
  // terminal.
  std::string text(bool bold = false, size_t max_width = 0) const;

  // The same as a table of Markdown, the best cells in bold type.
  std::string markdown() const;

 private:
  struct Layout;
  Layout layout(const std::vector<size_t>& columns) const;
  std::vector<std::vector<size_t>> blocks(size_t max_width) const;

  std::string title_;
  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

// The tables of a comparison, one row an architecture in the order of in_order(): quality and
// training; accuracy of synthetic tasks by length; prompt and decode speed by context; state by
// context. All but the first are omitted if nothing was measured.
std::vector<Table> comparison_tables(const CompareRun& run);

// The comparison for a terminal: one table if it fits in max_width columns, else several of the
// same rows; then gzip's bits per byte and what failed.
std::string compare_table(const CompareRun& run, bool bold = false, size_t max_width = 120);

// The same tables and notes in Markdown, after a line of machine, date, data and budget.
std::string compare_markdown(const CompareRun& run);

}  // namespace pronghorn::lab
