// The page at "/": a chat with the models of this server, in one document.
#pragma once

#include <string>

namespace pronghorn::serve {

const std::string& page();
// What the page may do, for a Content-Security-Policy: run what is in it, and ask this server.
const std::string& page_policy();

}  // namespace pronghorn::serve
