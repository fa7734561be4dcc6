#include "bench_profile.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "command.h"
#include "lab/table.h"

namespace pronghorn::app {
namespace {

// Rows below this share of the time are printed together.
constexpr double kLeastShare = 0.002;

std::string times_text(double value) {
  return value < 10 && value != static_cast<double>(static_cast<int64_t>(value))
             ? fmt::format("{:.1f}", value)
             : fmt::format("{:.0f}", value);
}

std::string microseconds_text(double seconds) {
  const double value = 1e6 * seconds;
  return value < 10 ? fmt::format("{:.2f}", value)
                    : fmt::format("{:.{}f}", value, value < 1000 ? 1 : 0);
}

std::string amount_text(double amount, double scale) {
  if (amount == 0) return "-";
  const double value = amount / scale;
  return fmt::format("{:.{}f}", value, value < 1 ? 4 : value < 100 ? 2 : 0);
}

std::string ceiling_text(const lab::ProfileRow& row, const MachineCeilings& machine) {
  const double share = row.share_of_ceiling(machine);
  if (share == 0) return "-";
  return fmt::format("{:.0f}% {}", 100 * share, row.bound_by_memory(machine) ? "memory" : "matrix");
}

// "mixer" of "mixer.q_proj".
std::string first_part(const std::string& name) { return name.substr(0, name.find('.')); }

// Shares of the time by kind, and of products by the layer that has the weight.
std::string kinds_text(const lab::Profile& profile) {
  std::map<std::string, double> seconds;
  for (const lab::ProfileRow& row : profile.rows) {
    std::string kind = row.kind.empty() ? row.kernel : row.kind;
    if (!row.weights.empty()) kind = first_part(row.weights) + " " + kind + "s";
    seconds[kind] += row.seconds;
  }
  std::vector<std::pair<std::string, double>> kinds(seconds.begin(), seconds.end());
  std::ranges::sort(kinds, std::greater<>(), &std::pair<std::string, double>::second);
  std::vector<std::string> parts;
  for (const auto& [kind, time] : kinds) {
    parts.push_back(fmt::format("{} {:.1f}%", kind, 100 * time / profile.seconds));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

void print_profile(const lab::Profile& profile, const MachineCeilings& machine) {
  const auto steps = static_cast<double>(profile.steps);
  const char* step = profile.what == "decode"   ? "token"
                     : profile.what == "prompt" ? "prompt"
                                                : "step";
  lab::Table table({{profile.what, lab::Align::kLeft},
                    {"weights", lab::Align::kLeft},
                    {"calls"},
                    {"forks"},
                    {"us"},
                    {"share"},
                    {"MB"},
                    {"GFLOP"},
                    {"of the ceiling"}});
  int64_t forks = 0;
  lab::ProfileRow rest{"others", "", "", 0, 0, 0, 0, 0, Arithmetic::f32};
  const auto add = [&](const lab::ProfileRow& row, const std::string& ceiling) {
    table.add_row(
        {row.kernel, row.weights.empty() ? lab::Cell("") : row.weights,
         row.calls == 0 ? "-" : times_text(static_cast<double>(row.calls) / steps),
         times_text(static_cast<double>(row.forks) / steps), microseconds_text(row.seconds / steps),
         fmt::format("{:.1f}%", 100 * row.seconds / profile.seconds),
         amount_text(row.bytes / steps, 1e6), amount_text(row.operations / steps, 1e9), ceiling});
  };
  for (const lab::ProfileRow& row : profile.rows) {
    forks += row.forks;
    if (row.kind.empty()) {
      if (rest.calls > 0) add(rest, "-");
      add(row, "-");
    } else if (row.seconds < kLeastShare * profile.seconds) {
      rest.calls += row.calls;
      rest.forks += row.forks;
      rest.seconds += row.seconds;
      rest.bytes += row.bytes;
      rest.operations += row.operations;
    } else {
      add(row, ceiling_text(row, machine));
    }
  }
  fmt::print("\n");
  print_table(table);
  const double each = profile.seconds / steps;
  const double forking = 1e-9 * (machine.fork_nanoseconds + machine.join_nanoseconds) *
                         static_cast<double>(forks) / steps;
  fmt::print("{} us a {}, {:.1f} tokens/s; {} forks, about {:.1f}% of the time\n{}\n",
             microseconds_text(each), step, static_cast<double>(profile.tokens) / profile.seconds,
             times_text(static_cast<double>(forks) / steps), 100 * forking / each,
             kinds_text(profile));
}

nlohmann::json row_json(const lab::ProfileRow& row, const lab::Profile& profile,
                        const MachineCeilings& machine) {
  nlohmann::json json = {{"kernel", row.kernel},   {"kind", row.kind},
                         {"calls", row.calls},     {"forks", row.forks},
                         {"seconds", row.seconds}, {"share", row.seconds / profile.seconds}};
  if (!row.weights.empty()) json["weights"] = row.weights;
  if (row.bytes > 0) json["bytes"] = row.bytes;
  if (row.operations > 0) json["operations"] = row.operations;
  if (const double share = row.share_of_ceiling(machine); share > 0) {
    json["share_of_ceiling"] = share;
    json["bound_by"] = row.bound_by_memory(machine) ? "read_bandwidth" : "matrix_peak";
  }
  return json;
}

}  // namespace

void print_profiles(std::span<const lab::Profile> profiles, const MachineCeilings& machine) {
  for (const lab::Profile& profile : profiles) print_profile(profile, machine);
}

nlohmann::json profiles_json(std::span<const lab::Profile> profiles,
                             const MachineCeilings& machine) {
  nlohmann::json all = nlohmann::json::array();
  for (const lab::Profile& profile : profiles) {
    nlohmann::json rows = nlohmann::json::array();
    for (const lab::ProfileRow& row : profile.rows) {
      rows.push_back(row_json(row, profile, machine));
    }
    all.push_back({{"what", profile.what},
                   {"steps", profile.steps},
                   {"tokens", profile.tokens},
                   {"seconds", profile.seconds},
                   {"rows", std::move(rows)}});
  }
  return all;
}

}  // namespace pronghorn::app
