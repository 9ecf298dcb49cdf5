#!/usr/bin/env bash
# Runs every fuzz target of the tree for the given time each. usage: fuzz.sh TIME
set -euo pipefail
time=${1:?usage: fuzz.sh TIME}
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
  grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //' | sort -u | while read -r target; do
    printf 'fuzz %s %s\n' "$dir" "$target"
    # A found crasher fails the run and leaves its input under testdata/fuzz; `go test` repeats it.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir" >/tmp/capanode-fuzz.$$ 2>&1 || { cat /tmp/capanode-fuzz.$$; rm -f /tmp/capanode-fuzz.$$; exit 1; }
    rm -f /tmp/capanode-fuzz.$$
  done
done
