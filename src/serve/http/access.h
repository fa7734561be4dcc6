// Who may ask: keys from a file, and pages of which origin.
#pragma once

#include <filesystem>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn::serve {

// Keys, one per line of a file; empty lines and those that begin with # are none. The file is read
// again when it has changed. From any thread.
class Keys {
 public:
  // Throws Error if the file cannot be read or has no key. Empty path: everybody has access.
  explicit Keys(std::filesystem::path file);

  // Takes the same time for every wrong key of a length, wherever it differs.
  bool accept(std::string_view key);

 private:
  void reread();

  std::filesystem::path file_;
  std::mutex mutex_;
  std::filesystem::file_time_type time_;
  std::vector<std::string> keys_;
};

// The key of the headers Authorization ("Bearer KEY") and x-api-key, the first that is there.
std::string_view key_of(std::string_view authorization, std::string_view api_key);

// Whether the pages of `origin`, which a browser names, may ask a server that it reaches as `host`:
// our own page, and those that `allowed` names ("*": all). Requests without an origin are no
// page's.
bool origin_allowed(std::string_view origin, std::string_view host, std::string_view allowed);

// Whether a request that names `host` may be meant for a server that listens at `address`. One that
// is for this machine alone answers to no other name, so that pages of other sites cannot reach it
// by a name of theirs that leads here.
bool host_allowed(std::string_view host, std::string_view address);

}  // namespace pronghorn::serve
