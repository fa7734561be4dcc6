// Connections of the HTTP server: a thread each, up to a limit, and a look at whether the other end
// is still there.
#pragma once

#include <httplib.h>

#include <condition_variable>
#include <mutex>

namespace pronghorn::serve {

// The connection that the calling thread serves.
class Connection {
 public:
  explicit Connection(int socket) : socket_(socket) {}

  // Whether the other end has closed it.
  bool closed() const;
  // Around the reading of a body. A connection whose body was not read whole is closed after the
  // answer: what is left of it would be taken for the next request.
  void read_begins() { ends_ = true; }
  void read_whole() { ends_ = false; }
  int socket() const { return socket_; }

  // Null on threads that serve none.
  static Connection* current();

 private:
  friend class HttpListener;
  int socket_;
  bool ends_ = false;
};

struct ConnectionLimits {
  int most = 768;                         // at once; the next are answered with 503 and closed
  double read_seconds = 60;               // for a request to arrive
  double write_seconds = 60;              // that the other end may leave an answer lying, in all
  int64_t body_bytes = int64_t{1} << 26;  // of a request's body with all that frames it
  double idle_seconds = 30;               // between two requests
};

// httplib's server with connections of our own: it can tell when one is closed, gives requests a
// time in which they must have arrived, and is not held up by those that are busy.
class HttpListener : public httplib::Server {
 public:
  explicit HttpListener(const ConnectionLimits& limits);

  // Returns the port. Throws Error if the address cannot be had.
  int bind(const std::string& host, int port);
  // Ends listen_after_bind(): no more connections; answers that are being streamed are cut.
  void end();

 private:
  class Threads;
  bool process_and_close_socket(socket_t socket) override;
  void serve(Connection& connection);

  ConnectionLimits limits_;
  std::atomic<bool> ending_{false};
};

}  // namespace pronghorn::serve
