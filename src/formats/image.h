// Images of 8 bits a number, from PNG (libpng) and from the family of PGM.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace pronghorn {

struct Image {
  int64_t width = 0, height = 0;
  int64_t channels = 0;         // 1: grey; 3: red, green, blue
  std::vector<uint8_t> pixels;  // [height, width, channels]
};

// Whether a file's name ends as one of an image that read_image_file() reads: .png, .pgm, .ppm.
bool is_image_file(const std::filesystem::path& path);

// What is in a file, by its first bytes: PNG of any kind (16 bits become 8, palettes their colours,
// what is transparent lies on black), or PGM and PPM, binary and plain (P2, P3, P5, P6), numbers of
// which are scaled to 255. where: the file's name, for messages. Throws Error for anything else,
// for truncated files and for more than most_pixels pixels.
constexpr int64_t kMaxImagePixels = int64_t{1} << 26;
Image decode_image(std::string_view bytes, std::string_view where,
                   int64_t most_pixels = kMaxImagePixels);
Image read_image_file(const std::filesystem::path& path);

}  // namespace pronghorn
