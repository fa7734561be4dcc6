#include "output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "base/files.h"

namespace pronghorn::app {

void throw_output_error(int code) {
  if (code == EPIPE) throw OutputClosed();
  throw Error("standard output", fmt::format("cannot write: {}", std::strerror(code)),
              code == ENOSPC ? "free some disk space" : "");
}

void write_output(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) throw_output_error(errno);
  flush_output();
}

void flush_output() {
  errno = 0;
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    throw_output_error(errno == 0 ? EIO : errno);
}

void keep_standard_descriptors() {
  for (int descriptor = 0; descriptor < 3; ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) != -1 || errno != EBADF) continue;
    // Opened the wrong way round, so that using it is still an error. It gets the lowest free
    // number, which is this one.
    const int opened = ::open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY);
    if (opened >= 0 && opened != descriptor) ::close(opened);
  }
}

std::string read_input(const std::filesystem::path& path, uint64_t limit) {
  if (path != "-") return read_file(path, limit);
  std::string bytes;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(STDIN_FILENO, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw Error("standard input", fmt::format("cannot read: {}", std::strerror(errno)));
    }
    if (count == 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(count));
    require(bytes.size() <= limit, "standard input", "more than the {} bytes allowed here", limit);
  }
}

}  // namespace pronghorn::app
