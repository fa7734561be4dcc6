#include "base/ranks.h"

#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace pronghorn {
namespace {

class OneRank final : public Ranks {
 public:
  int64_t rank() const override { return 0; }
  int64_t count() const override { return 1; }

  void exchange(std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from) override {
    if (!to[0].empty()) std::memcpy(from[0].data(), to[0].data(), to[0].size());
  }

  void abandon(std::string_view why) override { throw Error("rank 0", std::string(why)); }
};

// A whole number of the environment, or `absent`.
int64_t number_in_environment(const char* name, int64_t absent) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return absent;
  int64_t value = 0;
  const char* const end = text + std::strlen(text);
  const auto [read, code] = std::from_chars(text, end, value);
  return code == std::errc() && read == end ? value : absent;
}

// MPI is a plugin: programs that work alone do not load its thirty libraries.
constexpr const char* kPlugin = "libpronghorn_mpi.so";
constexpr const char* kJoin = "pronghorn_join_mpi";

}  // namespace

void Ranks::exchange_as(std::string_view collective, std::span<const std::span<const std::byte>> to,
                        std::span<const std::span<std::byte>> from) {
  const int64_t before = bytes_sent_;
  exchange(to, from);
  sent_as_[std::string(collective)] += bytes_sent_ - before;
}

int64_t Ranks::bytes_sent_as(std::string_view collective) const {
  const auto found = sent_as_.find(collective);
  return found == sent_as_.end() ? 0 : found->second;
}

RankGroup::RankGroup(Ranks& all, int64_t first, int64_t count)
    : all_(all), first_(first), count_(count) {
  require(first >= 0 && count > 0 && first + count <= all.count() && all.rank() >= first &&
              all.rank() < first + count,
          "ranks", "rank {} of {} is none of those from {} to {}", all.rank(), all.count(), first,
          first + count - 1);
}

void RankGroup::exchange(std::span<const std::span<const std::byte>> to,
                         std::span<const std::span<std::byte>> from) {
  std::vector<std::span<const std::byte>> to_all(static_cast<size_t>(all_.count()));
  std::vector<std::span<std::byte>> from_all(to_all.size());
  std::ranges::copy(to, to_all.begin() + first_);
  std::ranges::copy(from, from_all.begin() + first_);
  const int64_t before = all_.bytes_sent();
  all_.exchange(to_all, from_all);
  bytes_sent_ += all_.bytes_sent() - before;
}

Ranks& one_rank() {
  static OneRank rank;
  return rank;
}

Launch launch_of_mpirun() {
  constexpr const char* kCount = "OMPI_COMM_WORLD_SIZE";
  return {number_in_environment("OMPI_COMM_WORLD_RANK", 0), number_in_environment(kCount, 1),
          std::getenv(kCount) != nullptr};
}

std::unique_ptr<Ranks> join_ranks() {
  if (launch_of_mpirun().count <= 1) return std::make_unique<OneRank>();
  void* const plugin = ::dlopen(kPlugin, RTLD_NOW | RTLD_GLOBAL);
  if (plugin == nullptr) {
    throw Error("mpirun", fmt::format("cannot load the plugin of MPI ({})", ::dlerror()),
                "build where libopenmpi-dev is installed, and keep the plugin beside the program");
  }
  const auto join = reinterpret_cast<Ranks* (*)()>(::dlsym(plugin, kJoin));
  require(join != nullptr, kPlugin, "has no {} (is it of another version?)", kJoin);
  return std::unique_ptr<Ranks>(join());
}

}  // namespace pronghorn
