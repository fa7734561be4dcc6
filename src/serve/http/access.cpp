#include "serve/http/access.h"

#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"

namespace pronghorn::serve {
namespace {

constexpr uint64_t kMostKeyBytes = uint64_t{1} << 20;

std::vector<std::string> read_keys(const std::filesystem::path& file) {
  std::istringstream in(read_file(file, kMostKeyBytes));
  std::vector<std::string> keys;
  for (std::string line; std::getline(in, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    line.erase(0, line.find_first_not_of(" \t"));
    if (!line.empty() && line.front() != '#') keys.push_back(line);
  }
  require(!keys.empty(), file.string(), "holds no key");
  return keys;
}

bool same(std::string_view key, std::string_view known) {
  auto different = static_cast<unsigned char>(key.size() != known.size());
  for (size_t i = 0; i < key.size(); ++i) {
    different |= static_cast<unsigned char>(key[i] ^ known[i % known.size()]);
  }
  return different == 0;
}

// "localhost" of "localhost:8080", "::1" of "[::1]:8080".
std::string_view without_port(std::string_view host) {
  if (host.starts_with('[')) return host.substr(1, host.find(']') - 1);
  return host.substr(0, host.find(':'));
}

bool names_this_machine(std::string_view host) {
  const bool loopback =
      host.starts_with("127.") && host.find_first_not_of("0123456789.") == host.npos;
  return host == "localhost" || host == "::1" || loopback;
}

}  // namespace

Keys::Keys(std::filesystem::path file) : file_(std::move(file)) {
  if (file_.empty()) return;
  time_ = std::filesystem::last_write_time(file_);
  keys_ = read_keys(file_);
}

void Keys::reread() {
  std::error_code failed;
  const auto time = std::filesystem::last_write_time(file_, failed);
  if (failed || time == time_) return;
  time_ = time;
  try {
    keys_ = read_keys(file_);
  } catch (const Error& error) {
    spdlog::warn("{}; the keys stay what they were", error.what());
  }
}

bool Keys::accept(std::string_view key) {
  if (file_.empty()) return true;
  const std::lock_guard lock(mutex_);
  reread();
  bool accepted = false;
  for (const std::string& known : keys_) accepted = same(key, known) || accepted;
  return accepted;
}

std::string_view key_of(std::string_view authorization, std::string_view api_key) {
  constexpr std::string_view kBearer = "Bearer ";
  if (authorization.starts_with(kBearer)) return authorization.substr(kBearer.size());
  return api_key;
}

bool origin_allowed(std::string_view origin, std::string_view host, std::string_view allowed) {
  if (origin.empty() || allowed == "*" || origin == allowed) return true;
  const size_t scheme = origin.find("://");
  return scheme != origin.npos && !host.empty() && origin.substr(scheme + 3) == host;
}

bool host_allowed(std::string_view host, std::string_view address) {
  if (!names_this_machine(address)) return true;
  const std::string_view name = without_port(host);
  return name.empty() || names_this_machine(name) || name == address;
}

}  // namespace pronghorn::serve
