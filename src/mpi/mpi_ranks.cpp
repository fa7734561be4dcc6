// Ranks over Open MPI. Built as a plugin that base/ranks.cpp loads.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/ranks.h"

namespace pronghorn {
namespace {

class MpiRanks final : public Ranks {
 public:
  MpiRanks() {
    int already = 0;
    MPI_Initialized(&already);
    // Exchanges are made by the thread that trains; the pool's threads never call MPI.
    int provided = 0;
    if (already == 0) {
      check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
      // Not when a run ends: a process may train and compare again, and MPI begins only once.
      std::atexit([] {
        int ended = 0;
        MPI_Finalized(&ended);
        if (ended == 0) MPI_Finalize();
      });
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    int rank = 0, count = 0;
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    check(MPI_Comm_size(MPI_COMM_WORLD, &count));
    rank_ = rank;
    count_ = count;
  }

  int64_t rank() const override { return rank_; }
  int64_t count() const override { return count_; }

  void exchange(std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from) override {
    const auto me = static_cast<size_t>(rank_);
    std::vector<MPI_Request> requests;
    const auto in_pieces = [&](size_t size, auto&& start) {
      for (size_t at = 0; at < size; at += kPiece) {
        requests.emplace_back();
        start(at, static_cast<int>(std::min(kPiece, size - at)), &requests.back());
      }
    };
    for (int64_t step = 1; step < count_; ++step) {
      const auto source = static_cast<size_t>((rank_ + count_ - step) % count_);
      in_pieces(from[source].size(), [&](size_t at, int size, MPI_Request* request) {
        check(MPI_Irecv(from[source].data() + at, size, MPI_BYTE, static_cast<int>(source), kTag,
                        MPI_COMM_WORLD, request));
      });
    }
    for (int64_t step = 1; step < count_; ++step) {
      const auto goal = static_cast<size_t>((rank_ + step) % count_);
      in_pieces(to[goal].size(), [&](size_t at, int size, MPI_Request* request) {
        check(MPI_Isend(to[goal].data() + at, size, MPI_BYTE, static_cast<int>(goal), kTag,
                        MPI_COMM_WORLD, request));
      });
      bytes_sent_ += static_cast<int64_t>(to[goal].size());
    }
    if (!to[me].empty()) std::memcpy(from[me].data(), to[me].data(), to[me].size());
    check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE));
  }

  void abandon(std::string_view why) override {
    // What went wrong went wrong on all ranks, most often: the first one's message is enough.
    if (rank_ != 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    std::fprintf(stderr, "pronghorn: rank %d: %.*s\n", static_cast<int>(rank_),
                 static_cast<int>(why.size()), why.data());
    std::fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, 1);
    std::abort();
  }

 private:
  static constexpr int kTag = 1;
  static constexpr size_t kPiece = size_t{1} << 30;  // MPI counts in int

  void check(int status) const {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(status, text, &length);
    throw Error(fmt::format("rank {}", rank_), std::string(text, static_cast<size_t>(length)),
                "start the same command again with --resume");
  }

  int64_t rank_ = 0, count_ = 1;
};

}  // namespace
}  // namespace pronghorn

extern "C" __attribute__((visibility("default"))) pronghorn::Ranks* pronghorn_join_mpi() {
  return new pronghorn::MpiRanks();
}
