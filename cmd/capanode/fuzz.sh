#!/usr/bin/env bash
# Runs every fuzz target of the tree for the given time each. All test binaries are built first, and two targets run at once
# with one worker each, which is what two cores carry. Coverage guides the search through this module and the decoder that it
# rests on; `go test -fuzz` would also compile every other dependency anew for that. A found crasher fails the run and leaves
# its input under testdata/fuzz; `go test` repeats it from then on. usage: fuzz.sh TIME
set -euo pipefail
export FUZZ_TIME=${1:?usage: fuzz.sh TIME}
FUZZ_BIN=$(mktemp -d)
FUZZ_CACHE=$(go env GOCACHE)/fuzz # where `go test -fuzz` keeps what it has learnt, too
export FUZZ_BIN FUZZ_CACHE
trap 'rm -rf "$FUZZ_BIN"' EXIT

# over says whether a run that failed only ran out of its time: Go's fuzzer sometimes reports its own deadline, which ends every
# run, as the failure. A crasher has an input and a message of its own.
over() { grep -q '^    context deadline exceeded$' "$1" && ! grep -qE 'Failing input|panic|testdata/fuzz|^    [^ ].*\.go:' "$1"; }

# one runs a target in its package's folder, as go test does. Shrinking each new input would take most of so short a time.
one() {
  dir=$1 target=$2 name=${1##*/}
  log=$FUZZ_BIN/$name.$target.log
  if (cd "$dir" && "$FUZZ_BIN/$name.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$FUZZ_TIME" -test.parallel 1 \
    -test.fuzzminimizetime 50x -test.fuzzcachedir "$FUZZ_CACHE/$name" >"$log" 2>&1) || over "$log"; then
    printf 'ok    %s %s  %s\n' "$dir" "$target" "$(grep -o 'execs: [0-9]*' "$log" | tail -n 1)"
  else
    cat "$log"
    printf 'FAIL  %s %s\n' "$dir" "$target"
    exit 255 # stops xargs
  fi
}
export -f one over

targets=$(grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
  grep -ho '^func Fuzz[A-Za-z0-9_]*' "$file" | sed "s|^func |$(dirname "$file") |"
done | sort -u)
cut -d ' ' -f 1 <<<"$targets" | sort -u | xargs go test -c -o "$FUZZ_BIN/" \
  -gcflags=github.com/capacloud/capanode/...=-d=libfuzzer -gcflags=github.com/fxamacker/cbor/v2=-d=libfuzzer
xargs -P 2 -n 2 bash -c 'one "$0" "$1"' <<<"$targets"
