// The endpoints: each reads a request and answers it. They throw ApiError, Error and ClientGone.
#pragma once

#include "serve/http/service.h"

namespace pronghorn::serve {

// OpenAI's API.
Reply chat_completions(Service& service, Call& call);
Reply completions(Service& service, Call& call);
Reply responses(Service& service, Call& call);
Reply embeddings(Service& service, Call& call);
nlohmann::json models_json(const Service& service);

// Anthropic's.
Reply messages(Service& service, Call& call);
Reply count_message_tokens(Service& service, Call& call);

// States of texts in files (ServerOptions::session_directory).
Reply save_session(Service& service, Call& call);
Reply restore_session(Service& service, Call& call);
Reply list_sessions(Service& service, Call& call);
Reply delete_session(Service& service, Call& call);

// Texts and tokens, without a run of the model.
Reply tokenize(Service& service, Call& call);
Reply detokenize(Service& service, Call& call);
Reply apply_template(Service& service, Call& call);

}  // namespace pronghorn::serve
