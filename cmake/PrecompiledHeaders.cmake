# What most files of the library, the tests and the command line include and what is slow to read.
# A file still includes what it uses: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds without these, and
# is what lint.sh needs.
set(PRONGHORN_PRECOMPILED_HEADERS
    <algorithm> <array> <atomic> <bit> <charconv> <chrono> <cmath> <cstdint> <cstring> <filesystem>
    <fstream> <functional> <limits> <map> <memory> <mutex> <numbers> <numeric> <optional> <set>
    <span> <sstream> <string> <string_view> <thread> <unordered_map> <utility> <vector>
    <fmt/format.h> <fmt/ranges.h> <nlohmann/json.hpp>)
