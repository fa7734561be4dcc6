#include "serve/http/api_error.h"

#include <cmath>
#include <new>

#include "base/error.h"
#include "formats/jinja.h"
#include "serve/engine.h"

namespace pronghorn::serve {
namespace {

const char* openai_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

ApiError queue_full(const QueueFull& full) {
  ApiError error(429, "queue_full", full.what());
  error.details = {{"waiting_requests", full.requests},
                   {"waiting_tokens", full.tokens},
                   {"retry_after_seconds", full.retry_after_seconds}};
  error.retry_after_seconds = std::max(1.0, full.retry_after_seconds);
  return error;
}

}  // namespace

void refuse_field(const std::string& field, const std::string& problem) {
  throw ApiError(400, "invalid_value", field + " " + problem, field);
}

ApiError as_api_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const ApiError& known) {
    return known;
  } catch (const QueueFull& full) {
    return queue_full(full);
  } catch (const JinjaError& refused) {
    return {400, "template_error", refused.raised() ? refused.message() : refused.what(),
            "messages"};
  } catch (const UsageError& wrong) {
    return {400, "invalid_value", wrong.what()};
  } catch (const std::bad_alloc&) {
    return {500, "out_of_memory", "out of memory"};
  } catch (const std::exception& other) {
    return {500, "internal_error", other.what()};
  }
}

nlohmann::json openai_error(const ApiError& error) {
  nlohmann::json body = {{"message", error.message},
                         {"type", openai_type(error.status)},
                         {"param", nullptr},
                         {"code", error.code}};
  if (!error.param.empty()) body["param"] = error.param;
  body.update(error.details);
  return {{"error", body}};
}

nlohmann::json anthropic_error(const ApiError& error, const std::string& request_id) {
  nlohmann::json body = {
      {"type", anthropic_type(error.status)}, {"message", error.message}, {"code", error.code}};
  body.update(error.details);
  return {{"type", "error"}, {"error", body}, {"request_id", request_id}};
}

}  // namespace pronghorn::serve
