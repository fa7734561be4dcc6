#include "grammar/text_rules.h"

#include "base/error.h"
#include "grammar/json_rules.h"
#include "grammar/json_schema.h"

namespace pronghorn {

int32_t add_text_until(GrammarRules& rules, std::string_view end) {
  require(!end.empty(), "grammar", "a text until nothing");
  // A rule for each number of characters of `end` that have come. After one that does not fit, as
  // many count as the text now ends with (Knuth, Morris and Pratt).
  const auto after = [&](size_t count, char next) {
    const std::string text = std::string(end.substr(0, count)) + next;
    size_t fits = std::min(text.size(), end.size());
    while (!std::string_view(text).ends_with(end.substr(0, fits))) --fits;
    return fits;
  };
  std::vector<int32_t> states;
  for (size_t i = 0; i < end.size(); ++i) states.push_back(rules.declare("text"));
  const auto state = [&](size_t count) {
    return count == end.size() ? rules.empty() : rules.rule(states[count]);
  };
  for (size_t i = 0; i < end.size(); ++i) {
    CodeSet known;
    std::vector<int32_t> parts;
    for (const char c : end) {
      const auto code = static_cast<uint8_t>(c);
      if (known.contains(code)) continue;
      known.add(code);
      parts.push_back(rules.sequence({rules.characters({code, code}), state(after(i, c))}));
    }
    parts.push_back(rules.sequence({rules.characters(known.complement()), state(0)}));
    parts.push_back(rules.literal(token_mark(end)));
    rules.define(states[i], rules.choice(std::move(parts)));
  }
  return rules.rule(states[0]);
}

int32_t add_tool_call(GrammarRules& rules, const std::vector<CallableTool>& tools) {
  JsonRules json(rules);
  std::vector<int32_t> calls;
  for (const CallableTool& tool : tools) {
    const std::string name = nlohmann::json(tool.name).dump();
    const int32_t arguments =
        tool.arguments.is_null() ? json.any_object() : add_schema(rules, tool.arguments);
    calls.push_back(rules.sequence({rules.literal("{\"name\": " + name + ", \"arguments\": "),
                                    arguments, rules.literal("}")}));
  }
  return rules.sequence({rules.literal("<tool_call>\n"), rules.choice(std::move(calls)),
                         rules.literal("\n</tool_call>")});
}

int32_t add_reasoning(GrammarRules& rules, int32_t answer, bool in_reasoning, bool may_reason) {
  if (!in_reasoning && !may_reason) return answer;
  constexpr int64_t kLines = 4;  // between the reasoning and the answer
  CodeSet blank;
  blank.add(' ');
  blank.add('\n');
  const int32_t rest = rules.sequence({add_text_until(rules, "</think>"),
                                       rules.repeat(rules.characters(blank), 0, kLines), answer});
  if (in_reasoning) return rest;
  return rules.choice({answer, rules.sequence({rules.literal("<think>"), rest})});
}

}  // namespace pronghorn
