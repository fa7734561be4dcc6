#include "serve/http/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstring>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace pronghorn::serve {
namespace {

constexpr int kBacklog = 256;
constexpr double kLookSeconds = 0.2;  // between two looks at whether the server ends
constexpr double kLingerSeconds = 1;  // for a refused client to read why

thread_local Connection* current_connection = nullptr;
thread_local bool refusing = false;  // the connection is one too many

// Waits for `events`. Whether they came before the time was over and the server ended.
bool wait_for(int socket, short events, double seconds, const std::atomic<bool>& ending) {
  const double end = now_seconds() + seconds;
  while (true) {
    pollfd entry{socket, events, 0};
    const double left = std::clamp(end - now_seconds(), 0.0, kLookSeconds);
    const int ready = ::poll(&entry, 1, static_cast<int>(left * 1e3) + 1);
    if (ready > 0) return true;
    if (ready == 0 && (now_seconds() >= end || ending)) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
}

void address_of(int socket, bool remote, std::string& host, int& port) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  if ((remote ? ::getpeername(socket, any, &size) : ::getsockname(socket, any, &size)) != 0) return;
  char name[NI_MAXHOST] = {}, service[NI_MAXSERV] = {};
  if (::getnameinfo(any, size, name, sizeof(name), service, sizeof(service),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return;
  }
  host = name;
  port = std::atoi(service);
}

// Lets the other end read the answer before the connection goes: closing with bytes unread would
// take the answer away from it.
void linger(int socket, double seconds, const std::atomic<bool>& ending) {
  ::shutdown(socket, SHUT_WR);
  const double end = now_seconds() + seconds;
  char ignored[1 << 12];
  while (now_seconds() < end && wait_for(socket, POLLIN, end - now_seconds(), ending)) {
    if (::recv(socket, ignored, sizeof(ignored), MSG_DONTWAIT) <= 0) return;
  }
}

// Headers that httplib would act upon: it parses ranges by a recursive expression and makes a part
// of the answer for each, and would hold back what is streamed in order to pack it.
constexpr std::string_view kDropped[] = {"range:", "accept-encoding:"};

bool is_dropped(std::string_view line) {
  const auto begins = [&](std::string_view name) {
    return line.size() >= name.size() &&
           std::equal(name.begin(), name.end(), line.begin(), [](char wanted, char c) {
             return wanted == std::tolower(static_cast<unsigned char>(c));
           });
  };
  return std::ranges::any_of(kDropped, begins);
}

std::string without_dropped(std::string_view head) {
  std::string kept;
  while (!head.empty()) {
    const size_t end = std::min(head.find('\n'), head.size() - 1) + 1;
    if (!is_dropped(head.substr(0, end))) kept += head.substr(0, end);
    head.remove_prefix(end);
  }
  return kept;
}

// Requests and answers over a socket. A request must have come before a moment in time, however
// slowly it drips, and may have so many bytes and no more, whatever it says of them.
class SocketStream : public httplib::Stream {
 public:
  SocketStream(int socket, const ConnectionLimits& limits, const std::atomic<bool>& ending)
      : socket_(socket), limits_(limits), ending_(ending) {}

  // Waits for the next request and reads its head.
  bool request_begins() {
    buffer_.erase(0, std::exchange(at_, 0));
    if (buffer_.empty() && !wait_for(socket_, POLLIN, limits_.idle_seconds, ending_)) return false;
    read_until_ = now_seconds() + limits_.read_seconds;
    left_ = 2 * int64_t{kMostHeadBytes};
    blocked_ = 0;
    size_t end = 0;
    while ((end = buffer_.find("\n\r\n")) == buffer_.npos) {
      if (buffer_.size() <= kMostHeadBytes && fill()) continue;
      if (buffer_.size() > kMostHeadBytes) refuse_head();
      return false;
    }
    const std::string head = without_dropped(std::string_view(buffer_).substr(0, end + 3));
    buffer_.replace(0, end + 3, head);
    left_ = limits_.body_bytes;
    return true;
  }

  bool is_readable() const override {
    return at_ < buffer_.size() || wait_for(socket_, POLLIN, read_until_ - now_seconds(), ending_);
  }
  bool is_writable() const override {
    return wait_for(socket_, POLLOUT, limits_.write_seconds - blocked_, ending_);
  }

  ssize_t read(char* to, size_t size) override {
    if (at_ == buffer_.size()) {
      buffer_.clear();
      at_ = 0;
      if (!fill()) return -1;
    }
    const size_t taken = std::min(size, buffer_.size() - at_);
    std::memcpy(to, buffer_.data() + at_, taken);
    at_ += taken;
    return static_cast<ssize_t>(taken);
  }

  ssize_t write(const char* from, size_t size) override {
    const double begin = now_seconds();
    if (!is_writable()) return -1;
    blocked_ += now_seconds() - begin;
    ssize_t count = -1;
    do {
      count = ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    return count < 0 && errno == EAGAIN ? 0 : count;
  }

  void get_remote_ip_and_port(std::string& host, int& port) const override {
    address_of(socket_, true, host, port);
  }
  void get_local_ip_and_port(std::string& host, int& port) const override {
    address_of(socket_, false, host, port);
  }
  socket_t socket() const override { return socket_; }

 private:
  // Adds what has come to the buffer; false if nothing comes, or more than may.
  bool fill() {
    char bytes[1 << 14];
    if (!wait_for(socket_, POLLIN, read_until_ - now_seconds(), ending_)) return false;
    ssize_t count = -1;
    do {
      count = ::recv(socket_, bytes, sizeof(bytes), 0);
    } while (count < 0 && errno == EINTR);
    if (count <= 0 || count > left_) return false;
    left_ -= count;
    buffer_.append(bytes, static_cast<size_t>(count));
    return true;
  }

  void refuse_head() const {
    constexpr std::string_view kAnswer =
        "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n"
        "Content-Length: 0\r\n\r\n";
    (void)!::send(socket_, kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    linger(socket_, kLingerSeconds, ending_);
  }

  static constexpr size_t kMostHeadBytes = size_t{1} << 16;

  int socket_;
  const ConnectionLimits& limits_;
  const std::atomic<bool>& ending_;
  double read_until_ = 0;
  double blocked_ = 0;  // seconds that the other end took nothing of the answer
  int64_t left_ = 0;    // bytes that may still come
  std::string buffer_;
  size_t at_ = 0;  // what is before it has been read
};

void refuse(int socket, const std::atomic<bool>& ending) {
  constexpr std::string_view kAnswer =
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
      "Connection: close\r\nContent-Length: 124\r\n\r\n"
      R"({"error":{"message":"too many connections","type":"service_unavailable_error",)"
      R"("param":null,"code":"too_many_connections"}})"
      "\r\n";
  (void)!::send(socket, kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  constexpr double kSeconds = 0.02;  // others wait to be accepted meanwhile
  linger(socket, kSeconds, ending);
}

}  // namespace

Connection* Connection::current() { return current_connection; }

bool Connection::closed() const {
  pollfd entry{socket_, POLLIN | POLLRDHUP, 0};
  if (::poll(&entry, 1, 0) <= 0) return false;
  if ((entry.revents & (POLLERR | POLLHUP | POLLNVAL | POLLRDHUP)) != 0) return true;
  char byte = 0;
  return ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

// A thread for each connection: they wait most of the time.
class HttpListener::Threads : public httplib::TaskQueue {
 public:
  explicit Threads(int most) : most_(most) {}

  void enqueue(std::function<void()> serve) override {
    if (begin(serve)) return;
    refusing = true;
    serve();
    refusing = false;
  }

  void shutdown() override {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  // False if there are too many, or the system has no thread for it.
  bool begin(const std::function<void()>& serve) {
    const std::lock_guard lock(mutex_);
    if (running_ >= most_) return false;
    try {
      std::thread([this, serve] { run(serve); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++running_;
    return true;
  }

  void run(const std::function<void()>& serve) {
    serve();
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_all();  // under the lock: who waits destroys this
  }

  const int most_;
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;
};

HttpListener::HttpListener(const ConnectionLimits& limits) : limits_(limits) {
  new_task_queue = [this] { return new Threads(limits_.most); };
  set_tcp_nodelay(true);
  // Not SO_REUSEPORT, with which a second server would silently take half of the connections.
  set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
}

int HttpListener::bind(const std::string& host, int port) {
  const int bound = port == 0 ? bind_to_any_port(host) : (bind_to_port(host, port) ? port : -1);
  if (bound < 0) {
    throw Error(fmt::format("{}:{}", host, port), "cannot listen there",
                "is another server running there? choose another port");
  }
  ::listen(svr_sock_, kBacklog);
  return bound;
}

void HttpListener::end() {
  // It cannot be stopped before it has begun, which it may be about to do.
  for (int i = 0; i < 100 && !is_running(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ending_ = true;
  stop();
}

bool HttpListener::process_and_close_socket(socket_t socket) {
  Connection connection(socket);
  if (refusing) {
    refuse(socket, ending_);
  } else {
    current_connection = &connection;
    serve(connection);
    current_connection = nullptr;
    if (connection.ends_) linger(socket, kLingerSeconds, ending_);
  }
  ::shutdown(socket, SHUT_RDWR);
  ::close(socket);
  return true;
}

void HttpListener::serve(Connection& connection) {
  SocketStream stream(connection.socket(), limits_, ending_);
  while (!ending_ && stream.request_begins()) {
    bool closed = false;
    if (!process_request(stream, false, closed, {}) || closed || connection.ends_) return;
  }
}

}  // namespace pronghorn::serve
