#!/usr/bin/env bash
# Runs every fuzz target of the tree for the given time each, two at once. A found crasher fails the run and leaves its
# input under testdata/fuzz; `go test` repeats it from then on. usage: fuzz.sh TIME
set -euo pipefail
export FUZZ_TIME=${1:?usage: fuzz.sh TIME}

one() {
  dir=$1 target=$2
  log=$(mktemp)
  if go test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZ_TIME" -parallel 1 "$dir" >"$log" 2>&1; then
    printf 'ok    %s %s\n' "$dir" "$target"
  else
    cat "$log"
    printf 'FAIL  %s %s\n' "$dir" "$target"
    rm -f "$log"
    exit 255 # stops xargs
  fi
  rm -f "$log"
}
export -f one

grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
  grep -ho '^func Fuzz[A-Za-z0-9_]*' "$file" | sed "s|^func |$(dirname "$file") |"
done | sort -u | xargs -P 2 -n 2 bash -c 'one "$0" "$1"'
