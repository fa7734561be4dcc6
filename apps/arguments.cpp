#include "arguments.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace pronghorn::app {
namespace {

// Begins every value on its way through CLI11, which then finds no bracket, dash or empty text.
constexpr char kMark = '\1';

class ArgumentReader {
 public:
  ArgumentReader(const CLI::App& command, std::vector<std::string> arguments)
      : command_(command), arguments_(std::move(arguments)) {}

  // Positional arguments first: no option of CLI11 takes one of them for its own.
  std::vector<std::string> read() {
    bool options = true;
    while (place_ < arguments_.size()) {
      const std::string argument = arguments_[place_++];
      if (options && argument == "--") {
        options = false;
      } else if (options && argument.size() > 1 && argument[0] == '-') {
        read_option(argument);
      } else {
        positional_.push_back(argument);
      }
    }
    give_back();
    std::vector<std::string> plain;
    for (const std::string& value : positional_) plain.push_back(kMark + value);
    plain.insert(plain.end(), others_.begin(), others_.end());
    for (const auto& [option, value] : values_) {
      plain.push_back(fmt::format("--{}={}{}", option->get_lnames().front(), kMark, value));
    }
    return plain;
  }

 private:
  // The option that an argument names, or null. value: what follows its name in the argument.
  const CLI::Option* find(const std::string& argument, std::optional<std::string>* value) const {
    const bool is_long = argument.starts_with("--");
    const size_t end = is_long ? std::min(argument.find('='), argument.size()) : 2;
    const CLI::Option* option = command_.get_option_no_throw(argument.substr(0, end));
    if (option != nullptr && end < argument.size()) {
      *value = argument.substr(end + (argument[end] == '=' ? 1 : 0));
    }
    return option;
  }

  static bool is_flag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

  void read_option(const std::string& argument) {
    std::optional<std::string> value;
    const CLI::Option* option = find(argument, &value);
    if (option == nullptr || is_flag(*option)) {
      others_.push_back(argument);
      return;
    }
    const std::string name = "--" + option->get_lnames().front();
    const bool attached = value.has_value();
    if (!value) {
      if (place_ == arguments_.size()) throw UsageError(name, "needs a value");
      value = arguments_[place_++];
      std::optional<std::string> ignored;
      if (value->size() > 1 && value->front() == '-' && find(*value, &ignored) != nullptr) {
        throw UsageError(name, "needs a value, and is followed by an option",
                         fmt::format("where {} is the value, write {}={}", quote(*value), name,
                                     printable(*value, kQuoteLength)));
      }
    }
    if (value->empty() && option->get_type_name().find("TEXT") == std::string::npos) {
      throw UsageError(name, "needs a value, not an empty text");
    }
    values_.emplace_back(option, *value);
    if (!option->get_allow_extra_args() || attached) return;
    lists_.push_back({values_.size() - 1, 1});
    while (place_ < arguments_.size() &&
           (arguments_[place_] == "-" || !arguments_[place_].starts_with('-'))) {
      values_.emplace_back(option, arguments_[place_++]);
      ++lists_.back().size;
    }
  }

  // The last list of several values has taken what the command itself needs.
  void give_back() {
    size_t needed = 0;
    bool many = false;
    for (const CLI::Option* option : command_.get_options()) {
      if (!option->get_positional()) continue;
      ++needed;
      many = many || option->get_allow_extra_args();
    }
    if (positional_.size() >= needed) return;
    const size_t missing = needed - positional_.size();
    while (!lists_.empty() && lists_.back().size <= missing) lists_.pop_back();
    if (lists_.empty()) return;  // the command says what it misses
    const List list = lists_.back();
    const std::string name = "--" + values_[list.first].first->get_lnames().front();
    if (many && list.size > missing + 1) {
      throw UsageError(name, "takes all that follows, and nothing is left for the command itself",
                       fmt::format("put the other arguments before {}, or after --", name));
    }
    const auto end = values_.begin() + static_cast<std::ptrdiff_t>(list.first + list.size);
    const auto begin = end - static_cast<std::ptrdiff_t>(missing);
    for (auto it = begin; it != end; ++it) positional_.push_back(it->second);
    values_.erase(begin, end);
  }

  // Values that one occurrence of an option took: places in values_.
  struct List {
    size_t first, size;
  };

  const CLI::App& command_;
  std::vector<std::string> arguments_;
  size_t place_ = 0;
  std::vector<std::string> positional_, others_;  // others: flags, and what is unknown
  std::vector<std::pair<const CLI::Option*, std::string>> values_;
  std::vector<List> lists_;
};

}  // namespace

void protect_values(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands({})) {
    for (CLI::Option* option : command->get_options()) {
      if (option->get_items_expected_max() == 0) continue;
      option->transform(
          [](std::string value) { return value.starts_with(kMark) ? value.substr(1) : value; });
    }
  }
}

std::vector<std::string> plain_arguments(const CLI::App& app,
                                         const std::vector<std::string>& arguments) {
  if (arguments.empty()) return arguments;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() != arguments.front()) continue;
    std::vector<std::string> plain =
        ArgumentReader(*command, {arguments.begin() + 1, arguments.end()}).read();
    plain.insert(plain.begin(), arguments.front());
    return plain;
  }
  return arguments;
}

std::string as_written(std::string text) {
  std::erase(text, kMark);
  return text;
}

}  // namespace pronghorn::app
