// Package bench owns the measurements of the market on this machine: how long leases take between real nodes with real
// disks, and how fast the book judges beacons and answers queries. It measures the program's own code paths, refuses to
// start networks (the caller brings the nodes) and prints nothing.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/capacloud/capanode/p2p"
)

// Node is one node of the network that leases are measured on.
type Node interface {
	p2p.Network
	p2p.Router
	Addrs() []string
	Close() error
}

// Options says what to measure. Zero numbers take the defaults that the figures are named after.
type Options struct {
	Dir        string // where the databases are made and removed again; empty means the folder for temporary files
	Repeat     int    // first leases, and gangs; 0 means 50
	Cold       int    // first leases of new nodes; 0 means 20
	Handshakes int    // 0 means 300
	Offers     int    // in the book, besides the sellers'; 0 means 10,000
	Large      int    // offers in a larger book; 0 means 100,000
	Queries    int    // 0 means 300
	// Start makes a node that has joined the network of the given bootstrap addresses.
	Start func(ctx context.Context, role p2p.Role, bootstrap []string) (Node, error)
}

// Figures are the results. Times are milliseconds, rates are of one core.
type Figures struct {
	// From the planner's start (parse the job's query, search the book, choose candidates) to the first ACTIVE lease. The
	// book is warm: the offers are in it.
	FirstLeaseP50 float64 `json:"first_lease_ms_p50"`
	FirstLeaseP95 float64 `json:"first_lease_ms_p95"`
	// The same of a buyer that is new: it starts, joins through one bootstrap node and copies the book first.
	ColdLeaseP50 float64 `json:"cold_lease_ms_p50"`
	ColdLeaseP95 float64 `json:"cold_lease_ms_p95"`
	// From the planner's start until three or eight providers are leased, all or none.
	Gang3P50 float64 `json:"gang3_ms_p50"`
	Gang3P95 float64 `json:"gang3_ms_p95"`
	Gang8P50 float64 `json:"gang8_ms_p50"`
	Gang8P95 float64 `json:"gang8_ms_p95"`
	// One lease from quote to ACTIVE on both sides, every write of both journals synced.
	HandshakeP50 float64 `json:"handshake_ms_p50"`
	HandshakeP99 float64 `json:"handshake_ms_p99"`

	QueryP50   float64 `json:"query_10k_ms_p50"` // a query with three conditions over all offers, sorted, without a limit
	QueryP99   float64 `json:"query_10k_ms_p99"`
	LargeP50   float64 `json:"query_100k_ms_p50"` // the same over the larger book
	LargeP99   float64 `json:"query_100k_ms_p99"`
	Beacons    float64 `json:"beacons_per_second_per_core"`    // unknown ones: verified, decoded, checked, in the book
	Duplicates float64 `json:"duplicates_per_second_per_core"` // recognised and dropped
	OfferBytes float64 `json:"bytes_per_offer"`                // mean signed envelope

	Baseline Baseline `json:"baseline"`
}

// Baseline is what the figures cannot beat, measured in the same run.
type Baseline struct {
	Sync       float64 `json:"fsync_ms_p50"`                         // 512 bytes appended to a file beside the journals, and synced
	RoundTrip  float64 `json:"stream_round_trip_ms_p50"`             // a new stream, one byte there and back
	Signatures float64 `json:"signature_checks_per_second_per_core"` // Ed25519 on the same beacons, nothing decoded
	Scan       float64 `json:"scan_10k_ms_p50"`                      // the query's conditions written out in Go over the same offers, sorted
}

// Run measures. It returns early with the context's error.
func Run(ctx context.Context, o Options) (f Figures, err error) {
	if o.Start == nil {
		return f, errors.New("bench: no way to start nodes")
	}
	for _, n := range []struct {
		given *int
		or    int
	}{{&o.Repeat, 50}, {&o.Cold, 20}, {&o.Handshakes, 300}, {&o.Offers, 10_000}, {&o.Large, 100_000}, {&o.Queries, 300}} {
		if *n.given == 0 {
			*n.given = n.or
		}
	}
	offers, err := envelopes(o.Offers, time.Now())
	if err != nil {
		return f, fmt.Errorf("bench: make offers: %w", err)
	}
	if err := f.measureBook(ctx, offers, o.Queries); err != nil {
		return f, fmt.Errorf("bench: book: %w", err)
	}
	large, err := envelopes(o.Large, time.Now())
	if err != nil {
		return f, fmt.Errorf("bench: make offers: %w", err)
	}
	if err := f.measureLargeBook(ctx, large, o.Queries); err != nil {
		return f, fmt.Errorf("bench: larger book: %w", err)
	}
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := &town{o: o, dir: dir, offers: offers}
	defer func() { err = errors.Join(err, m.close()) }()
	if err := m.build(ctx); err != nil {
		return f, fmt.Errorf("bench: start a market: %w", err)
	}
	if err := f.measureLeases(ctx, m); err != nil {
		return f, fmt.Errorf("bench: leases: %w", err)
	}
	return f, nil
}

// repeat times f so often, in milliseconds, ascending. f says when its own work ended, before it cleans up.
func repeat(ctx context.Context, n int, f func() (end time.Time, err error)) ([]float64, error) {
	times := make([]float64, 0, n)
	for range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		end, err := f()
		if err != nil {
			return nil, err
		}
		times = append(times, end.Sub(start).Seconds()*1e3)
	}
	slices.Sort(times)
	return times, nil
}

// percentile returns the smallest of ascending values that a share p of them does not exceed.
func percentile(ascending []float64, p float64) float64 {
	return ascending[max(0, int(math.Ceil(p*float64(len(ascending))))-1)]
}
