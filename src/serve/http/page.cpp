#include "serve/http/page.h"

#include <string_view>

#include "lab/page.h"

namespace pronghorn {

namespace embedded {
extern const std::string_view kChartScript, kChartParts;  // of the reports
extern const std::string_view kPageStyle, kPageScript, kChatPage, kChatStyle, kChatScript,
    kChatView, kWatchPage, kWatchStyle, kWatchScript;
}  // namespace embedded

namespace serve {

std::string chat_page(bool runs) {
  return lab::filled_page(
      embedded::kChatPage,
      {{"page_style", std::string(embedded::kPageStyle)},
       {"style", std::string(embedded::kChatStyle)},
       {"page_script", std::string(embedded::kPageScript)},
       {"script", std::string(embedded::kChatScript)},
       {"view", std::string(embedded::kChatView)},
       {"link", runs ? R"(<a class="link" href="/watch">Training runs</a>)" : ""}});
}

std::string watch_page(bool models) {
  return lab::filled_page(embedded::kWatchPage,
                          {{"page_style", std::string(embedded::kPageStyle)},
                           {"style", std::string(embedded::kWatchStyle)},
                           {"page_script", std::string(embedded::kPageScript)},
                           {"chart_script", std::string(embedded::kChartScript)},
                           {"chart_parts", std::string(embedded::kChartParts)},
                           {"script", std::string(embedded::kWatchScript)},
                           {"link", models ? R"(<a class="link" href="/">Chat</a>)" : ""}});
}

const std::string& page_policy() {
  static const std::string policy =
      "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
      "'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
  return policy;
}

}  // namespace serve
}  // namespace pronghorn
