package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/transfer"
)

// ShapedOptions says what to measure over links of a set speed.
type ShapedOptions struct {
	Long int64  // bytes over the long link, at least 2 MiB; 0 means 256 MiB
	Wide int64  // bytes over the slow links, likewise; 0 means 48 MiB
	Dir  string // where stores of four times the larger size are made and removed again; empty means the folder for temporary files
	// Nodes starts servers that know nobody, and a client that reaches each at the address that via returns for its own.
	Nodes func(ctx context.Context, servers int, via func(addr string) (string, error)) (Nodes, error)
}

// Shaped are fetches over links of a set speed between hosts that talk TCP.
type Shaped struct {
	Long  float64 // share of one link of 500 Mbit/s with 25 ms one way that a fetch uses, from its start to a durable object
	Raw   float64 // the same for a bare stream over the same link, after the fetch: what this machine leaves of it
	Four  float64 // how many times as fast four sources of 100 Mbit/s are as one of them
	Twice float64 // share of the bytes that the four sent more than once
}

const (
	// mbit is one Mbit/s in bytes per second.
	mbit = 1e6 / 8
	// longDelay and longRate are the long link; wideDelay and wideRate one of four slow ones. Times are one way.
	longDelay, longRate = 25 * time.Millisecond, 500 * mbit
	wideDelay, wideRate = 5 * time.Millisecond, 100 * mbit
)

// RunShaped measures over shaped links. It takes about ten seconds.
func RunShaped(ctx context.Context, o ShapedOptions) (s Shaped, err error) {
	if o.Long == 0 {
		o.Long = 256 << 20
	}
	if o.Wide == 0 {
		o.Wide = 48 << 20
	}
	if min(o.Long, o.Wide) < 2<<20 {
		return s, fmt.Errorf("bench: sizes of %d and %d bytes, want at least 2 MiB", o.Long, o.Wide)
	}
	long, err := shaped(ctx, o, crossing{o.Long, longDelay, longRate, 1})
	if err != nil {
		return s, err
	}
	s.Long, s.Raw = float64(o.Long)/long.took.Seconds()/longRate, float64(o.Long)/long.raw.Seconds()/longRate
	one, err := shaped(ctx, o, crossing{o.Wide, wideDelay, wideRate, 1})
	if err != nil {
		return s, err
	}
	four, err := shaped(ctx, o, crossing{o.Wide, wideDelay, wideRate, sources})
	if err != nil {
		return s, err
	}
	s.Four, s.Twice = one.took.Seconds()/four.took.Seconds(), four.twice
	return s, nil
}

// crossing is one fetch over links that are all alike.
type crossing struct {
	size    int64
	delay   time.Duration
	rate    float64
	servers int
}

type crossed struct {
	took  time.Duration
	raw   time.Duration // of a bare stream from the first server
	twice float64
}

// shaped fetches from servers behind links of their own.
func shaped(ctx context.Context, o ShapedOptions, how crossing) (out crossed, err error) {
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return out, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var links []*link
	defer func() {
		for _, l := range links {
			l.close()
		}
	}()
	nodes, err := o.Nodes(ctx, how.servers, func(addr string) (string, error) {
		l, near, err := linkTo(addr, how.delay, how.rate)
		if err == nil {
			links = append(links, l)
		}
		return near, err
	})
	if err != nil {
		return out, fmt.Errorf("bench: start %d nodes: %w", how.servers+1, err)
	}
	defer func() { err = errors.Join(err, nodes.Close()) }()
	var stores [2]*storage.Store
	for i := range stores {
		if stores[i], err = storage.Open(ctx, filepath.Join(dir, fmt.Sprint(i)), storage.Options{}); err != nil {
			return out, err
		}
		defer func() { err = errors.Join(err, stores[i].Close()) }()
	}
	info, err := stores[0].Put(ctx, io.LimitReader(newNoise(), how.size), storage.PutOptions{Size: how.size})
	if err != nil {
		return out, err
	}
	var from []peer.ID
	var served []*transfer.Server
	for _, n := range nodes.Servers {
		from, served = append(from, n.ID()), append(served, transfer.Serve(n, stores[0], transfer.ServeOptions{}))
	}
	start := time.Now()
	if err := transfer.NewFetcher(nodes.Client, nil, stores[1], transfer.Options{}).Fetch(ctx, info.CID, from); err != nil {
		return out, err
	}
	out.took = time.Since(start)
	var sent, carried int64
	for _, s := range served {
		sent += int64(s.Stats().Bytes)
	}
	for _, l := range links {
		carried += l.carried.Load()
	}
	if carried < how.size {
		return out, fmt.Errorf("bench: the links carried %d of %d bytes: the nodes found a way around them", carried, how.size)
	}
	if how.servers == 1 {
		start = time.Now()
		if err := rawStream(ctx, nodes.Servers[0], nodes.Client, how.size); err != nil {
			return out, err
		}
		out.raw = time.Since(start)
	}
	out.twice = max(0, float64(sent)/float64(how.size)-1)
	return out, nil
}
