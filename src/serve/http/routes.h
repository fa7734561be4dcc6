// From HTTP requests to endpoints and back.
#pragma once

#include <string>
#include <vector>

#include "serve/http/access.h"
#include "serve/http/connection.h"
#include "serve/http/service.h"

namespace pronghorn::serve {

// Gives the listener a handler for each endpoint. All must outlive it.
void add_routes(HttpListener& listener, Service& service, Keys& keys);

// Their paths, for POST and for GET.
std::vector<std::string> post_paths();
std::vector<std::string> get_paths();

}  // namespace pronghorn::serve
