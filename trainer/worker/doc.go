// Package worker owns one peer's life in a run: it joins the run's topic, trains, exchanges updates, commits rounds, keeps
// crash-safe snapshots and serves its state to mates. The rules are package round's; this package is the shell that does
// their I/O. It refuses to know about leases and money, and about how blobs and shards are stored.
//
// One round, from local steps to the next state, reads from top to bottom in loop.go.
package worker
