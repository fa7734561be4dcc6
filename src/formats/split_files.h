// Models whose files came in parts.
#pragma once

#include <filesystem>
#include <span>

namespace pronghorn {

// Throws Error if one of the parts of a model is not there: names the first of those, and how many
// there should be.
void require_parts(std::span<const std::filesystem::path> parts);

}  // namespace pronghorn
