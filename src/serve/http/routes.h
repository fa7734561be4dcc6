// From HTTP requests to endpoints and back.
#pragma once

#include "serve/http/access.h"
#include "serve/http/connection.h"
#include "serve/http/service.h"

namespace pronghorn::serve {

// Gives the listener a handler for each endpoint. All must outlive it.
void add_routes(HttpListener& listener, Service& service, Keys& keys);

}  // namespace pronghorn::serve
