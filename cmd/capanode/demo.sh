#!/usr/bin/env bash
# The demo: a bootstrap node, three providers and one training run as separate processes over loopback, on Go's own
# sources. usage: demo.sh PATH/TO/capanode   (DEMO_ROUNDS=n shortens it, DEMO_DIR=dir keeps its files elsewhere)
set -euo pipefail
bin=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
rounds=${DEMO_ROUNDS:-30}
dir=${DEMO_DIR:-.demo}
rm -rf "$dir" && mkdir -p "$dir"
cd "$dir"
export NO_COLOR=1 CAPANODE_MDNS=false CAPANODE_NETWORK=demo CAPANODE_LISTEN=/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/udp/0/quic-v1
pids=()

say() { printf '\n$ %s\n' "$*"; }

# stop ends what the demo started, waits for it, and says whether anything is left.
stop() {
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    if kill -0 "$pid" 2>/dev/null; then echo "process $pid did not stop; killing it" >&2; kill -KILL "$pid"; fi
    wait "$pid" 2>/dev/null || true
  done
  pids=()
}
trap stop EXIT

say capanode bootstrap
"$bin" bootstrap --home bootstrap -o jsonl >bootstrap.jsonl 2>bootstrap.log &
pids+=($!)
for _ in $(seq 100); do
  address=$(sed -n 's/.*"join":"\([^"]*\)".*/\1/p' bootstrap.jsonl | head -n 1)
  [ -n "$address" ] && break
  kill -0 "${pids[0]}" 2>/dev/null || { cat bootstrap.log >&2; exit 1; }
  sleep 0.1
done
[ -n "$address" ] || { echo "the bootstrap node printed no address within 10 s" >&2; cat bootstrap.log >&2; exit 1; }
echo "$address"
export CAPANODE_BOOTSTRAP=$address

for i in 1 2 3; do
  say capanode provide --device cpu --price "0.0$((i + 1))"
  "$bin" provide --device cpu --price "0.0$((i + 1))" --threads 1 --home "provider$i" -o jsonl >"provider$i.jsonl" 2>"provider$i.log" &
  pids+=($!)
done

say capanode offers --wait 3
"$bin" offers --wait 3 --home requester

cat >job.yaml <<YAML
version: 1
name: demo
task: causal-lm
data:
  paths: ["$(go env GOROOT)/src"]
  include: [.go]
  max_bytes: 8000000
model: {preset: llama-1m}
train: {rounds: $rounds, batch: 8, context: 128, learning_rate: 0.002, min_learning_rate: 0.0002, warmup: 15}
rounds: {local_steps: 15} # 30 · 15 steps; how they are cut into rounds is left to the pace
market: {peers: 3, max_price: 0.1, budget: 1}
YAML
say capanode train job.yaml --out model
"$bin" train job.yaml --home requester --out model --yes

say capanode sample model "'func '"
"$bin" sample model "func " --tokens 200 --seed 1
say capanode ledger verify
"$bin" ledger verify --home requester
say capanode ledger show
"$bin" ledger show --home requester

started=("${pids[@]}")
stop
trap - EXIT
for pid in "${started[@]}"; do
  if kill -0 "$pid" 2>/dev/null; then echo "process $pid is still there" >&2; exit 1; fi
done
for i in 1 2 3; do
  "$bin" ledger verify --home "provider$i" >/dev/null
done
printf '\nAll processes are gone; all four ledgers verify. The model is in %s/model.\n' "$dir"
