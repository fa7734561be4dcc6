#!/bin/sh
# Trains every configuration of a size for so long each in one comparison, and writes its report
# and a page with its tables.
set -eu
from=$(pwd)
cd "$(dirname "$0")/.."

# As seen from where the command was given.
absolute() {
  case "$1" in
    /*) echo "$1" ;;
    *) echo "$from/$1" ;;
  esac
}

usage() {
  cat <<'END'
usage: scripts/zoo.sh [--quick] [--seconds N] [--size SIZE] [--data FILE] [--out DIR] [--page FILE]
                      [--contexts N,N,..] [OPTION...]

  --quick        a short try: --seconds 1 --contexts 512, and the page in DIR
  --seconds N    how long to train each configuration (default 60)
  --size SIZE    of the configurations: 1m, 5m or 20m (default 1m)
  --data FILE    text to train on (default: that of the demo, of Debian's package bible-kjv)
  --out DIR      where models, results and report go (default zoo-out-SIZE-N)
  --page FILE    the page to write (default docs/zoo.md)
  --contexts ..  to measure inference at (default 512,4096,16384)
  OPTION...      anything else that `pronghorn compare` understands, such as --seeds 3 or --watch

It runs build/pronghorn, or $PRONGHORN. Scores and speeds are measured besides the training, so count
on about twice its time. The same command again continues an interrupted comparison.
END
}

quick="" seconds="" size=1m data="" out="" page="" contexts=""
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds | --size | --data | --out | --page | --contexts)
      [ $# -ge 2 ] || { echo "scripts/zoo.sh: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --seconds) seconds="$2" ;;
        --size) size="$2" ;;
        --data) data=$(absolute "$2") ;;
        --out) out=$(absolute "$2") ;;
        --page) page=$(absolute "$2") ;;
        --contexts) contexts="$2" ;;
      esac
      shift 2
      ;;
    --quick) quick=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
  esac
done
if [ -n "$quick" ]; then
  seconds="${seconds:-1}" contexts="${contexts:-512}"
fi
seconds="${seconds:-60}" contexts="${contexts:-512,4096,16384}"
out="${out:-zoo-out-$size-$seconds}"
if [ -z "$page" ]; then
  page=docs/zoo.md
  [ -z "$quick" ] || page="$out/zoo.md"
fi
pronghorn="${PRONGHORN:-build/pronghorn}"
[ -x "$pronghorn" ] || { echo "scripts/zoo.sh: no $pronghorn: build it first" >&2; exit 1; }
mkdir -p "$out"
if [ -z "$data" ]; then
  data="$out/bible-kjv.txt"
  scripts/demo_text.sh "$data"
fi

# One that fails is told on the page, and keeps the others from nothing.
failed=0
rm -f "$out/report.md"
"$pronghorn" compare configs/*-"$size".json --data "$data" --out "$out" --time "${seconds}s" \
  --contexts "$contexts" --context-time 10s "$@" || failed=$?
[ -s "$out/report.md" ] || exit "$failed"

measuring="measuring.md"  # beside the page, in the documentation
[ "$(cd "$(dirname "$page")" && pwd)" = "$(pwd)/docs" ] || measuring="$(pwd)/docs/measuring.md"
{
  cat <<END
# The zoo, side by side

Every configuration of \`configs/*-$size.json\`, trained from random weights on the same text and then
measured: made by \`scripts/zoo.sh\`. They have about as many parameters without embeddings, and share one
learning rate. What such a comparison says, and what it does not, is on [measuring]($measuring#compare): it
ranks what is learned in ${seconds} s on this machine, and a model that trains fast sees more text. Configurations
are shown by what their layers are, the kind with the best one first.

END
  cat "$out/report.md"
} >"$page.part"
mv "$page.part" "$page"
echo "Page: $page" >&2
exit "$failed"
