// Processes that work on one thing together ("ranks", as MPI calls them), on one machine or
// several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace pronghorn {

// All ranks call the same functions in the same order. What they compute from the answers is the
// same everywhere, so that they decide alike.
class Ranks {
 public:
  virtual ~Ranks() = default;

  virtual int64_t rank() const = 0;   // of this process, from 0
  virtual int64_t count() const = 0;  // of all

  // Sends to[r] to rank r and receives from[r] from it; both have count() spans, and their sizes
  // are the same on both sides. Waits until all of it is done. What a rank sends to itself is
  // copied. Ranks to and from which nothing goes need not take part. Throws Error if a rank cannot
  // be reached.
  virtual void exchange(std::span<const std::span<const std::byte>> to,
                        std::span<const std::span<std::byte>> from) = 0;

  // Ends all ranks, this one after saying why on stderr.
  [[noreturn]] virtual void abandon(std::string_view why) = 0;

  bool is_root() const { return rank() == 0; }
  int64_t bytes_sent() const { return bytes_sent_; }  // to other ranks

  // exchange(), whose bytes are also counted under the name of the collective that makes it.
  void exchange_as(std::string_view collective, std::span<const std::span<const std::byte>> to,
                   std::span<const std::span<std::byte>> from);
  // Of bytes_sent(), those of this collective.
  int64_t bytes_sent_as(std::string_view collective) const;

 protected:
  int64_t bytes_sent_ = 0;

 private:
  std::map<std::string, int64_t, std::less<>> sent_as_;
};

// A process that works alone.
Ranks& one_rank();

// Consecutive ranks of all, as ranks of their own: they call the same functions, and others may do
// something else meanwhile. Bytes that it sends are counted by name in the group, and in `all` only
// in total.
class RankGroup final : public Ranks {
 public:
  // Ranks first ... first + count - 1 of `all`, which must outlive it; this process is one of them.
  RankGroup(Ranks& all, int64_t first, int64_t count);

  int64_t rank() const override { return all_.rank() - first_; }
  int64_t count() const override { return count_; }
  void exchange(std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from) override;
  void abandon(std::string_view why) override { all_.abandon(why); }  // all, not these alone

 private:
  Ranks& all_;
  int64_t first_, count_;
};

// What mpirun says of this process, which need not join the others to know it; without mpirun it is
// one alone.
struct Launch {
  int64_t rank = 0, count = 1;
  bool by_mpirun = false;
};
Launch launch_of_mpirun();

// The ranks that `mpirun` started together, or one alone if it did not. Joins them at its first
// call in the process. Throws Error if this build has no MPI.
std::unique_ptr<Ranks> join_ranks();

// Each rank's values, rank after rank. All give as many.
template <typename T>
std::vector<T> gather(Ranks& ranks, std::span<const T> mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto count = static_cast<size_t>(ranks.count());
  std::vector<T> all(count * mine.size());
  std::vector<std::span<const std::byte>> to(count, std::as_bytes(mine));
  std::vector<std::span<std::byte>> from;
  for (size_t r = 0; r < count; ++r) {
    from.push_back(std::as_writable_bytes(std::span(all).subspan(r * mine.size(), mine.size())));
  }
  ranks.exchange(to, from);
  return all;
}

// The first rank's value.
template <typename T>
T value_of_root(Ranks& ranks, T value) {
  return gather<T>(ranks, std::span<const T>(&value, 1)).front();
}

// Whether it is so on any rank.
inline bool on_any(Ranks& ranks, bool here) {
  const auto value = static_cast<unsigned char>(here);
  for (const unsigned char there : gather<unsigned char>(ranks, std::span(&value, 1))) {
    if (there != 0) return true;
  }
  return false;
}

// Returns when all ranks have come here.
inline void wait_for_all(Ranks& ranks) { on_any(ranks, false); }

}  // namespace pronghorn
