#!/bin/sh
# Formats the C++ files with clang-format. --check: changes nothing, exit 1 if a file would change.
set -eu
cd "$(dirname "$0")/.."
mode=-i
case "${1:-}" in
  "") ;;
  --check) mode="--dry-run --Werror" ;;
  *)
    echo "usage: scripts/format.sh [--check]" >&2
    exit 2
    ;;
esac
git ls-files -z --cached --others --exclude-standard '*.cpp' '*.h' |
  xargs -0 clang-format $mode
