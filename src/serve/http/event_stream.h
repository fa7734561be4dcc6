// Server-sent events: the bytes of a streamed answer (WHATWG HTML, "Server-sent events").
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace pronghorn::serve {

class EventStream {
 public:
  // write: sends bytes at once, false if nobody takes them.
  explicit EventStream(std::function<bool(std::string_view)> write) : write_(std::move(write)) {}

  // Each throws ClientGone if the client is. `event` is the event's name; empty: without.
  void data(const nlohmann::json& json, std::string_view event = {});
  void text(std::string_view line);  // "data: line"
  void comment();                    // keeps connections open that proxies would close

 private:
  void send(std::string_view bytes);

  std::function<bool(std::string_view)> write_;
};

// JSON text of one line; bytes that are not UTF-8 become U+FFFD.
std::string json_line(const nlohmann::json& json);

}  // namespace pronghorn::serve
