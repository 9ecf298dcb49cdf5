// Package bench owns the measurement of the store and its protocol on this machine: how fast files come in, and how fast
// one node fetches from another compared with a bare stream between the same two nodes in the same run. It refuses to
// print, to judge, or to start networks: the caller brings the two nodes.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/transfer"
)

// rawProtocol is the bare stream that fetches are compared with.
const rawProtocol = "/capanode/bench-raw/1.0.0"

// Pair is two nodes that can reach each other.
type Pair struct {
	Server, Client p2p.Network
	Close          func() error
}

// Options says what to measure.
type Options struct {
	Size int64  // content bytes, at least 2 MiB
	Dir  string // where two stores of this size are made and removed again; empty means the folder for temporary files
	Pair func(ctx context.Context) (Pair, error)
}

// Figures are throughputs in MB/s (10⁶ bytes per second), each over all bytes, from first call to durable result.
type Figures struct {
	Size   int64   // bytes
	Import float64 // stream → hashed, durable object
	Fetch  float64 // peer's store → verified, durable object
	Raw    float64 // bare stream, nothing hashed, nothing stored: the mean of one run before and one after the fetch
	Ratio  float64 // Fetch / Raw
	CPU    float64 // processor seconds of this process, both nodes in it, per 10⁹ bytes fetched; 0 where the system does not tell
}

// Run measures. It needs about twice the size on disk.
func Run(ctx context.Context, o Options) (f Figures, err error) {
	if o.Size < 2<<20 {
		return f, fmt.Errorf("bench: size of %d bytes, want at least 2 MiB", o.Size)
	}
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	pair, err := o.Pair(ctx)
	if err != nil {
		return f, fmt.Errorf("bench: start two nodes: %w", err)
	}
	defer func() { err = errors.Join(err, pair.Close()) }()
	from, err := storage.Open(ctx, filepath.Join(dir, "from"), storage.Options{})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := storage.Open(ctx, filepath.Join(dir, "to"), storage.Options{})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()

	r := &run{o: o, pair: pair, from: from, to: to}
	f.Size = o.Size
	var before, after, cpu time.Duration
	for _, step := range []struct {
		do   func(context.Context) error
		took *time.Duration
	}{{r.load, &r.imported}, {r.raw, &before}, {r.fetch, &r.fetched}, {r.raw, &after}} {
		start, used := time.Now(), processTime()
		if err := step.do(ctx); err != nil {
			return f, fmt.Errorf("bench: %w", err)
		}
		if *step.took = time.Since(start); step.took == &r.fetched {
			cpu = processTime() - used
		}
	}
	mb := float64(o.Size) / 1e6
	f.Import = mb / r.imported.Seconds()
	f.Fetch = mb / r.fetched.Seconds()
	f.Raw = 2 * mb / (before + after).Seconds()
	f.Ratio = f.Fetch / f.Raw
	f.CPU = cpu.Seconds() / (mb / 1e3)
	return f, nil
}

type run struct {
	o                 Options
	pair              Pair
	from, to          *storage.Store
	object            cid.Cid
	imported, fetched time.Duration
}

func (r *run) load(ctx context.Context) error {
	info, err := r.from.Put(ctx, io.LimitReader(newNoise(), r.o.Size), storage.PutOptions{Size: r.o.Size})
	r.object = info.CID
	return err
}

func (r *run) fetch(ctx context.Context) error {
	transfer.Serve(r.pair.Server, r.from, transfer.ServeOptions{})
	f := transfer.NewFetcher(r.pair.Client, nil, r.to, transfer.Options{})
	return f.Fetch(ctx, r.object, []peer.ID{r.pair.Server.ID()})
}

// raw streams as many bytes from the server to the client, in writes of the size of a block.
func (r *run) raw(ctx context.Context) error {
	chunk := make([]byte, 1<<20)
	r.pair.Server.Handle(rawProtocol, p2p.Limits{}, func(ctx context.Context, s p2p.Stream) {
		defer s.Close()
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			return
		}
		for left := r.o.Size; left > 0 && ctx.Err() == nil; {
			if err := s.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				return
			}
			n, err := s.Write(chunk[:min(left, int64(len(chunk)))])
			if err != nil {
				return
			}
			left -= int64(n)
		}
	})
	s, err := r.pair.Client.Open(ctx, r.pair.Server.ID(), rawProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if _, err := s.Write([]byte{1}); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	var got int64
	for got < r.o.Size {
		if err := s.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		n, err := io.ReadFull(s, buf[:min(r.o.Size-got, int64(len(buf)))])
		if got += int64(n); err != nil {
			return fmt.Errorf("raw stream after %d bytes: %w", got, err)
		}
	}
	return nil
}

// noise is an endless stream of blocks that all differ and cost next to nothing to make: one random megabyte with a
// counter in front of each copy.
type noise struct {
	block []byte
	at    int
	count uint64
}

func newNoise() *noise {
	block := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(block)
	return &noise{block: block}
}

func (n *noise) Read(p []byte) (int, error) {
	if n.at == 0 {
		n.count++
		for i := range 8 {
			n.block[i] = byte(n.count >> (8 * i))
		}
	}
	m := copy(p, n.block[n.at:])
	n.at = (n.at + m) % len(n.block)
	return m, nil
}
