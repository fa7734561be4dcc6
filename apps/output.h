// Standard input and output of commands.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>

namespace pronghorn::app {

// Nobody reads standard output any more (`| head`): the work ends, and that is no error.
struct OutputClosed : std::exception {
  const char* what() const noexcept override { return "standard output is closed"; }
};

// Writes to standard output, at once. Throws OutputClosed, or Error where the output is full or was
// never open.
void write_output(std::string_view text);
// Throws what write_output() throws for the code of a failed write.
[[noreturn]] void throw_output_error(int code);
// Makes sure that what was printed is written; throws the same.
void flush_output();

// Descriptors 0 to 2 that are closed when the program starts would be given to the first files that
// it opens, and messages would end up in those. Call this first.
void keep_standard_descriptors();

// Larger prompts are certainly a mistake: tokens of one take many times its memory.
constexpr uint64_t kMaxPromptBytes = uint64_t{1} << 28;

// The bytes of a file, or of standard input for "-". Throws Error beyond `limit` bytes.
std::string read_input(const std::filesystem::path& path, uint64_t limit = kMaxPromptBytes);

}  // namespace pronghorn::app
