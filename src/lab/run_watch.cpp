#include "lab/run_watch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <system_error>
#include <utility>

#include "base/directory_lock.h"
#include "formats/json.h"
#include "train/training_state.h"

namespace pronghorn::lab {

namespace fs = std::filesystem;

namespace {

// Adds the steps of `other`, which follow, to those of `point`; both have numbers of steps.
void join(WatchPoint& point, int64_t steps, const WatchPoint& other, int64_t other_steps) {
  const double share = static_cast<double>(other_steps) / static_cast<double>(steps + other_steps);
  const auto mean = [share](double& value, double next) { value += share * (next - value); };
  mean(point.loss, other.loss);
  mean(point.gradient_norm, other.gradient_norm);
  mean(point.tokens_per_second, other.tokens_per_second);
  point.step = other.step;
  point.tokens = other.tokens;
  point.seconds = other.seconds;
  point.learning_rate = other.learning_rate;
  if (other.held_out_bits_per_byte) point.held_out_bits_per_byte = other.held_out_bits_per_byte;
  if (other.expert_shares && point.expert_shares) {
    point.expert_shares->least = std::min(point.expert_shares->least, other.expert_shares->least);
    point.expert_shares->most = std::max(point.expert_shares->most, other.expert_shares->most);
  } else if (other.expert_shares) {
    point.expert_shares = other.expert_shares;
  }
}

WatchPoint point_of(const TrainLogLine& line) {
  return {
      line.step,         line.tokens,        line.seconds,           line.learning_rate,
      line.loss,         line.gradient_norm, line.tokens_per_second, line.held_out_bits_per_byte,
      line.expert_shares};
}

bool is_run(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / kTrainLogFile, error) ||
         fs::exists(folder / kTrainingStateFile, error);
}

// The folders of runs that `path` stands for, sorted.
std::vector<fs::path> runs_below(const fs::path& path) {
  if (is_run(path)) return {path};
  std::vector<fs::path> runs;
  std::error_code error;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    if (is_run(entry->path())) runs.push_back(entry->path());
  }
  std::ranges::sort(runs);
  return runs;
}

// "a" of "runs/a/" and of "runs/a".
std::string folder_name(const fs::path& folder) {
  const fs::path plain = fs::absolute(folder).lexically_normal();
  return (plain.has_filename() ? plain : plain.parent_path()).filename().string();
}

}  // namespace

void Curve::add(const TrainLogLine& line) {
  const WatchPoint point = point_of(line);
  if (steps_in_next_ == 0) {
    next_ = point;
  } else {
    join(next_, steps_in_next_, point, 1);
  }
  if (++steps_in_next_ < steps_of_point_) return;
  points_.push_back(next_);
  steps_in_next_ = 0;
  if (points_.size() < kMostPoints) return;
  for (size_t i = 0; i < kMostPoints / 2; ++i) {
    WatchPoint pair = points_[2 * i];
    join(pair, steps_of_point_, points_[2 * i + 1], steps_of_point_);
    points_[i] = pair;
  }
  points_.resize(kMostPoints / 2);
  steps_of_point_ *= 2;
  ++version_;
}

void Curve::clear() {
  const int64_t version = version_ + 1;
  *this = Curve();
  version_ = version;
}

const char* name_of(RunState state) {
  switch (state) {
    case RunState::waiting:
      return "waiting";
    case RunState::running:
      return "running";
    case RunState::finished:
      return "finished";
    case RunState::stopped:
      return "stopped";
    case RunState::died:
      return "died";
  }
  return "";
}

// A log that is read as it grows, and what stands beside it.
class FollowedRun {
 public:
  explicit FollowedRun(fs::path folder) : folder_(std::move(folder)) {}
  ~FollowedRun() { close(); }
  FollowedRun(const FollowedRun&) = delete;
  FollowedRun& operator=(const FollowedRun&) = delete;

  const fs::path& folder() const { return folder_; }
  const Curve& curve() const { return curve_; }
  std::string name;

  RunStatus refresh() {
    const DirectoryUse use = directory_use(folder_);  // first: what it writes last is then read
    read_log();
    read_identity();
    RunStatus status;
    status.name = name;
    status.pattern = pattern_;
    status.last = last_;
    status.version = curve_.version();
    status.points = std::ssize(curve_.points());
    if (last_) status.share = share_of(*last_);
    const bool complete = status.share && *status.share >= 1;
    if (use == DirectoryUse::held) {
      status.state = last_ ? RunState::running : RunState::waiting;
    } else if (complete) {
      status.state = RunState::finished;
    } else if (use == DirectoryUse::abandoned) {
      status.state = RunState::died;
    } else {
      status.state = last_ ? RunState::stopped : RunState::waiting;
    }
    return status;
  }

 private:
  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }

  // The file stays open, so that another one in its place has another number.
  void open_log() {
    const fs::path path = folder_ / kTrainLogFile;
    struct stat opened {
    }, named{};
    if (::stat(path.c_str(), &named) != 0 || !S_ISREG(named.st_mode)) return;
    if (descriptor_ >= 0 && ::fstat(descriptor_, &opened) == 0 && opened.st_ino == named.st_ino &&
        opened.st_dev == named.st_dev && named.st_size >= read_) {
      return;
    }
    close();
    read_ = 0;
    held_.clear();
    last_.reset();
    curve_.clear();
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  }

  // Reads on, a part of a very long log at a time: the rest comes with the next call.
  void read_log() {
    constexpr int64_t kMostAtOnce = int64_t{64} << 20;
    constexpr size_t kLongestLine = size_t{1} << 20;
    open_log();
    if (descriptor_ < 0) return;
    std::string buffer(size_t{1} << 18, '\0');
    for (int64_t bytes = 0; bytes < kMostAtOnce;) {
      const ssize_t count = ::pread(descriptor_, buffer.data(), buffer.size(), read_);
      if (count <= 0) return;
      read_ += count;
      bytes += count;
      held_.append(buffer.data(), static_cast<size_t>(count));
      take_lines();
      if (held_.size() > kLongestLine) held_.clear();  // what is left of it is no line either
    }
  }

  void take_lines() {
    size_t begin = 0;
    for (size_t end; (end = held_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const auto line = parse_train_log_line(std::string_view(held_).substr(begin, end - begin));
      if (!line) continue;
      curve_.add(*line);
      last_ = *line;
    }
    held_.erase(0, begin);
  }

  // What the run is to be: known from its first saved state on, and larger after some resumptions.
  void read_identity() {
    const fs::path path = folder_ / kTrainingStateFile;
    std::error_code error;
    const fs::file_time_type time = fs::last_write_time(path, error);
    if (error || time == identity_time_) return;
    identity_time_ = time;
    try {
      const nlohmann::json identity = saved_identity(path);
      budget_.clear();
      for (const auto& [key, value] : identity.at("budget").items()) {
        if (value.is_number()) budget_[key] = value.get<double>();
      }
      pattern_ = identity.at("model configuration").value("pattern", "");
    } catch (const std::exception&) {  // not a state, or one of another time: the curves do without
    }
  }

  std::optional<double> share_of(const TrainLogLine& line) const {
    std::optional<double> share;
    for (const auto& [key, done] : {std::pair("steps", static_cast<double>(line.step)),
                                    {"tokens", static_cast<double>(line.tokens)},
                                    {"seconds", line.seconds}}) {
      const auto budget = budget_.find(key);
      if (budget != budget_.end() && budget->second > 0) {
        share = std::clamp(done / budget->second, 0.0, 1.0);
      }
    }
    return share;
  }

  fs::path folder_;
  Curve curve_;
  std::optional<TrainLogLine> last_;
  int descriptor_ = -1;
  int64_t read_ = 0;  // bytes of the log
  std::string held_;  // the beginning of a line whose end is still to come
  fs::file_time_type identity_time_;
  std::map<std::string, double, std::less<>> budget_;
  std::string pattern_;
};

RunWatch::RunWatch(std::vector<fs::path> paths) : paths_(std::move(paths)) {}

RunWatch::~RunWatch() = default;

// Follows what is there now; returns how many runs are too many.
int64_t RunWatch::find_runs() {
  std::vector<fs::path> folders;
  for (const fs::path& path : paths_) {
    for (fs::path& folder : runs_below(path)) {
      if (std::ranges::find(folders, folder) == folders.end()) folders.push_back(std::move(folder));
    }
  }
  const int64_t omitted = std::max<int64_t>(0, std::ssize(folders) - int64_t{kMostRuns});
  folders.resize(folders.size() - static_cast<size_t>(omitted));
  std::map<std::string, int> named;
  for (const fs::path& folder : folders) ++named[folder_name(folder)];
  std::vector<std::unique_ptr<FollowedRun>> runs;
  for (const fs::path& folder : folders) {
    const auto known = std::ranges::find_if(
        runs_, [&](const auto& run) { return run && run->folder() == folder; });
    runs.push_back(known != runs_.end() ? std::move(*known)
                                        : std::make_unique<FollowedRun>(folder));
    const std::string name = folder_name(folder);
    runs.back()->name = named[name] == 1 ? name : folder.lexically_normal().string();
  }
  runs_ = std::move(runs);
  return omitted;
}

RunWatch::List RunWatch::list() {
  const std::lock_guard lock(mutex_);
  List list;
  list.omitted = find_runs();
  for (const auto& run : runs_) list.runs.push_back(run->refresh());
  return list;
}

std::optional<RunWatch::Piece> RunWatch::curve(std::string_view name, int64_t version,
                                               int64_t from) {
  const std::lock_guard lock(mutex_);
  const auto run = std::ranges::find_if(runs_, [&](const auto& one) { return one->name == name; });
  if (run == runs_.end()) return std::nullopt;
  const Curve& curve = (*run)->curve();
  const std::vector<WatchPoint>& points = curve.points();
  Piece piece;
  piece.version = curve.version();
  piece.from = version == piece.version ? std::clamp<int64_t>(from, 0, std::ssize(points)) : 0;
  piece.points.assign(points.begin() + piece.from, points.end());
  return piece;
}

}  // namespace pronghorn::lab
