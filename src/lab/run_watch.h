// Training runs seen from outside while they go on: the curves of their logs, and whether anybody
// still writes them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/train_log.h"

namespace pronghorn::lab {

// Neighbouring steps of a run.
struct WatchPoint {
  int64_t step = 0, tokens = 0;  // of the last of them, as the next two
  double seconds = 0;
  double learning_rate = 0;
  double loss = 0, gradient_norm = 0, tokens_per_second = 0;  // means
  std::optional<double> held_out_bits_per_byte;               // the last one that was measured
  std::optional<TrainLogLine::ExpertShares> expert_shares;    // the least and the largest
};

// A curve of any number of steps in at most kMostPoints points: when it is full, neighbours become
// one, and from then on a point stands for twice as many steps.
class Curve {
 public:
  static constexpr size_t kMostPoints = 2048;

  void add(const TrainLogLine& line);
  void clear();

  // Whole points: steps that are not enough for one yet are not among them.
  const std::vector<WatchPoint>& points() const { return points_; }
  // Changes when points that were there change.
  int64_t version() const { return version_; }

 private:
  std::vector<WatchPoint> points_;
  WatchPoint next_;
  int64_t steps_in_next_ = 0, steps_of_point_ = 1, version_ = 0;
};

// waiting: no step has ended yet. stopped: it ended early, by a signal or an error. died: its
// process was killed.
enum class RunState { waiting, running, finished, stopped, died };
const char* name_of(RunState state);

struct RunStatus {
  std::string name;  // of its folder; where several have the same, its path
  RunState state = RunState::waiting;
  std::string pattern;          // of its model; empty: not known yet
  std::optional<double> share;  // of its budget that is used up, in [0, 1]
  std::optional<TrainLogLine> last;
  int64_t version = 0, points = 0;  // of its curve
};

class FollowedRun;

// From any thread.
class RunWatch {
 public:
  static constexpr size_t kMostRuns = 100;

  // Folders of runs, or folders with folders of runs in them, which may come later. They need not
  // be there yet.
  explicit RunWatch(std::vector<std::filesystem::path> paths);
  ~RunWatch();

  bool empty() const { return paths_.empty(); }

  // Every run, with what its log says now. Lines that are no lines of a log, as the last one of a
  // run that is being written or was killed, are passed over. At most kMostRuns: `omitted` are
  // further ones.
  struct List {
    std::vector<RunStatus> runs;
    int64_t omitted = 0;
  };
  List list();

  // The points of a run's curve, from number `from` on if `version` is still the curve's, else
  // from the first.
  struct Piece {
    int64_t version = 0, from = 0;
    std::vector<WatchPoint> points;
  };
  // None if there is no run of this name.
  std::optional<Piece> curve(std::string_view name, int64_t version, int64_t from);

 private:
  int64_t find_runs();

  std::vector<std::filesystem::path> paths_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<FollowedRun>> runs_;  // in the order in which they are shown
};

}  // namespace pronghorn::lab
