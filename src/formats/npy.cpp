#include "formats/npy.h"

#include <bit>
#include <string>

#include "base/error.h"
#include "base/files.h"

namespace pronghorn {

static_assert(std::endian::native == std::endian::little, "formats are little endian");

void write_npy(const std::filesystem::path& path, std::span<const float> values,
               const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  std::string sizes;
  for (const int64_t size : shape) {
    require(size >= 0 && !__builtin_mul_overflow(elements, size, &elements), path.string(),
            "impossible shape [{}]", fmt::join(shape, ", "));
    sizes += fmt::format("{},", size);
  }
  // A tuple of one needs its comma, longer ones do without the last.
  if (shape.size() > 1) sizes.pop_back();
  require(elements == static_cast<int64_t>(values.size()), path.string(),
          "shape [{}] does not hold {} values", fmt::join(shape, ", "), values.size());

  std::string header =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", sizes);
  // Magic, version and length take 10 bytes; the data starts at a multiple of 64 after a newline.
  constexpr size_t kPreamble = 10, kAlignment = 64;
  header.append(kAlignment - 1 - (kPreamble + header.size()) % kAlignment, ' ');
  header += '\n';
  require(header.size() <= 0xFFFF, path.string(), "too many dimensions: {}", shape.size());

  AtomicFile file(path);
  file.write(std::string_view("\x93NUMPY\x01\x00", 8));
  const char length[2] = {static_cast<char>(header.size() & 0xFF),
                          static_cast<char>(header.size() >> 8)};
  file.write(length, 2);
  file.write(header);
  file.write(values.data(), values.size_bytes());
  file.commit();
}

}  // namespace pronghorn
