// Images from bytes: what is read, and what hostile files are told.
#include "formats/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <string>

#include "support/errors.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;

std::string png_of(const std::vector<uint8_t>& pixels, uint32_t width, uint32_t height,
                   uint32_t format) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = width;
  image.height = height;
  image.format = format;
  png_alloc_size_t size = 0;
  EXPECT_TRUE(png_image_write_to_memory(&image, nullptr, &size, 0, pixels.data(), 0, nullptr));
  std::string bytes(size, '\0');
  EXPECT_TRUE(png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels.data(), 0, nullptr));
  return bytes;
}

std::string refusal(const std::string& bytes) {
  return error_of([&] { decode_image(bytes, "x"); });
}

TEST(Image, PngIsReadAsItWasWritten) {
  const std::vector<uint8_t> grey = {0, 1, 128, 200, 254, 255};
  const Image image = decode_image(png_of(grey, 3, 2, PNG_FORMAT_GRAY), "x");
  EXPECT_EQ(image.width, 3);
  EXPECT_EQ(image.height, 2);
  EXPECT_EQ(image.channels, 1);
  EXPECT_EQ(image.pixels, grey);
  const std::vector<uint8_t> colours = {0, 1, 128, 200, 254, 255};
  const Image coloured = decode_image(png_of(colours, 1, 2, PNG_FORMAT_RGB), "x");
  EXPECT_EQ(coloured.channels, 3);
  EXPECT_EQ(coloured.pixels, colours);
  // What is transparent lies on black.
  const Image clear = decode_image(png_of({200, 255, 200, 0}, 2, 1, PNG_FORMAT_GA), "x");
  EXPECT_THAT(clear.pixels, ElementsAre(200, 0));
}

TEST(Image, PgmAndPpmAreRead) {
  EXPECT_THAT(decode_image(std::string("P5 2 2 255\n\x00\x01\x02\xff", 15), "x").pixels,
              ElementsAre(0, 1, 2, 255));
  const Image plain = decode_image("P2\n# a comment\n3 1 # more\n4\n0 2\n4", "x");
  EXPECT_EQ(plain.width, 3);
  EXPECT_EQ(plain.height, 1);
  EXPECT_THAT(plain.pixels, ElementsAre(0, 128, 255));
  EXPECT_THAT(decode_image(std::string("P5 1 1 65535\n\x80\x00", 15), "x").pixels,
              ElementsAre(128));
  const Image colours = decode_image("P6 1 1 255\nabc", "x");
  EXPECT_EQ(colours.channels, 3);
  EXPECT_THAT(colours.pixels, ElementsAre('a', 'b', 'c'));
  EXPECT_THAT(decode_image("P3 1 1 255 7 8 9", "x").pixels, ElementsAre(7, 8, 9));
}

TEST(Image, HostileFilesAreRefused) {
  EXPECT_THAT(refusal(""), HasSubstr("x: is empty"));
  EXPECT_THAT(refusal("GIF89a"), HasSubstr("no image that can be read"));
  EXPECT_THAT(refusal("P7 1 1 255\n0"), HasSubstr("no image"));
  EXPECT_THAT(refusal("P5"), HasSubstr("no image"));
  EXPECT_THAT(refusal("P5 3"), HasSubstr("ends before its height"));
  EXPECT_THAT(refusal("P5 3 x"), HasSubstr("no height"));
  EXPECT_THAT(refusal("P5 -3 1 255\n"), HasSubstr("no width"));
  EXPECT_THAT(refusal("P5 0 1 255\n"), HasSubstr("0 by 1 pixels"));
  EXPECT_THAT(refusal("P5 4000000000 4000000000 255\n"), HasSubstr("pixels: an image has"));
  EXPECT_THAT(refusal("P5 99999999999999999999 1 255\n"), HasSubstr("no width"));
  EXPECT_THAT(refusal("P5 1 1 0\n0"), HasSubstr("0 as its largest number"));
  EXPECT_THAT(refusal("P5 1 1 65536\n0"), HasSubstr("65536"));
  EXPECT_THAT(refusal("P5 2 2 255\nabc"), HasSubstr("ends after 3 of the 4 bytes"));
  EXPECT_THAT(refusal("P2 2 1 255\n1 "), HasSubstr("ends after"));
  EXPECT_THAT(refusal("P2 2 1 255\n111 "), HasSubstr("ends before its pixel"));
  EXPECT_THAT(refusal("P2 1 1 9\n10"), HasSubstr("above the largest number"));
}

TEST(Image, BrokenPngIsRefusedWhereverItEndsOrIsChanged) {
  std::vector<uint8_t> pixels(64);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 37);
  const std::string whole = png_of(pixels, 8, 8, PNG_FORMAT_GRAY);
  // The last 12 bytes are the end mark, without which libpng has all pixels.
  for (size_t size = 1; size + 12 < whole.size(); ++size) {
    EXPECT_NE(refusal(whole.substr(0, size)), "no error") << size;
  }
  std::string sized = whole;
  sized[16] = '\x7f';  // the width: its checksum is wrong, too
  EXPECT_THAT(refusal(sized), HasSubstr("cannot be read as PNG"));
}

}  // namespace
}  // namespace pronghorn
