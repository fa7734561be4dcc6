// GET /runs and /runs/curve: training runs for the page that shows them.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "lab/run_watch.h"

namespace pronghorn::serve {

// {"runs": [{name, state, pattern, share, version, points, last: {step, tokens, ...}}, ...],
// "omitted": n}; null for what is not known.
nlohmann::json runs_json(lab::RunWatch& runs);

// {"version": v, "from": n, "points": {step: [...], tokens: [...], ...}}: what is new in the curve
// of `run` to a page that has the first `from` points of its `version`. Throws ApiError for a run
// that is not there and for numbers that are none.
nlohmann::json curve_json(lab::RunWatch& runs,
                          const std::multimap<std::string, std::string>& parameters);

}  // namespace pronghorn::serve
