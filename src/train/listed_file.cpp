#include "train/listed_file.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"

namespace pronghorn {

std::filesystem::path listed_file(const std::filesystem::path& folder, std::string_view name,
                                  std::string_view where) {
  const std::filesystem::path path(name);
  const bool inside =
      path.is_relative() &&
      std::ranges::none_of(path, [](const std::filesystem::path& part) { return part == ".."; });
  require(!name.empty() && inside, where, "{} is no file in the folder", quote(name));
  return folder / path;
}

}  // namespace pronghorn
