#include "serve/http/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace pronghorn::serve {
namespace {

constexpr int kBacklog = 256;
constexpr double kLookSeconds = 0.2;  // between two looks at whether the server ends
constexpr double kLingerSeconds = 1;  // for a refused client to read why

thread_local Connection* current_connection = nullptr;
thread_local bool refusing = false;  // the connection is one too many

// Waits for `events`. Whether they came within the time.
bool wait_for(int socket, short events, double seconds) {
  const double end = now_seconds() + seconds;
  while (true) {
    pollfd entry{socket, events, 0};
    const double left = std::max(0.0, end - now_seconds());
    const int ready = ::poll(&entry, 1, static_cast<int>(left * 1e3) + 1);
    if (ready > 0) return true;
    if (ready == 0 && now_seconds() >= end) return false;
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

// Requests and answers over a socket. A request must have come before a moment in time, however
// slowly it drips.
class SocketStream : public httplib::Stream {
 public:
  SocketStream(int socket, const ConnectionLimits& limits) : socket_(socket), limits_(limits) {}

  // Whether the next request has begun to arrive, which then has its time.
  bool request_begins(double seconds) {
    if (begin_ == end_ && !wait_for(socket_, POLLIN, seconds)) return false;
    read_until_ = now_seconds() + limits_.read_seconds;
    return true;
  }

  bool is_readable() const override {
    return begin_ < end_ || wait_for(socket_, POLLIN, read_until_ - now_seconds());
  }
  bool is_writable() const override { return wait_for(socket_, POLLOUT, limits_.write_seconds); }

  ssize_t read(char* to, size_t size) override {
    if (begin_ == end_) {
      if (!is_readable()) return -1;
      const ssize_t count = receive();
      if (count <= 0) return count;
      begin_ = 0;
      end_ = static_cast<size_t>(count);
    }
    const size_t taken = std::min(size, end_ - begin_);
    std::memcpy(to, buffer_ + begin_, taken);
    begin_ += taken;
    return static_cast<ssize_t>(taken);
  }

  ssize_t write(const char* from, size_t size) override {
    if (!is_writable()) return -1;
    ssize_t count = -1;
    do {
      count = ::send(socket_, from, size, MSG_NOSIGNAL);
    } while (count < 0 && errno == EINTR);
    return count;
  }

  void get_remote_ip_and_port(std::string& host, int& port) const override {
    address_of(socket_, true, host, port);
  }
  void get_local_ip_and_port(std::string& host, int& port) const override {
    address_of(socket_, false, host, port);
  }
  socket_t socket() const override { return socket_; }

 private:
  ssize_t receive() {
    ssize_t count = -1;
    do {
      count = ::recv(socket_, buffer_, sizeof(buffer_), 0);
    } while (count < 0 && errno == EINTR);
    return count;
  }

  int socket_;
  const ConnectionLimits& limits_;
  double read_until_ = 0;
  char buffer_[1 << 14];
  size_t begin_ = 0, end_ = 0;
};

// Lets the other end read the answer before the connection goes: closing with bytes unread would
// take the answer away from it.
void linger(int socket) {
  ::shutdown(socket, SHUT_WR);
  const double end = now_seconds() + kLingerSeconds;
  char ignored[1 << 12];
  while (now_seconds() < end && wait_for(socket, POLLIN, end - now_seconds())) {
    if (::recv(socket, ignored, sizeof(ignored), MSG_DONTWAIT) <= 0) return;
  }
}

void refuse(int socket) {
  constexpr std::string_view kAnswer =
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
      "Connection: close\r\nContent-Length: 124\r\n\r\n"
      R"({"error":{"message":"too many connections","type":"service_unavailable_error","param":null,"code":"too_many_connections"}})"
      "\r\n";
  (void)!::send(socket, kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
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
    {
      const std::lock_guard lock(mutex_);
      if (running_ < most_) {
        ++running_;
        std::thread([this, serve] { run(serve); }).detach();
        return;
      }
    }
    refusing = true;
    serve();
    refusing = false;
  }

  void shutdown() override {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
  }

 private:
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
                "is another server running? --port names another port");
  }
  ::listen(svr_sock_, kBacklog);
  return bound;
}

void HttpListener::end() {
  ending_ = true;
  stop();
}

bool HttpListener::process_and_close_socket(socket_t socket) {
  Connection connection(socket);
  if (refusing) {
    refuse(socket);
  } else {
    current_connection = &connection;
    serve(connection);
    current_connection = nullptr;
    if (connection.ends_) linger(socket);
  }
  ::shutdown(socket, SHUT_RDWR);
  ::close(socket);
  return true;
}

void HttpListener::serve(Connection& connection) {
  // An encoding of the answer would hold back what is streamed, and saves nothing over a loopback.
  const auto set_up = [](httplib::Request& request) { request.headers.erase("Accept-Encoding"); };
  SocketStream stream(connection.socket(), limits_);
  while (!ending_) {
    const double idle_until = now_seconds() + limits_.idle_seconds;
    while (!stream.request_begins(kLookSeconds)) {
      if (ending_ || now_seconds() >= idle_until) return;
    }
    bool closed = false;
    if (!process_request(stream, false, closed, set_up) || closed || connection.ends_) return;
  }
}

}  // namespace pronghorn::serve
