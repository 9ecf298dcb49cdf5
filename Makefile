# Capanode's habits, one target each. Plain `make` prints them.
export GOEXPERIMENT ?= simd
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations
# With one set of flags for builds and tests, and no paths in what is compiled, everything is compiled once.
export GOFLAGS ?= -buildvcs=false -trimpath

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# The versions of the tools that check the code; `go run` fetches and caches them.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
# Everything but the tensor engine, whose arithmetic is too slow under the race detector; of that, its scheduler. The laboratory
# of averaging methods is nothing but that arithmetic.
RACE_PKGS = $(shell go list ./... | grep -v -e /trainer/engine -e '/trainer/lab$$')

.DEFAULT_GOAL := help
.PHONY: help build static demo test test-crash test-faults test-interop race lint fuzz bench docs clean

help: ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | while IFS="$$(printf '\t')" read -r t d; do printf '  make %-12s %s\n' "$$t" "$$d"; done

build: ## build bin/capanode (NVML through cgo, SIMD kernels)
	go build -ldflags '$(LDFLAGS)' -o bin/capanode ./cmd/capanode

static: ## build bin/capanode-static without cgo
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/capanode-static ./cmd/capanode

demo: build ## one bootstrap, three providers, one training run, on this machine
	@bash cmd/capanode/demo.sh bin/capanode

test: ## run the tests
	go test -timeout 15m ./...

# The short form of these tests is part of `make test`. CAPANODE_FAULT_SEED=n draws other faults.
test-faults: ## break training runs on purpose, for an hour: deaths at every step, of every process, churn, partitions
	CAPANODE_FAULT_LONG=1 go test -timeout 4h -count=1 -v ./trainer/faultlab
	CAPANODE_FAULT_LONG=1 go test -timeout 1h -count=1 -v -run 'NoProcessIsSpecial|C16' ./cmd/capanode ./p2p ./market/book

# The Python interpreter is CAPANODE_PYTHON, or one that each test sets up with pip for itself; for models that takes gigabytes.
test-interop: ## compare with other programs: tokenizers and models with the Python packages, blocks and archives with kubo, built in a module of its own
	CAPANODE_INTEROP=1 go test -timeout 1h -count=1 -run Interop ./trainer/tokenizer ./trainer/hf
	cd storage/ipfs/interop && go test -timeout 40m -count=1 -v ./...

# The short form of these tests is part of `make test`.
test-crash: ## break the store and its fetches on purpose, for hours: SIGKILL, power loss at every write, full disks, 10,000 flipped bits
	CAPANODE_CRASH_LONG=1 go test -timeout 2h -count=1 -v -run 'Crash|Kill|Fault|Flip|Model' ./storage
	CAPANODE_CRASH_LONG=1 go test -timeout 4h -parallel 8 -count=1 -v -run 'Killed|FlippedBits' ./storage/transfer

# GoMLX kernels step outside their slices by uintptr arithmetic, which checkptr takes for a bug.
race: ## run the tests under the race detector, all but the engine's arithmetic
	go test -race -run 'Phases|Panic|Hung|Cancel|Thousand' ./trainer/engine/native
	go test -race -short -timeout 15m -gcflags=all=-d=checkptr=0 $(RACE_PKGS)

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { echo 'not gofmt-ed:'; gofmt -l .; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

fuzz: ## run each fuzz target for FUZZTIME (10s)
	bash cmd/capanode/fuzz.sh $(or $(FUZZTIME),10s)

# PEER_BINARY=/path/of/ipfs measures kubo beside the store.
bench: build ## measure this machine; write docs/benchmarks.md and its plots
	rm -rf .bench && mkdir .bench
	for b in engine codec averaging "storage $(if $(PEER_BINARY),--peer-binary $(PEER_BINARY))" market data; do \
		./bin/capanode bench $$b -o json >.bench/$${b%% *}.json || exit 1; done
	./bin/capanode bench page --plots docs .bench/*.json >.bench/page && mv .bench/page docs/benchmarks.md

docs: build ## write the command reference under docs/commands
	./bin/capanode docs docs/commands

clean: ## remove build outputs
	rm -rf bin .demo .bench
