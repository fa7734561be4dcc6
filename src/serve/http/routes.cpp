#include "serve/http/routes.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "base/log.h"
#include "base/quote.h"
#include "serve/http/api_error.h"
#include "serve/http/endpoints.h"
#include "serve/http/openapi.h"
#include "serve/http/page.h"
#include "serve/http/reply_parts.h"
#include "serve/http/runs.h"

namespace pronghorn::serve {
namespace {

using Handled = httplib::Server::HandlerResponse;
using Endpoint = Reply (*)(Service&, Call&);

constexpr const char* kJson = "application/json";
constexpr const char* kIdHeader = "X-Request-Id";

struct Route {
  const char* path;
  Endpoint endpoint;
};

constexpr Route kPosts[] = {
    {"/v1/chat/completions", chat_completions},
    {"/v1/completions", completions},
    {"/v1/responses", responses},
    {"/v1/embeddings", embeddings},
    {"/v1/messages", messages},
    {"/v1/messages/count_tokens", count_message_tokens},
    {"/v1/sessions/save", save_session},
    {"/v1/sessions/restore", restore_session},
    {"/v1/sessions/list", list_sessions},
    {"/v1/sessions/delete", delete_session},
    {"/tokenize", tokenize},
    {"/detokenize", detokenize},
    {"/apply-template", apply_template},
};
constexpr const char* kGets[] = {"/",     "/watch",      "/health",  "/ready",       "/v1/models",
                                 "/runs", "/runs/curve", "/metrics", "/openapi.json"};

bool anthropic(const std::string& path) { return path.starts_with("/v1/messages"); }

// Answers for machines that watch over the server, and the pages, which hold nothing of anybody.
bool open_to_all(const std::string& path) {
  return path == "/" || path == "/watch" || path == "/health" || path == "/ready";
}

// The client's own id if it is a plain word.
std::string request_id(const httplib::Request& request) {
  const std::string own = request.get_header_value(kIdHeader);
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
  };
  const bool usable = !own.empty() && own.size() <= 64 && std::ranges::all_of(own, plain);
  return usable ? own : new_id("req_");
}

nlohmann::json error_json(const ApiError& error, const std::string& path, const std::string& id) {
  return anthropic(path) ? anthropic_error(error, id) : openai_error(error);
}

void answer_error(const ApiError& error, const std::string& path, const std::string& id,
                  httplib::Response& response) {
  response.status = error.status;
  if (error.retry_after_seconds > 0) {
    response.set_header("Retry-After",
                        std::to_string(static_cast<int64_t>(std::ceil(error.retry_after_seconds))));
  }
  response.set_content(json_line(error_json(error, path, id)), kJson);
}

void log(const Call& call) {
  const RequestRecord& r = call.record;
  spdlog::info(
      "{} {} {}{} model={} prompt={} cached={} tokens={} queue={:.3f}s read={:.3f}s write={:.3f}s "
      "total={:.3f}s drafted={} accepted={} end={}",
      call.id, r.endpoint, r.status, r.cancelled ? " client-gone" : "",
      r.model.empty() ? "-" : printable(r.model, kQuoteLength), r.prompt_tokens, r.cached_tokens,
      r.tokens, r.queue_seconds, r.prompt_seconds, r.decode_seconds, r.seconds, r.drafted,
      r.accepted, r.ends.empty() ? "-" : r.ends);
}

// Of a request that asks nothing of a model: what programs that watch over the server ask all the
// time is for who looks closely.
void log_plain(const std::string& id, const httplib::Request& request, int status, double begin) {
  const bool page = request.path == "/runs" || request.path == "/runs/curve";  // asked by timers
  const bool watching =
      request.path == "/health" || request.path == "/metrics" || (page && status < 400);
  spdlog::log(watching ? spdlog::level::debug : spdlog::level::info, "{} {} {} {} {:.1f} ms", id,
              printable(request.method, kQuoteLength), printable(request.path, kQuoteLength),
              status, (now_seconds() - begin) * 1e3);
}

// Counts a request from its beginning to the end of its answer, wherever that is.
class Counted {
 public:
  Counted(Service& service, std::shared_ptr<Call> call)
      : service_(service), call_(std::move(call)), begin_(now_seconds()) {
    service_.metrics.begin();
  }
  ~Counted() {
    call_->record.seconds = now_seconds() - begin_;
    log(*call_);
    service_.metrics.add(call_->record);
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  Call& call() { return *call_; }

 private:
  Service& service_;
  std::shared_ptr<Call> call_;
  double begin_;
};

// Who may ask. Throws ApiError.
void check_access(const httplib::Request& request, const Service& service, Keys& keys) {
  const ServerOptions& options = service.options;
  const std::string host = request.get_header_value("Host");
  if (!host_allowed(host, options.host)) {
    throw ApiError(403, "wrong_host",
                   "this server is for this machine alone and answers to no other name");
  }
  if (!origin_allowed(request.get_header_value("Origin"), host, options.cors)) {
    throw ApiError(403, "wrong_origin", "pages of other sites may not ask (see --cors)");
  }
  const std::string authorization = request.get_header_value("Authorization");
  const std::string api_key = request.get_header_value("x-api-key");
  if (!open_to_all(request.path) && !keys.accept(key_of(authorization, api_key))) {
    throw ApiError(401, "invalid_api_key", "the request has no key, or one that is not known here");
  }
}

// Those with different keys do not share what is kept of texts.
std::string tenant_of(const httplib::Request& request) {
  const std::string authorization = request.get_header_value("Authorization");
  const std::string api_key = request.get_header_value("x-api-key");
  const std::string_view key = key_of(authorization, api_key);
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  return fmt::format("{:016x}{:016x}/", hash.high64, hash.low64);
}

[[noreturn]] void refuse_size(int64_t limit) {
  ApiError error(413, "body_too_large", fmt::format("the body has more than {} bytes", limit));
  error.details["limit"] = limit;
  throw error;
}

std::string read_body(const httplib::Request& request, const httplib::ContentReader& reader,
                      int64_t limit) {
  if (request.has_header("Content-Encoding") || request.is_multipart_form_data()) {
    throw ApiError(415, "unsupported_media_type", "the body must be JSON as it stands, not packed");
  }
  const std::string length = request.get_header_value("Content-Length");
  if (length.empty() && request.get_header_value("Transfer-Encoding") != "chunked") {
    throw ApiError(411, "length_required", "the request needs a Content-Length");
  }
  uint64_t bytes = 0;
  const auto [end, code] = std::from_chars(length.data(), length.data() + length.size(), bytes);
  if (!length.empty() && (code != std::errc() || end != length.data() + length.size())) {
    throw ApiError(400, "bad_request", "the Content-Length is not a number");
  }
  if (bytes > static_cast<uint64_t>(limit)) refuse_size(limit);
  std::string body;
  bool too_large = false;
  const bool whole = reader([&](const char* data, size_t size) {
    too_large = body.size() + size > static_cast<uint64_t>(limit);
    if (!too_large) body.append(data, size);
    return !too_large;
  });
  if (too_large) refuse_size(limit);
  if (!whole) throw ApiError(400, "bad_request", "the body did not arrive whole");
  Connection::current()->read_whole();
  return body;
}

// Streams the answer. What goes wrong on the way becomes its last event.
bool stream(const StreamFunction& write, Counted& counted, httplib::DataSink& sink) {
  Call& call = counted.call();
  EventStream out([&](std::string_view bytes) { return sink.write(bytes.data(), bytes.size()); });
  try {
    try {
      write(out);
    } catch (const ClientGone&) {
      throw;
    } catch (...) {
      const ApiError error = as_api_error(std::current_exception());
      call.record.status = error.status;
      spdlog::warn("{}: {}", call.id, printable(error.message, 300));
      out.data(error_json(error, call.record.endpoint, call.id), "error");
    }
  } catch (const ClientGone&) {
    call.record.cancelled = true;
    return false;
  }
  sink.done();
  return true;
}

void send(Reply reply, const std::shared_ptr<Counted>& counted, httplib::Response& response) {
  if (auto* write = std::get_if<StreamFunction>(&reply)) {
    response.set_header("Cache-Control", "no-cache");
    response.set_header("X-Accel-Buffering", "no");  // proxies are to pass events on at once
    response.set_chunked_content_provider(
        "text/event-stream", [counted, write = std::move(*write)](size_t, httplib::DataSink& sink) {
          return stream(write, *counted, sink);
        });
    return;
  }
  const bool ordered = std::holds_alternative<Json>(reply);
  response.set_content(
      ordered ? std::get<Json>(reply).dump(-1, ' ', false, Json::error_handler_t::replace)
              : json_line(std::get<nlohmann::json>(reply)),
      kJson);
}

// A request for an endpoint, from its body to its answer.
void serve(Service& service, Keys& keys, const Route& route, const httplib::Request& request,
           httplib::Response& response, const httplib::ContentReader& reader) {
  Connection& connection = *Connection::current();
  auto call = std::make_shared<Call>();
  call->id = request_id(request);
  call->record.endpoint = route.path;
  call->record.status = 200;
  call->client_is_gone = [&connection] { return connection.closed(); };
  const auto counted = std::make_shared<Counted>(service, call);
  response.set_header(kIdHeader, call->id);
  connection.read_begins();
  try {
    check_access(request, service, keys);
    if (!service.options.key_file.empty()) call->tenant = tenant_of(request);
    if (service.draining) {
      ApiError error(503, "shutting_down", "the server is ending and takes no more requests");
      error.retry_after_seconds = service.options.drain_seconds;
      throw error;
    }
    call->body = parse_body(read_body(request, reader, service.options.body_bytes));
    send(route.endpoint(service, *call), counted, response);
  } catch (const ClientGone&) {
    call->record.cancelled = true;
    call->record.status = response.status = 499;  // nobody reads it
  } catch (...) {
    const ApiError error = as_api_error(std::current_exception());
    call->record.status = error.status;
    service.metrics.refuse(error.code);
    answer_error(error, route.path, call->id, response);
  }
}

void send_page(std::string page, httplib::Response& response) {
  response.set_header("Content-Security-Policy", page_policy());
  response.set_content(std::move(page), "text/html; charset=utf-8");
}

void get(Service& service, Keys& keys, const httplib::Request& request,
         httplib::Response& response) {
  constexpr double kStuckSeconds = 120;  // longer than any step
  const double begin = now_seconds();
  const std::string id = request_id(request);
  response.set_header(kIdHeader, id);
  const bool has_body =
      request.has_header("Content-Length") || request.has_header("Transfer-Encoding");
  if (has_body) Connection::current()->read_begins();  // and it never is
  try {
    check_access(request, service, keys);
    const std::string& path = request.path;
    const bool models = !service.models.entries().empty(), runs = !service.runs.empty();
    if (!runs && (path == "/watch" || path.starts_with("/runs"))) {
      throw ApiError(404, "not_found", "this server watches no training runs (see --watch)");
    }
    if (path == "/watch" || (path == "/" && !models && runs)) {
      send_page(watch_page(models), response);
    } else if (path == "/") {
      send_page(chat_page(runs), response);
    } else if (path == "/runs") {
      response.set_content(json_line(runs_json(service.runs)), kJson);
    } else if (path == "/runs/curve") {
      response.set_content(json_line(curve_json(service.runs, request.params)), kJson);
    } else if (path == "/v1/models") {
      response.set_content(json_line(models_json(service)), kJson);
    } else if (path == "/openapi.json") {
      response.set_content(json_line(openapi_json(post_paths(), get_paths())), kJson);
    } else if (path == "/metrics") {
      response.set_content(service.metrics.text(service.models.all(), service.models.ready()),
                           "text/plain; version=0.0.4");
    } else if (path == "/health") {
      const bool alive = service.stepper.alive(kStuckSeconds);
      if (!alive) throw ApiError(503, "stuck", "no step of a model has ended for two minutes");
      response.set_content(R"({"status":"ok"})", kJson);
    } else {
      const char* phase = service.draining ? "draining" : "loading";
      if (service.draining || !service.models.ready()) {
        ApiError error(503, phase, std::string("the server is ") + phase);
        error.retry_after_seconds = 5;
        throw error;
      }
      response.set_content(R"({"status":"ready"})", kJson);
    }
  } catch (...) {
    answer_error(as_api_error(std::current_exception()), request.path, id, response);
  }
  constexpr int kDefault = 200;  // httplib's, where nothing else is set
  log_plain(id, request, response.status > 0 ? response.status : kDefault, begin);
}

// Whether there is something at the path, for this or another method.
bool known_path(const std::string& path) {
  const auto is = [&](const char* known) { return path == known; };
  return std::ranges::any_of(kGets, is) ||
         std::ranges::any_of(kPosts, [&](const Route& route) { return is(route.path); });
}

bool is_get(const httplib::Request& request) {
  const bool read = request.method == "GET" || request.method == "HEAD";
  return read && std::ranges::any_of(kGets, [&](const char* path) { return request.path == path; });
}

bool is_post(const httplib::Request& request) {
  return request.method == "POST" && std::ranges::any_of(kPosts, [&](const Route& route) {
           return request.path == route.path;
         });
}

// Answers what no handler is for. httplib would read its body first, however large.
void refuse_unknown(const httplib::Request& request, httplib::Response& response) {
  Connection::current()->read_begins();  // and it never is
  const double begin = now_seconds();
  const std::string id = request_id(request);
  const bool known = known_path(request.path);
  const std::string path = quote(request.path);
  const ApiError error = known ? ApiError(405, "method_not_allowed",
                                          quote(request.method) + " is not served at " + path)
                               : ApiError(404, "not_found", "there is nothing at " + path);
  answer_error(error, request.path, id, response);
  log_plain(id, request, response.status, begin);
}

// Gives errors that httplib finds by itself a body.
void complete_error(const httplib::Request& request, httplib::Response& response) {
  if (!response.body.empty() || response.status == 499) return;
  const ApiError error(response.status, "bad_request", "the request cannot be read");
  const std::string id = request_id(request);
  answer_error(error, request.path, id, response);
  log_plain(id, request, response.status, now_seconds());
}

void add_cors(const std::string& origin, httplib::Response& response) {
  response.set_header("Access-Control-Allow-Origin", origin);
  response.set_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
  response.set_header("Access-Control-Allow-Headers", "*, Authorization");
  response.set_header("Access-Control-Expose-Headers", kIdHeader);
}

}  // namespace

std::vector<std::string> post_paths() {
  std::vector<std::string> paths;
  for (const Route& route : kPosts) paths.emplace_back(route.path);
  return paths;
}

std::vector<std::string> get_paths() { return {std::begin(kGets), std::end(kGets)}; }

void add_routes(HttpListener& listener, Service& service, Keys& keys) {
  listener.set_payload_max_length(static_cast<size_t>(service.options.body_bytes));
  for (const Route& route : kPosts) {
    listener.Post(route.path, [&service, &keys, &route](const auto& request, auto& response,
                                                        const httplib::ContentReader& reader) {
      serve(service, keys, route, request, response, reader);
    });
  }
  for (const char* path : kGets) {
    listener.Get(path, [&service, &keys](const auto& request, auto& response) {
      get(service, keys, request, response);
    });
  }
  listener.set_error_handler(httplib::Server::HandlerWithResponse(
      [](const httplib::Request& request, httplib::Response& response) {
        complete_error(request, response);
        return Handled::Handled;
      }));
  listener.set_pre_routing_handler(
      [&service](const httplib::Request& request, httplib::Response& response) {
        const std::string& origin = service.options.cors;
        if (!origin.empty()) add_cors(origin, response);
        if (is_get(request) || is_post(request)) return Handled::Unhandled;
        if (request.method == "OPTIONS" && !origin.empty()) {
          response.status = 204;
          log_plain(request_id(request), request, response.status, now_seconds());
        } else {
          refuse_unknown(request, response);
        }
        return Handled::Handled;
      });
}

}  // namespace pronghorn::serve
