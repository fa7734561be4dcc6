// From a template's text to tokens, with what white space control takes away.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "formats/jinja/value.h"

namespace pronghorn::jinja {

// What does not parse.
struct SyntaxFailure : std::runtime_error {
  SyntaxFailure(const std::string& message, int at_line)
      : std::runtime_error(message), line(at_line) {}
  int line;
};

struct Token {
  enum class Kind : uint8_t {
    data,            // text between tags
    variable_begin,  // {{
    variable_end,
    block_begin,  // {%
    block_end,
    name,
    constant,  // a number or string: `value`
    symbol,    // an operator or bracket
    end,
  };
  Kind kind = Kind::end;
  int line = 1;
  std::string text = {};  // of data, names and symbols
  Value value = {};
};

// Throws SyntaxFailure.
std::vector<Token> tokenize(std::string_view source);

}  // namespace pronghorn::jinja
