#!/bin/sh
# Runs clang-tidy over the .cpp files that differ from a commit (default: main), or over all.
#
#   scripts/lint.sh [--all | COMMIT | FILE.cpp...]      configures build-lint
set -eu
cd "$(dirname "$0")/.."
# The precompiled headers of g++ mean nothing to clang.
build=build-lint
cmake --preset release -B "$build" -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON >/dev/null
files() {
  case "${1:-main}" in
    --all) git ls-files '*.cpp' ;;
    *.cpp) printf '%s\n' "$@" ;;
    *)
      git diff --name-only --diff-filter=d "${1:-main}" -- '*.cpp'
      git ls-files --others --exclude-standard '*.cpp'
      ;;
  esac
}
list=$(files "$@")
if [ -z "$list" ]; then
  echo "lint.sh: no file differs" >&2
  exit 0
fi
echo "$list" | xargs -P "$(scripts/jobs.sh)" -n 1 clang-tidy -p "$build" --quiet
