// Parts of grammars for answers of chat models: what stands around the text that a schema is about.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/grammar_rules.h"

namespace pronghorn {

// Any text up to the first `end`, which is part of it, or up to the special token of that text.
// end: ASCII, not empty.
int32_t add_text_until(GrammarRules& rules, std::string_view end);

// A tool that a model may call, with the schema of its arguments (null: any object).
struct CallableTool {
  std::string name;
  nlohmann::ordered_json arguments;
};

// A call of one of the tools between <tool_call> and </tool_call>, as the templates of Qwen and
// Hermes have it. Throws what add_schema() does.
int32_t add_tool_call(GrammarRules& rules, const std::vector<CallableTool>& tools);

// An answer that begins inside of the reasoning (in_reasoning), or may begin with one between
// <think> and </think> (may_reason), and then is `answer`.
int32_t add_reasoning(GrammarRules& rules, int32_t answer, bool in_reasoning, bool may_reason);

}  // namespace pronghorn
