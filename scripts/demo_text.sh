#!/bin/sh
# Writes the text that the demo trains on, four megabytes of English, to FILE, unless it is there:
# results belong to the file that they were computed from. Debian's package bible-kjv has it.
set -eu
[ $# -eq 1 ] || { echo "usage: scripts/demo_text.sh FILE" >&2; exit 2; }
if [ ! -s "$1" ]; then
  # One verse a line without its reference; an empty line between chapters.
  bible -f gen1:1-rev22:21 |
    awk '{ if (NR > 1 && $1 ~ /:1$/) print ""; sub(/^[^ ]* /, ""); print }' >"$1.part"
  mv "$1.part" "$1"
fi
echo "$1: $(wc -c <"$1") bytes" >&2
