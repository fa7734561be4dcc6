#include "serve/http/runs.h"

#include <charconv>

#include "base/quote.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

template <typename T>
nlohmann::json or_null(const std::optional<T>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

nlohmann::json line_json(const TrainLogLine& line) {
  return {{"step", line.step},
          {"tokens", line.tokens},
          {"seconds", line.seconds},
          {"loss", line.loss},
          {"learning_rate", line.learning_rate},
          {"tokens_per_second", line.tokens_per_second}};
}

std::string text_of(const std::multimap<std::string, std::string>& parameters,
                    const std::string& name) {
  const auto found = parameters.find(name);
  return found == parameters.end() ? std::string() : found->second;
}

// 0 where it is missing.
int64_t number_of(const std::multimap<std::string, std::string>& parameters,
                  const std::string& name) {
  const std::string text = text_of(parameters, name);
  int64_t number = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool whole = code == std::errc() && end == text.data() + text.size() && number >= 0;
  if (!text.empty() && !whole) refuse_field(name, "is not a whole number: " + quote(text));
  return number;
}

}  // namespace

nlohmann::json runs_json(lab::RunWatch& runs) {
  const lab::RunWatch::List list = runs.list();
  nlohmann::json all = nlohmann::json::array();
  for (const lab::RunStatus& run : list.runs) {
    all.push_back({{"name", run.name},
                   {"state", lab::name_of(run.state)},
                   {"pattern", run.pattern},
                   {"share", or_null(run.share)},
                   {"version", run.version},
                   {"points", run.points},
                   {"last", run.last ? line_json(*run.last) : nlohmann::json()}});
  }
  return {{"runs", all}, {"omitted", list.omitted}};
}

nlohmann::json curve_json(lab::RunWatch& runs,
                          const std::multimap<std::string, std::string>& parameters) {
  const std::string name = text_of(parameters, "run");
  const auto piece =
      runs.curve(name, number_of(parameters, "version"), number_of(parameters, "from"));
  if (!piece) throw ApiError(404, "run_not_found", "there is no run " + quote(name), "run");
  nlohmann::json columns = nlohmann::json::object();
  const auto add = [&](const char* column, const auto& value_of) {
    nlohmann::json& values = columns[column] = nlohmann::json::array();
    for (const lab::WatchPoint& point : piece->points) values.push_back(value_of(point));
  };
  const auto add_member = [&](const char* column, auto lab::WatchPoint::*member) {
    add(column, [member](const lab::WatchPoint& point) { return point.*member; });
  };
  add_member("step", &lab::WatchPoint::step);
  add_member("tokens", &lab::WatchPoint::tokens);
  add_member("seconds", &lab::WatchPoint::seconds);
  add_member("loss", &lab::WatchPoint::loss);
  add_member("learning_rate", &lab::WatchPoint::learning_rate);
  add_member("gradient_norm", &lab::WatchPoint::gradient_norm);
  add_member("tokens_per_second", &lab::WatchPoint::tokens_per_second);
  add("held_out_bits_per_byte",
      [](const lab::WatchPoint& point) { return or_null(point.held_out_bits_per_byte); });
  const auto share = [&](const char* column, double TrainLogLine::ExpertShares::*member) {
    add(column, [member](const lab::WatchPoint& point) {
      return point.expert_shares ? nlohmann::json((*point.expert_shares).*member)
                                 : nlohmann::json();
    });
  };
  share("least_expert_share", &TrainLogLine::ExpertShares::least);
  share("most_expert_share", &TrainLogLine::ExpertShares::most);
  return {{"version", piece->version}, {"from", piece->from}, {"points", columns}};
}

}  // namespace pronghorn::serve
