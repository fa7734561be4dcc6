#include "lab/page.h"

#include "base/error.h"

namespace pronghorn::lab {

std::string filled_page(std::string_view page,
                        const std::map<std::string_view, std::string>& values) {
  std::string result;
  while (true) {
    const size_t open = page.find("{{");
    result += page.substr(0, open);
    if (open == std::string_view::npos) return result;
    const size_t close = page.find("}}", open);
    require(close != std::string_view::npos, "page template", "an open {{{{ at the end");
    const auto value = values.find(page.substr(open + 2, close - open - 2));
    require(value != values.end(), "page template", "no value for {}",
            page.substr(open, close + 2 - open));
    result += value->second;
    page.remove_prefix(close + 2);
  }
}

}  // namespace pronghorn::lab
