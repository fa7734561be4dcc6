#include "base/files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

constexpr size_t kWriteBuffer = size_t{1} << 20;
constexpr const char* kPartial = ".partial";

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view action) {
  const int code = errno;
  std::string_view remedy;
  if (code == ENOENT) remedy = "check the path";
  if (code == EACCES || code == EPERM) remedy = "check the permissions";
  if (code == ENOSPC || code == EDQUOT) remedy = "free some disk space and run again";
  if (code == ELOOP) remedy = "it is a link that leads back to itself";
  if (code == EMFILE) remedy = "too many files are open: see ulimit -n";
  if (code == ENOMEM) {
    remedy =
        "the process may not take that much address space: see ulimit -v, or use a smaller file";
  }
  throw Error(path.string(), fmt::format("cannot {}: {}", action, std::strerror(code)), remedy);
}

// Throws Error for what is no regular file. `mode` as in stat(2).
void refuse_unless_regular(mode_t mode, const std::filesystem::path& path) {
  if (S_ISREG(mode)) return;
  if (S_ISDIR(mode)) {
    throw Error(path.string(), "is a directory, not a file", "name a file inside it");
  }
  const std::string_view what = S_ISFIFO(mode)   ? "a pipe"
                                : S_ISSOCK(mode) ? "a socket"
                                                 : "a device";
  throw Error(path.string(), fmt::format("is {}, not a file", what),
              "copy what it gives into a file");
}

// A pipe that this process was given, whose other end somebody holds: <(command) of a shell.
bool is_given_pipe(const std::filesystem::path& path, mode_t mode) {
  const std::string& name = path.native();
  return S_ISFIFO(mode) && (name.starts_with("/dev/fd/") || name.starts_with("/proc/self/fd/") ||
                            name == "/dev/stdin");
}

// A file open for reading. Opening never waits: a named pipe without a writer would, for ever.
class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path)
      : value(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (value < 0) fail(path, "open");
  }
  ~Descriptor() { ::close(value); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int value;
};

struct stat status_of(int descriptor, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail(path, "read");
  return status;
}

// The names of files that are being written, for a handler of signals: it may run at any point of
// any thread, so that entries are only ever added, and used again.
struct WrittenFile {
  std::atomic<const char*> name{nullptr};
  WrittenFile* next = nullptr;
};
std::atomic<WrittenFile*> written_files{nullptr};
std::atomic<bool> ended_by_signal{false};

void add_written(const char* name) {
  for (WrittenFile* file = written_files; file != nullptr; file = file->next) {
    const char* none = nullptr;
    if (file->name.compare_exchange_strong(none, name)) return;
  }
  auto* file = new WrittenFile;  // for ever
  file->name = name;
  file->next = written_files;
  while (!written_files.compare_exchange_weak(file->next, file)) {
  }
}

void drop_written(const char* name) {
  for (WrittenFile* file = written_files; file != nullptr; file = file->next) {
    const char* expected = name;
    if (file->name.compare_exchange_strong(expected, nullptr)) break;
  }
  // A handler that did not see this reads the name still: it must not go away under its eyes.
  while (ended_by_signal) ::pause();
}

void end_by_signal(int signal) {
  ended_by_signal = true;
  for (const WrittenFile* file = written_files; file != nullptr; file = file->next) {
    if (const char* name = file->name) ::unlink(name);
  }
  ::raise(signal);        // to which the system answers again
  ::_exit(128 + signal);  // but not where this is the first process, as in a container
}

// NAME.PID.partial of a process that is gone.
bool is_abandoned(const std::filesystem::path& path) {
  if (path.extension() != kPartial) return false;
  const std::string process = path.stem().extension().string();
  if (process.size() < 2) return false;
  int pid = 0;
  const char* const last = process.data() + process.size();
  const auto [end, error] = std::from_chars(process.data() + 1, last, pid);
  if (error != std::errc() || end != last) return false;
  return pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH;
}

// A rename must survive a crash too.
void sync_folder_of(const std::filesystem::path& path) {
  const auto parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  ::fsync(directory);
  ::close(directory);
}

}  // namespace

std::string read_file(const std::filesystem::path& path, uint64_t limit) {
  const Descriptor file(path);
  const struct stat status = status_of(file.value, path);
  if (is_given_pipe(path, status.st_mode)) {
    ::fcntl(file.value, F_SETFL, 0);  // wait for what its writer writes
  } else {
    refuse_unless_regular(status.st_mode, path);
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > limit) {
    throw Error(path.string(), fmt::format("{} bytes, more than the {} allowed here", size, limit));
  }
  std::string bytes(size, '\0');
  size_t done = 0;
  while (true) {
    // A file without a size (a pipe, /proc) is read until its end.
    if (done == bytes.size()) {
      if (size != 0) break;
      bytes.resize(bytes.size() + kWriteBuffer);
      if (bytes.size() > limit) throw Error(path.string(), "longer than allowed here");
    }
    const ssize_t count = ::read(file.value, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "read");
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  bytes.resize(done);
  return bytes;
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  // Renaming onto a device or a pipe would put a file in its place.
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0) refuse_unless_regular(status.st_mode, path_);
  temporary_ = path_;
  temporary_ += fmt::format(".{}{}", ::getpid(), kPartial);
  add_written(temporary_.c_str());  // first: a signal may come between
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ >= 0) return;
  const int code = errno;
  drop_written(temporary_.c_str());
  errno = code;
  fail(path_, "write");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (temporary_.empty()) return;
  ::unlink(temporary_.c_str());
  drop_written(temporary_.c_str());
}

void AtomicFile::write(const void* bytes, size_t count) {
  buffer_.append(static_cast<const char*>(bytes), count);
  if (buffer_.size() >= kWriteBuffer) flush();
}

void AtomicFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t count = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, "write");
    done += static_cast<size_t>(count);
  }
  buffer_.clear();
}

void AtomicFile::finish() {
  flush();
  std::string().swap(buffer_);
  if (::fsync(descriptor_) != 0) fail(path_, "write");
  if (::close(std::exchange(descriptor_, -1)) != 0) fail(path_, "write");
}

void AtomicFile::appear() {
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "replace");
  drop_written(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::commit() {
  if (descriptor_ >= 0) finish();
  appear();
  sync_folder_of(path_);
}

void AtomicFile::commit_together(std::deque<AtomicFile>& files) {
  for (AtomicFile& file : files) {
    if (file.descriptor_ >= 0) file.finish();
  }
  for (AtomicFile& file : files) file.appear();
  if (!files.empty()) sync_folder_of(files.front().path_);
}

void remove_abandoned_files(const std::filesystem::path& directory, bool below) {
  std::error_code code;
  std::vector<std::filesystem::path> abandoned;
  for (auto it = std::filesystem::recursive_directory_iterator(directory, code);
       !code && it != std::filesystem::end(it); it.increment(code)) {
    if (!below) it.disable_recursion_pending();
    if (is_abandoned(it->path())) abandoned.push_back(it->path());
  }
  for (const auto& path : abandoned) std::filesystem::remove(path, code);
}

void remove_abandoned_versions(const std::filesystem::path& path) {
  std::error_code code;
  std::vector<std::filesystem::path> abandoned;
  const std::string stem = path.stem().string();
  const auto directory = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  for (auto it = std::filesystem::directory_iterator(directory, code);
       !code && it != std::filesystem::end(it); it.increment(code)) {
    const std::string name = it->path().filename().string();
    const bool part = name.starts_with(stem + "-") && name.find("-of-") != name.npos;
    const bool own = name.starts_with(path.filename().string() + ".") || part;
    if (own && is_abandoned(it->path())) abandoned.push_back(it->path());
  }
  for (const auto& left : abandoned) std::filesystem::remove(left, code);
}

void remove_partial_files_at_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    if (::sigaction(signal, nullptr, &before) != 0 || before.sa_handler != SIG_DFL) continue;
    struct sigaction action {};
    action.sa_handler = end_by_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_NODEFER);
    ::sigaction(signal, &action, nullptr);
  }
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file(path);
  const struct stat status = status_of(file.value, path);
  refuse_unless_regular(status.st_mode, path);
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.value, 0);
  if (address == MAP_FAILED) fail(path, "map");
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

bool MappedFile::holds(std::span<const std::byte> part) const {
  const std::less_equal<> before;
  return data_ != nullptr && before(data_, part.data()) &&
         before(part.data() + part.size(), data_ + size_);
}

void MappedFile::release(std::span<const std::byte> part) const {
  if (part.empty() || !holds(part)) return;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto offset = static_cast<size_t>(part.data() - data_);
  const size_t first = offset / page * page;  // a mapping starts at a page
  ::madvise(const_cast<std::byte*>(data_) + first, offset - first + part.size(), MADV_DONTNEED);
}

bool ends_in(const std::filesystem::path& path, std::string_view ending) {
  return std::ranges::equal(path.extension().string(), ending,
                            [](unsigned char a, unsigned char b) { return std::tolower(a) == b; });
}

void make_directories(const std::filesystem::path& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) {
    throw Error(path.string(), fmt::format("cannot create the directory: {}", code.message()),
                "check the path and its permissions");
  }
}

}  // namespace pronghorn
