// The description of this server's endpoints that programs read: OpenAPI 3.1.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

namespace pronghorn::serve {

// posts: paths of endpoints that take a JSON object; gets: those that take none.
nlohmann::json openapi_json(std::span<const std::string> posts, std::span<const std::string> gets);

// The fields that an endpoint reads, as a JSON Schema; null for a path that is not described.
nlohmann::json request_schema(const std::string& path);

}  // namespace pronghorn::serve
