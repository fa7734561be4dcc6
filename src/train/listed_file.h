// Files that a list in a folder names.
#pragma once

#include <filesystem>
#include <string_view>

namespace pronghorn {

// The file of that name in `folder`, which a list there names: a list says nothing of files outside
// of its folder. where: the place in the list, for messages. Throws Error for names that are empty,
// absolute, or lead out of the folder.
std::filesystem::path listed_file(const std::filesystem::path& folder, std::string_view name,
                                  std::string_view where);

}  // namespace pronghorn
