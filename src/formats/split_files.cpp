#include "formats/split_files.h"

#include <string>
#include <vector>

#include "base/error.h"

namespace pronghorn {

void require_parts(std::span<const std::filesystem::path> parts) {
  std::vector<std::string> missing;
  std::error_code none;
  for (const std::filesystem::path& part : parts) {
    if (!std::filesystem::exists(part, none)) missing.push_back(part.string());
  }
  if (missing.empty()) return;
  const std::string others =
      missing.size() > 1 ? fmt::format(" and {} more", missing.size() - 1) : std::string();
  throw Error(missing.front(),
              fmt::format("is missing{}: the model has {} part{}", others, parts.size(),
                          parts.size() == 1 ? "" : "s"),
              "put all of them into one directory");
}

}  // namespace pronghorn
