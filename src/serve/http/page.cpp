#include "serve/http/page.h"

#include <string_view>

#include "lab/page.h"

namespace pronghorn {

namespace embedded {
extern const std::string_view kChatPage, kChatStyle, kChatScript, kChatView;
}  // namespace embedded

namespace serve {

const std::string& page() {
  static const std::string page =
      lab::filled_page(embedded::kChatPage, {{"style", std::string(embedded::kChatStyle)},
                                             {"script", std::string(embedded::kChatScript)},
                                             {"view", std::string(embedded::kChatView)}});
  return page;
}

const std::string& page_policy() {
  static const std::string policy =
      "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
      "'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
  return policy;
}

}  // namespace serve
}  // namespace pronghorn
