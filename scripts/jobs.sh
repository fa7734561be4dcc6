#!/bin/sh
# Prints how many compilers to run at once: one a processor, and no more than memory has room for.
set -eu
gigabytes_a_job=2
processors=$(nproc)
kilobytes=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
room=$((kilobytes / (gigabytes_a_job * 1024 * 1024)))
[ "$room" -ge 1 ] || room=1
[ "$room" -lt "$processors" ] && echo "$room" || echo "$processors"
