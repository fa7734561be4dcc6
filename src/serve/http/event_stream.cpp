#include "serve/http/event_stream.h"

#include "serve/http/api_error.h"

namespace pronghorn::serve {

std::string json_line(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void EventStream::send(std::string_view bytes) {
  if (!write_(bytes)) throw ClientGone();
}

void EventStream::data(const nlohmann::json& json, std::string_view event) {
  std::string bytes;
  if (!event.empty()) bytes.append("event: ").append(event).append("\n");
  send(bytes.append("data: ").append(json_line(json)).append("\n\n"));
}

void EventStream::text(std::string_view line) {
  send(std::string("data: ").append(line).append("\n\n"));
}

void EventStream::comment() { send(": waiting\n\n"); }

}  // namespace pronghorn::serve
