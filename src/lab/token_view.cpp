#include "lab/token_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "lab/page.h"
#include "lab/text.h"

namespace pronghorn::embedded {
extern const std::string_view kTokenPage;
}

namespace pronghorn::lab {
namespace {

// Backgrounds of a 256-colour terminal from nothing to strong, and the ink that is read on each.
struct TerminalColour {
  int background, ink;
};
constexpr std::array<TerminalColour, 6> kTerminalColours = {
    {{0, 0}, {230, 16}, {223, 16}, {216, 16}, {209, 16}, {202, 16}}};

size_t colour_of(double strength) {
  const double scaled = std::clamp(strength, 0.0, 1.0) * (kTerminalColours.size() - 1);
  return static_cast<size_t>(std::ceil(scaled - 1e-9));
}

std::string coloured(std::string_view text, double strength) {
  const size_t index = colour_of(strength);
  if (index == 0) return std::string(text);
  const auto [background, ink] = kTerminalColours[index];
  // Colours end before a line break, or the terminal paints to its edge.
  std::string result;
  while (true) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    if (!line.empty()) {
      result += fmt::format("\x1b[48;5;{};38;5;{}m{}\x1b[0m", background, ink, line);
    }
    if (end == std::string_view::npos) return result;
    result += '\n';
    text.remove_prefix(end + 1);
  }
}

// Tokens whose characters are whole: a token that ends inside a character is joined to the next,
// and the stronger colour and both notes hold for the two.
std::vector<ViewedToken> whole_characters(const std::vector<ViewedToken>& tokens) {
  const auto needs_more = [](const std::string& bytes) {
    // Where the last character begins, and how long its first byte says that it is.
    size_t start = bytes.size();
    while (start > 0 && bytes.size() - start < 4) {
      --start;
      const auto byte = static_cast<unsigned char>(bytes[start]);
      if ((byte & 0xc0) == 0x80) continue;
      const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
      return bytes.size() - start < length;
    }
    return false;
  };
  std::vector<ViewedToken> whole;
  bool open = false;
  for (const ViewedToken& token : tokens) {
    if (open) {
      ViewedToken& last = whole.back();
      last.bytes += token.bytes;
      last.strength = std::max(last.strength, token.strength);
      last.note += "; " + token.note;
    } else {
      whole.push_back(token);
    }
    open = needs_more(whole.back().bytes);
  }
  return whole;
}

// As one_line, but for line breaks and tabs.
std::string printable(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t end = text.find_first_of("\n\t");
    result += one_line(text.substr(0, end));
    if (end == std::string_view::npos) break;
    result += text[end];
    text.remove_prefix(end + 1);
  }
  return result;
}

}  // namespace

std::string terminal_text(const TokenView& view, bool colours) {
  std::string result;
  const auto mark = [](double strength) {
    return fmt::format("{:.0f}", std::clamp(strength, 0.0, 1.0) * 9);
  };
  for (const ViewedToken& token : whole_characters(view.tokens)) {
    const std::string text = printable(token.bytes);
    result += colours ? coloured(text, token.strength)
                      : fmt::format("{}[{}]", text, mark(token.strength));
  }
  result += "\n\n";
  for (const ViewedColour& colour : view.legend) {
    result += fmt::format(
        "{} {}\n",
        colours ? coloured(" text ", colour.strength) : fmt::format("[{}]", mark(colour.strength)),
        colour.meaning);
  }
  return result;
}

std::string html_page(const TokenView& view) {
  std::string facts, legend, text;
  for (const std::string& fact : view.facts) {
    facts += fmt::format("<p>{}</p>\n", html_escape(fact));
  }
  for (const ViewedColour& colour : view.legend) {
    legend += fmt::format("<span><b style=\"--s:{:.2f}\">text</b>{}</span>\n", colour.strength,
                          html_escape(colour.meaning));
  }
  for (const ViewedToken& token : whole_characters(view.tokens)) {
    text += fmt::format("<span style=\"--s:{:.2f}\" title=\"{}\">{}</span>", token.strength,
                        html_escape(token.note), html_escape(token.bytes));
  }
  return filled_page(
      embedded::kTokenPage,
      {{"title", html_escape(view.title)}, {"facts", facts}, {"legend", legend}, {"text", text}});
}

}  // namespace pronghorn::lab
