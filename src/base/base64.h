// Bytes as text: base64 (RFC 4648, section 4).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pronghorn {

std::string to_base64(std::string_view bytes);
// The bytes, up to the first '='; nothing if there is another character than the digits before it.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace pronghorn
