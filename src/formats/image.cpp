#include "formats/image.h"

#include <png.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "base/error.h"
#include "base/files.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMaxFile = uint64_t{1} << 29;
constexpr std::string_view kPngSignature = "\x89PNG\r\n\x1a\n";

void check_size(int64_t width, int64_t height, int64_t most, std::string_view where) {
  require(width > 0 && height > 0 && height <= most / width, where,
          "{} by {} pixels: an image has 1 to {} in all", width, height, most);
}

// Frees what libpng keeps of an image, when reading it fails too.
struct PngReader {
  png_image image{};
  PngReader() { image.version = PNG_IMAGE_VERSION; }
  ~PngReader() { png_image_free(&image); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
};

Image decode_png(std::string_view bytes, std::string_view where, int64_t most_pixels) {
  PngReader png;
  const auto check = [&](int ok) {
    if (ok == 0) {
      throw Error(where, "cannot be read as PNG: " + printable(png.image.message, kQuoteLength));
    }
  };
  check(png_image_begin_read_from_memory(&png.image, bytes.data(), bytes.size()));
  Image image;
  image.width = png.image.width;
  image.height = png.image.height;
  check_size(image.width, image.height, most_pixels, where);
  const bool colour = (png.image.format & PNG_FORMAT_FLAG_COLOR) != 0;
  image.channels = colour ? 3 : 1;
  png.image.format = colour ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  image.pixels.resize(static_cast<size_t>(image.width * image.height * image.channels));
  constexpr png_color kBlack = {0, 0, 0};
  check(png_image_finish_read(&png.image, &kBlack, image.pixels.data(), 0, nullptr));
  return image;
}

// The head of a PGM or PPM, and the numbers of a plain one: decimal, with white space and comments
// between.
class NetpbmText {
 public:
  NetpbmText(std::string_view bytes, std::string_view where) : bytes_(bytes), where_(where) {}

  int64_t number(const char* what) {
    skip_space();
    int64_t value = 0;
    const char* begin = bytes_.data() + at_;
    const auto [end, error] = std::from_chars(begin, bytes_.data() + bytes_.size(), value);
    if (error != std::errc() || end == begin || value < 0) {
      throw Error(where_, at_ >= bytes_.size()
                              ? fmt::format("ends before its {}", what)
                              : fmt::format("has no {} where one should be", what));
    }
    at_ += static_cast<size_t>(end - begin);
    return value;
  }

  // What follows the one white space after the head.
  std::string_view rest() const { return bytes_.substr(std::min(bytes_.size(), at_ + 1)); }

 private:
  void skip_space() {
    while (at_ < bytes_.size()) {
      if (bytes_[at_] == '#') {
        while (at_ < bytes_.size() && bytes_[at_] != '\n') ++at_;
      } else if (std::strchr(" \t\r\n\v\f", bytes_[at_]) == nullptr || bytes_[at_] == '\0') {
        return;
      } else {
        ++at_;
      }
    }
  }

  std::string_view bytes_, where_;
  size_t at_ = 2;  // after the magic number
};

Image decode_netpbm(std::string_view bytes, std::string_view where, int64_t most_pixels) {
  const char kind = bytes[1];
  const bool plain = kind == '2' || kind == '3';
  NetpbmText text(bytes, where);
  Image image;
  image.channels = kind == '3' || kind == '6' ? 3 : 1;
  image.width = text.number("width");
  image.height = text.number("height");
  check_size(image.width, image.height, most_pixels, where);
  const int64_t most = text.number("largest number");
  require(most >= 1 && most <= 65535, where, "has {} as its largest number (1 to 65535)", most);
  const int64_t count = image.width * image.height * image.channels;
  const int64_t size = most > 255 ? 2 : 1;
  const std::string_view data = text.rest();
  // A plain number takes two bytes at least, but for the last.
  const int64_t needed = plain ? 2 * count - 1 : size * count;
  require(static_cast<int64_t>(data.size()) >= needed, where,
          "ends after {} of the {} bytes of its {} by {} pixels", data.size(), needed, image.width,
          image.height);
  image.pixels.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = 0;
    if (plain) {
      value = text.number("pixel");
    } else {
      for (int64_t byte = 0; byte < size; ++byte) {
        value = 256 * value + static_cast<uint8_t>(data[static_cast<size_t>(i * size + byte)]);
      }
    }
    require(value <= most, where, "pixel {} is {}, above the largest number {}", i, value, most);
    image.pixels[static_cast<size_t>(i)] = static_cast<uint8_t>((255 * value + most / 2) / most);
  }
  return image;
}

}  // namespace

bool is_image_file(const std::filesystem::path& path) {
  std::string ending = path.extension().string();
  std::ranges::transform(ending, ending.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  });
  return ending == ".png" || ending == ".pgm" || ending == ".ppm";
}

Image decode_image(std::string_view bytes, std::string_view where, int64_t most_pixels) {
  if (bytes.starts_with(kPngSignature)) return decode_png(bytes, where, most_pixels);
  const bool netpbm = bytes.size() > 2 && bytes[0] == 'P' &&
                      std::strchr("2356", bytes[1]) != nullptr && bytes[1] != '\0';
  if (netpbm) return decode_netpbm(bytes, where, most_pixels);
  throw Error(where, bytes.empty() ? "is empty" : "is no image that can be read",
              "PNG, PGM and PPM can be");
}

Image read_image_file(const std::filesystem::path& path) {
  return decode_image(read_file(path, kMaxFile), path.string());
}

}  // namespace pronghorn
