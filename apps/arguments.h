// The command line, read so that every value reaches its option as it was written: with brackets,
// commas, leading dashes or nothing in it, before or after what has no option.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace pronghorn::app {

// Has every option of every command take values as plain_arguments() passes them.
void protect_values(CLI::App& app);

// The arguments (without the program's name) in a form that CLI11 takes literally; those before a
// command, or of an unknown one, as they are. An option that takes one value takes what follows it,
// unless that is an option of the command. One that takes a list takes what follows up to an
// argument with a dash, but leaves what the command needs without an option. After "--" nothing is
// an option. Throws UsageError for a missing value, and for a list that leaves open where it ends.
std::vector<std::string> plain_arguments(const CLI::App& app,
                                         const std::vector<std::string>& arguments);

// Takes away what plain_arguments() added: for messages.
std::string as_written(std::string text);

}  // namespace pronghorn::app
