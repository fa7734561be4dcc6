// A text with one colour per token: what a model made of each, for terminals and as a page.
#pragma once

#include <string>
#include <vector>

namespace pronghorn::lab {

struct ViewedToken {
  std::string bytes;    // as the tokenizer has them; a character may be spread over several tokens
  double strength = 0;  // 0 (none) to 1 (deepest colour)
  std::string note;     // shown when a reader points at the token
};

// One colour of the legend.
struct ViewedColour {
  double strength = 0;
  std::string meaning;
};

struct TokenView {
  std::string title;
  std::vector<std::string> facts;  // lines under the title
  std::vector<ViewedColour> legend;
  std::vector<ViewedToken> tokens;
};

// The text for a terminal, with a legend. colours: escape sequences of 256-colour terminals;
// without them a mark of the strength, 0 to 9, follows each token.
std::string terminal_text(const TokenView& view, bool colours);

// The same as one self-contained HTML page.
std::string html_page(const TokenView& view);

}  // namespace pronghorn::lab
