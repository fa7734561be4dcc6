# pronghorn_embed_file(TARGET SYMBOL FILE) compiles the bytes of FILE into TARGET, where they are
#
#     namespace pronghorn::embedded { extern const std::string_view SYMBOL; }
#
# The same file is the script that writes the source at build time, when FILE changes.
if(CMAKE_SCRIPT_MODE_FILE)
  file(READ "${INPUT}" bytes HEX)
  string(REGEX REPLACE "(................................................................)"
         "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  file(WRITE "${OUTPUT}" "// Written by cmake/EmbedFile.cmake.
#include <string_view>

namespace pronghorn::embedded {
namespace {
constexpr unsigned char kBytes[] = {
${bytes}
0};
}  // namespace

extern const std::string_view ${SYMBOL};
const std::string_view ${SYMBOL}(reinterpret_cast<const char*>(kBytes), sizeof(kBytes) - 1);
}  // namespace pronghorn::embedded
")
  return()
endif()

set(PRONGHORN_EMBED_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")

function(pronghorn_embed_file target symbol file)
  set(source "${PROJECT_BINARY_DIR}/embedded/${symbol}.cpp")
  add_custom_command(
    OUTPUT "${source}"
    COMMAND "${CMAKE_COMMAND}" -DINPUT=${file} -DOUTPUT=${source} -DSYMBOL=${symbol}
            -P "${PRONGHORN_EMBED_SCRIPT}"
    DEPENDS "${file}" "${PRONGHORN_EMBED_SCRIPT}"
    COMMENT "Embedding ${file}"
    VERBATIM)
  target_sources(${target} PRIVATE "${source}")
endfunction()
