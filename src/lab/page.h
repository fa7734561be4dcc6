// Pages from templates.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace pronghorn::lab {

// The page with each {{name}} replaced by its value, in one pass: what is put in is not looked at
// again. Throws Error for a name without a value.
std::string filled_page(std::string_view page,
                        const std::map<std::string_view, std::string>& values);

}  // namespace pronghorn::lab
