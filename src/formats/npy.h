// The NumPy array format, for handing results to other tools.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace pronghorn {

// Writes float32 values in C order as NumPy format version 1.0. Throws Error if the shape does not
// hold exactly values.size() elements or the file cannot be written.
void write_npy(const std::filesystem::path& path, std::span<const float> values,
               const std::vector<int64_t>& shape);

}  // namespace pronghorn
