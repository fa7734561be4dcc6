# Every dependency is a Debian 12 package; see README.md for the list.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(ZLIB REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(SENTENCEPIECE REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(ONIGURUMA REQUIRED IMPORTED_TARGET oniguruma)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(PNG REQUIRED IMPORTED_TARGET libpng)
# Optional: without it no sound is read.
pkg_check_modules(SNDFILE IMPORTED_TARGET sndfile)
# Optional: without it sound of another rate than a model's is refused.
pkg_check_modules(SAMPLERATE IMPORTED_TARGET samplerate)
# Of the server and the command line alone.
pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)
pkg_check_modules(EDIT REQUIRED IMPORTED_TARGET libedit)

find_file(PRONGHORN_CHART_JS chart.min.js PATHS /usr/share/javascript/chart.js NO_DEFAULT_PATH
          DOC "Chart.js 3, compiled into the reports")
if(NOT PRONGHORN_CHART_JS)
  message(FATAL_ERROR "Chart.js is missing: install the Debian package libjs-chart.js, "
                      "or set PRONGHORN_CHART_JS to the path of chart.min.js (version 3)")
endif()

set(PRONGHORN_PRIVATE_LIBRARIES
    Threads::Threads fmt::fmt spdlog::spdlog nlohmann_json::nlohmann_json ZLIB::ZLIB
    PkgConfig::HWY PkgConfig::SENTENCEPIECE PkgConfig::ONIGURUMA
    PkgConfig::UTF8PROC PkgConfig::XXHASH PkgConfig::PNG)
set(PRONGHORN_SNDFILE_LIBS "")
if(SNDFILE_FOUND)
  list(APPEND PRONGHORN_PRIVATE_LIBRARIES PkgConfig::SNDFILE)
  # By name: Debian's sndfile.pc names static libraries that its package does not need.
  set(PRONGHORN_SNDFILE_LIBS " -lsndfile")
else()
  message(STATUS "libsndfile is missing: pronghorn will read no sound")
endif()
set(PRONGHORN_SAMPLERATE_LIBS "")
if(SAMPLERATE_FOUND)
  list(APPEND PRONGHORN_PRIVATE_LIBRARIES PkgConfig::SAMPLERATE)
  set(PRONGHORN_SAMPLERATE_LIBS " -lsamplerate")
else()
  message(STATUS "libsamplerate is missing: pronghorn will not resample sound")
endif()
