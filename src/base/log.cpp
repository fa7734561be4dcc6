#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <utility>

#include "base/terminal.h"

namespace pronghorn {
namespace {

constexpr double kSilentSeconds = 2;    // shorter work shows no bar
constexpr double kRedrawSeconds = 0.1;  // on a terminal
constexpr double kLineSeconds = 10;     // where stderr is a file

std::atomic<bool> bars_enabled{true};

size_t terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20) return size.ws_col;
  return 100;
}

}  // namespace

void set_up_log(bool quiet) {
  auto logger = spdlog::get("pronghorn");
  if (!logger) {
    const bool styles = terminal_shows_styles(STDERR_FILENO);
    logger = spdlog::stderr_color_mt(
        "pronghorn", styles ? spdlog::color_mode::automatic : spdlog::color_mode::never);
  }
  logger->set_pattern("%^%v%$");
  logger->set_level(quiet ? spdlog::level::warn : spdlog::level::info);
  spdlog::set_default_logger(logger);
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string format_bytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 999.5 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f} B", bytes);
  return fmt::format("{:.{}f} {}", bytes, bytes < 10 ? 2 : bytes < 100 ? 1 : 0, kUnits[unit]);
}

std::string format_count(double count) {
  static constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  int unit = 0;
  while (count >= 999.5 && unit < 4) {
    count /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f}", count);
  return fmt::format("{:.{}f}{}", count, count < 10 ? 2 : count < 100 ? 1 : 0, kUnits[unit]);
}

std::string format_duration(double seconds) {
  constexpr double kMinute = 59.95;  // what would read "60.0s"
  if (seconds < kMinute) return fmt::format("{:.1f}s", seconds);
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{}m {:02d}s", whole / 60, whole % 60);
  return fmt::format("{}h {:02d}m", whole / 3600, whole % 3600 / 60);
}

Progress::Progress(std::string label, double total, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      start_(now_seconds()),
      terminal_(terminal_obeys(STDERR_FILENO)) {}

Progress::~Progress() { finish(); }

void Progress::set_enabled(bool enabled) { bars_enabled = enabled; }

void Progress::update(double done, std::string_view note) {
  if (!bars_enabled || finished_) return;
  const double now = now_seconds();
  if (first_done_ < 0) {
    first_done_ = done;
    start_ = now;
  }
  const double elapsed = now - start_;
  if (elapsed < kSilentSeconds) return;
  if (now - last_draw_ < (terminal_ ? kRedrawSeconds : kLineSeconds)) return;
  last_draw_ = now;

  const double rate = (done - first_done_) / elapsed;
  std::string line = label_;
  if (total_ > 0) {
    const double share = std::clamp(done / total_, 0.0, 1.0);
    if (terminal_) {
      constexpr int kWidth = 24;
      const int filled = static_cast<int>(share * kWidth);
      line += fmt::format(" [{}{}]", std::string(filled, '#'), std::string(kWidth - filled, '.'));
    }
    line += fmt::format(" {:3.0f}%", share * 100);
  }
  if (!unit_.empty()) line += fmt::format("  {} {}/s", format_count(rate), unit_);
  if (total_ > 0 && rate > 0) {
    // Work that is time itself goes on for what is left of it, whatever was done in between. The
    // last piece of work may go beyond the total.
    const double left = std::max(0.0, total_ - done) / (unit_.empty() ? 1 : rate);
    line += fmt::format("  {} left", format_duration(left));
  }
  if (!note.empty()) line += fmt::format("  {}", note);
  if (terminal_) {
    line.resize(std::min(line.size(), terminal_width() - 1));
    fmt::print(stderr, "\r\x1b[K{}", line);
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
  drawn_ = true;
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (drawn_ && terminal_) {
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
  }
}

}  // namespace pronghorn
