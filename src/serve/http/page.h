// The pages of the server, each in one document.
#pragma once

#include <string>

namespace pronghorn::serve {

// At "/": a chat with the models of this server. runs: with a link to the next.
std::string chat_page(bool runs);
// At "/watch": curves of training runs. models: with a link to the chat.
std::string watch_page(bool models);
// What the pages may do, for a Content-Security-Policy: run what is in them, and ask this server.
const std::string& page_policy();

}  // namespace pronghorn::serve
