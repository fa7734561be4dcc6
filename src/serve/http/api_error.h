// What a request is answered with when it cannot be served.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>
#include <string>

namespace pronghorn::serve {

// Thrown while a request is read or answered. `message` is shown to whoever asked.
struct ApiError : std::exception {
  ApiError(int error_status, std::string error_code, std::string error_message,
           std::string error_param = {})
      : status(error_status),
        code(std::move(error_code)),
        message(std::move(error_message)),
        param(std::move(error_param)) {}

  const char* what() const noexcept override { return message.c_str(); }

  int status;                                         // of HTTP
  std::string code;                                   // for programs: "context_length_exceeded"
  std::string message;                                // for people: which field, which limit
  std::string param;                                  // the field at fault; may be empty
  nlohmann::json details = nlohmann::json::object();  // numbers beside the message
  double retry_after_seconds = 0;                     // 0: trying again does not help
};

// The client has gone away: nothing is to be answered.
struct ClientGone : std::exception {
  const char* what() const noexcept override { return "the client has closed the connection"; }
};

// 400 for a field of the request.
[[noreturn]] void refuse_field(const std::string& field, const std::string& problem);

// What any exception means to the client. UsageError and JinjaError are the request's fault; of
// what else goes wrong inside, the message says as much as the exception does.
ApiError as_api_error(const std::exception_ptr& error);

// {"error": {message, type, param, code, ...}}, as OpenAI's API has it.
nlohmann::json openai_error(const ApiError& error);
// {"type": "error", "error": {type, message, ...}}, as Anthropic's has it.
nlohmann::json anthropic_error(const ApiError& error, const std::string& request_id);

}  // namespace pronghorn::serve
