// Ranks that are threads of one process.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/ranks.h"

namespace pronghorn::testing_support {

// As in MPI, what goes from one rank to another arrives in its order, and pairs between which
// nothing goes do not wait for each other.
class ThreadRanks {
 public:
  // Runs `body` once for each of `count` ranks, and returns the bytes that each sent. All must
  // exchange alike: a body that throws ends the process, and a message that nobody has taken is an
  // Error.
  static std::vector<int64_t> run(int64_t count, const std::function<void(Ranks&)>& body) {
    ThreadRanks all(count);
    std::vector<int64_t> sent(static_cast<size_t>(count));
    std::vector<std::thread> threads;
    for (int64_t r = 0; r < count; ++r) {
      threads.emplace_back([&, r]() noexcept {
        Member member(all, r);
        body(member);
        sent[static_cast<size_t>(r)] = member.bytes_sent();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Way& each : all.ways_) {
      require(each.messages.empty(), "exchange", "{} messages that nobody took",
              each.messages.size());
    }
    return sent;
  }

 private:
  // From one rank to another.
  struct Way {
    std::mutex mutex;
    std::condition_variable filled;
    std::deque<std::vector<std::byte>> messages;
  };

  explicit ThreadRanks(int64_t count)
      : count_(static_cast<size_t>(count)), ways_(count_ * count_) {}

  Way& between(size_t from, size_t to) { return ways_[from * count_ + to]; }

  class Member final : public Ranks {
   public:
    Member(ThreadRanks& all, int64_t rank) : all_(all), rank_(rank) {}
    int64_t rank() const override { return rank_; }
    int64_t count() const override { return static_cast<int64_t>(all_.count_); }

    void exchange(std::span<const std::span<const std::byte>> to,
                  std::span<const std::span<std::byte>> from) override {
      const auto me = static_cast<size_t>(rank_);
      require(to.size() == all_.count_ && from.size() == all_.count_, "exchange",
              "{} and {} spans for {} ranks", to.size(), from.size(), all_.count_);
      for (size_t r = 0; r < to.size(); ++r) {
        if (to[r].empty()) continue;
        Way& way = all_.between(me, r);
        const std::lock_guard lock(way.mutex);
        way.messages.emplace_back(to[r].begin(), to[r].end());
        way.filled.notify_one();
        if (r != me) bytes_sent_ += static_cast<int64_t>(to[r].size());
      }
      for (size_t r = 0; r < from.size(); ++r) {
        if (from[r].empty()) continue;
        Way& way = all_.between(r, me);
        std::unique_lock lock(way.mutex);
        way.filled.wait(lock, [&] { return !way.messages.empty(); });
        const std::vector<std::byte> message = std::move(way.messages.front());
        way.messages.pop_front();
        require(message.size() == from[r].size(), "exchange", "{} bytes where {} were awaited",
                message.size(), from[r].size());
        std::memcpy(from[r].data(), message.data(), message.size());
      }
    }

    void abandon(std::string_view why) override { throw Error("rank", why); }

   private:
    ThreadRanks& all_;
    int64_t rank_;
  };

  size_t count_;
  std::vector<Way> ways_;  // neither copied nor moved
};

}  // namespace pronghorn::testing_support
