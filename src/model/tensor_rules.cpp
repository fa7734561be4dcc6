#include "model/tensor_rules.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"

namespace pronghorn {
namespace {

// What the stars of `pattern` stand for in `name`; nothing if it does not match.
std::optional<std::vector<std::string>> match(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) {
    if (pattern != name) return {};
    return std::vector<std::string>{};
  }
  if (!name.starts_with(pattern.substr(0, star))) return {};
  name.remove_prefix(star);
  pattern.remove_prefix(star + 1);
  for (size_t length = 0; length <= name.size(); ++length) {
    auto rest = match(pattern, name.substr(length));
    if (!rest) continue;
    rest->insert(rest->begin(), std::string(name.substr(0, length)));
    return rest;
  }
  return {};
}

std::string fill(std::string_view pattern, const std::vector<std::string>& stars) {
  std::string name;
  size_t next = 0;
  for (const char c : pattern) {
    if (c != '*') {
      name += c;
      continue;
    }
    require(next < stars.size(), "tensor rules", "'{}' has more stars than its rule's first name",
            pattern);
    name += stars[next++];
  }
  return name;
}

class Binder {
 public:
  explicit Binder(const std::vector<std::string>& names) : names_(names), taken_(names.size()) {
    for (size_t i = 0; i < names.size(); ++i) places_[names[i]] = i;
  }

  std::vector<BoundRule> bind(const TensorRules& rules) {
    std::vector<BoundRule> bound;
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!taken_[i]) bound.push_back(bind(rules, names_[i]));
    }
    return bound;
  }

 private:
  BoundRule bind(const TensorRules& rules, const std::string& name) {
    for (const TensorRule& rule : rules.rules) {
      for (const std::string& pattern : rule.ours) {
        if (const auto stars = match(pattern, name)) return bound(rule, *stars, name);
      }
    }
    throw Error("tensor rules", fmt::format("none fits the tensor '{}' of this model", name));
  }

  BoundRule bound(const TensorRule& rule, const std::vector<std::string>& stars,
                  const std::string& name) {
    BoundRule result;
    for (const std::string& pattern : rule.ours) {
      const std::string companion = fill(pattern, stars);
      const auto place = places_.find(companion);
      require(
          place != places_.end() && !taken_[place->second], "tensor rules",
          "the rule of '{}' also needs '{}', which this model does not have or another rule has",
          name, companion);
      taken_[place->second] = true;
      result.ours.push_back(place->second);
    }
    for (const std::string& pattern : rule.published) {
      result.published.push_back(fill(pattern, stars));
      require(published_.insert(result.published.back()).second, "tensor rules",
              "two rules give '{}'", result.published.back());
    }
    result.transform = rule.transform;
    return result;
  }

  const std::vector<std::string>& names_;
  std::vector<bool> taken_;
  std::map<std::string, size_t> places_;
  std::set<std::string> published_;
};

}  // namespace

std::vector<BoundRule> bind_rules(const TensorRules& rules, const std::vector<std::string>& names) {
  return Binder(names).bind(rules);
}

TensorRules rules_for(TensorRules rules, const std::vector<std::string>& checkpoint) {
  std::vector<TensorRule> asked_for;
  for (TensorRule& layout : rules.layouts) {
    const std::string& first = layout.published.front();
    if (std::ranges::any_of(
            checkpoint, [&](const std::string& name) { return match(first, name).has_value(); })) {
      asked_for.push_back(std::move(layout));
    }
  }
  rules.layouts.clear();
  rules.rules.insert(rules.rules.begin(), asked_for.begin(), asked_for.end());
  return rules;
}

std::vector<std::string> other_names(const TensorRules& rules, std::string_view published) {
  std::vector<std::string> names;
  for (const TensorRules::Alias& alias : rules.aliases) {
    if (const auto stars = match(alias.name, published)) names.push_back(fill(alias.other, *stars));
  }
  return names;
}

bool is_passed_over(const TensorRules& rules, std::string_view published) {
  for (const std::string& pattern : rules.passed_over) {
    if (match(pattern, published)) return true;
  }
  return false;
}

std::vector<std::string> numbered(std::string_view name, size_t count) {
  const size_t place = name.find('#');
  require(place != std::string_view::npos, "tensor rules", "'{}' has no place for a number", name);
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) {
    names.push_back(fmt::format("{}{}{}", name.substr(0, place), i, name.substr(place + 1)));
  }
  return names;
}

}  // namespace pronghorn
