// Ranks that are threads of one process.
#pragma once

#include <barrier>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/ranks.h"

namespace pronghorn::testing_support {

class ThreadRanks {
 public:
  // Runs `body` once for each of `count` ranks, and returns the bytes that each sent. All must
  // exchange alike: a body that throws ends the process.
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
    return sent;
  }

 private:
  explicit ThreadRanks(int64_t count) : messages_(static_cast<size_t>(count)), barrier_(count) {}

  class Member final : public Ranks {
   public:
    Member(ThreadRanks& all, int64_t rank) : all_(all), rank_(rank) {}
    int64_t rank() const override { return rank_; }
    int64_t count() const override { return std::ssize(all_.messages_); }

    void exchange(std::span<const std::span<const std::byte>> to,
                  std::span<const std::span<std::byte>> from) override {
      const auto me = static_cast<size_t>(rank_);
      all_.messages_[me].assign(to.begin(), to.end());
      all_.barrier_.arrive_and_wait();
      for (size_t r = 0; r < from.size(); ++r) {
        const std::span<const std::byte> message = all_.messages_[r][me];
        require(message.size() == from[r].size(), "exchange", "{} bytes where {} were awaited",
                message.size(), from[r].size());
        if (!message.empty()) std::memcpy(from[r].data(), message.data(), message.size());
        if (r != me) bytes_sent_ += static_cast<int64_t>(to[r].size());
      }
      all_.barrier_.arrive_and_wait();
    }

    void abandon(std::string_view why) override { throw Error("rank", why); }

   private:
    ThreadRanks& all_;
    int64_t rank_;
  };

  std::vector<std::vector<std::span<const std::byte>>> messages_;
  std::barrier<> barrier_;
};

}  // namespace pronghorn::testing_support
