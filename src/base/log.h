// Messages for people on stderr (spdlog), and progress bars.
#pragma once

#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace pronghorn {

// Sends spdlog to stderr in the style of the command line tools. quiet: warnings and errors only.
void set_up_log(bool quiet);

// Seconds on a steady clock.
double now_seconds();

// "1.2 MB", "340 kB": decimal units.
std::string format_bytes(double bytes);
// "12.3k", "4.56M".
std::string format_count(double count);
// "1h 02m", "3m 20s", "4.2s".
std::string format_duration(double seconds);

// One line on stderr that redraws itself on a terminal, or a plain line every ten seconds where
// stderr is a file. Silent for work that ends within two seconds, and when disabled.
class Progress {
 public:
  // label: what is being done. total: units of work, 0 if unknown. unit: "tokens", "MB"...; empty
  // where a rate says nothing (the work is time itself).
  Progress(std::string label, double total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // done: units finished so far. note: shown at the end of the line (a loss, a score).
  void update(double done, std::string_view note = {});
  // Removes the bar; the destructor does the same.
  void finish();

  // Turns all bars of the process off or on (they start on).
  static void set_enabled(bool enabled);

 private:
  std::string label_, unit_;
  double total_, start_, last_draw_ = 0, first_done_ = -1;
  bool terminal_, drawn_ = false, finished_ = false;
};

}  // namespace pronghorn
