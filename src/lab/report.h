// The page that a comparison leaves behind for people.
#pragma once

#include <filesystem>
#include <string>

#include "lab/results.h"

namespace pronghorn::lab {

// One HTML page that opens without a network: who wins at what, machine and data, tables, charts,
// samples, how it was measured, and the results as JSON in <script id="results">, with curves of
// more than 2000 points thinned to means of neighbours. Text of any origin is escaped; tables and
// samples need no JavaScript.
std::string render_report(const CompareRun& run);

// Writes render_report to a file. Throws Error.
void save_report(const CompareRun& run, const std::filesystem::path& path);

}  // namespace pronghorn::lab
