// Tensor rules: which tensors of a published checkpoint are which of ours, and what lies between
// them. A family is mostly a list of these.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "model/transform.h"

namespace pronghorn {

// Names may hold stars. A star stands for the shortest run of characters that lets the whole name
// match, so "layers.*.mixer.*" is every parameter of every mixer; what it stood for in our name
// replaces the star of the same number in the others. All tensors of a rule that are ours must be
// there, or none.
struct TensorRule {
  std::vector<std::string> ours;
  std::vector<std::string> published;
  Transform transform;  // published -> ours; the default renames
};

// How one published format holds a model's tensors: of several rules that fit a tensor the first
// counts. A family has one such list for each format that it is published in.
struct TensorRules {
  std::vector<TensorRule> rules;
  // Published tensors that a model does without (stars as above): what can be derived from others.
  std::vector<std::string> passed_over = {};
  // Other names that published tensors may have, for names of the rules: tried in this order where
  // a checkpoint has none of the rule's own name.
  struct Alias {
    std::string name, other;
  };
  std::vector<Alias> aliases = {};
  // Other layouts of some tensors: such a rule comes first where a checkpoint has a tensor of its
  // first published name. What is written has the layout of `rules`.
  std::vector<TensorRule> layouts = {};
};

// The rules with those of `layouts` in front that this checkpoint asks for.
TensorRules rules_for(TensorRules rules, const std::vector<std::string>& checkpoint);

// A rule applied to tensors of a model.
struct BoundRule {
  std::vector<size_t> ours;  // places in the list of names
  std::vector<std::string> published;
  Transform transform;
};

// Every name in exactly one rule. Throws Error for a name that no rule fits, for one whose
// companions of the same rule are missing or taken, and for a published name that occurs twice.
std::vector<BoundRule> bind_rules(const TensorRules& rules, const std::vector<std::string>& names);

// Other names of a published tensor.
std::vector<std::string> other_names(const TensorRules& rules, std::string_view published);

// Whether the list says so of this published name.
bool is_passed_over(const TensorRules& rules, std::string_view published);

// "experts.#.up", 3 -> "experts.0.up", "experts.1.up", "experts.2.up"
std::vector<std::string> numbered(std::string_view name, size_t count);

}  // namespace pronghorn
