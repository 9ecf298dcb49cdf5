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

// Nodes are one client and the servers that it can reach.
type Nodes struct {
	Servers []p2p.Network
	Client  p2p.Network
	Close   func() error
}

// Options says what to measure.
type Options struct {
	Size  int64  // content bytes, at least 2 MiB
	Dir   string // where stores of twice this size are made and removed again; empty means the folder for temporary files
	Nodes func(ctx context.Context, servers int) (Nodes, error)
}

// Figures are throughputs in MB/s (10⁶ bytes per second), each over all bytes, from first call to durable result.
type Figures struct {
	Size     int64   // bytes
	Import   float64 // stream → hashed, durable object
	Fetch    float64 // peer's store → verified, durable object
	Arrived  float64 // the same until every byte is verified and written, but not synced: what a fetch reaches beside a disk that keeps up
	Fetch4   float64 // the same as Fetch from four peers at once
	Arrived4 float64
	Raw      float64 // bare stream, nothing hashed, nothing stored: the mean of one run before and one after the fetches
	Disk     float64 // as many bytes written to one file and synced
	Ratio    float64 // Fetch / Raw
	CPU      float64 // processor seconds of this process, both nodes in it, per 10⁹ bytes fetched; 0 where the system does not tell
	RawCPU   float64 // the same for the bare stream
}

// sources is how many peers Fetch4 asks.
const sources = 4

// Run measures. It needs about three times the size on disk.
func Run(ctx context.Context, o Options) (f Figures, err error) {
	if o.Size < 2<<20 {
		return f, fmt.Errorf("bench: size of %d bytes, want at least 2 MiB", o.Size)
	}
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	nodes, err := o.Nodes(ctx, sources)
	if err != nil {
		return f, fmt.Errorf("bench: start %d nodes: %w", sources+1, err)
	}
	defer func() { err = errors.Join(err, nodes.Close()) }()
	from, err := storage.Open(ctx, filepath.Join(dir, "from"), storage.Options{})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	for _, server := range nodes.Servers {
		transfer.Serve(server, from, transfer.ServeOptions{})
	}
	r := &run{o: o, nodes: nodes, from: from, dir: dir}
	var steps []time.Duration
	var cpu []float64
	for _, do := range []func(context.Context) error{r.load, r.raw, r.fetch1, r.fetch4, r.raw, r.disk} {
		start, used := time.Now(), processTime()
		if err := do(ctx); err != nil {
			return f, fmt.Errorf("bench: %w", err)
		}
		steps, cpu = append(steps, time.Since(start)), append(cpu, (processTime()-used).Seconds())
	}
	mb := float64(o.Size) / 1e6
	rate := func(took time.Duration) float64 { return mb / took.Seconds() }
	f = Figures{
		Size: o.Size, Import: rate(steps[0]), Fetch: rate(steps[2]), Fetch4: rate(steps[3]), Raw: rate((steps[1] + steps[4]) / 2), Disk: rate(steps[5]),
		Arrived: rate(r.arrived[0]), Arrived4: rate(r.arrived[1]), CPU: cpu[2] / (mb / 1e3), RawCPU: (cpu[1] + cpu[4]) / 2 / (mb / 1e3),
	}
	f.Ratio = f.Fetch / f.Raw
	return f, nil
}

type run struct {
	o       Options
	nodes   Nodes
	from    *storage.Store
	dir     string
	object  cid.Cid
	arrived []time.Duration // by fetch: from its start to its last byte
}

func (r *run) load(ctx context.Context) error {
	info, err := r.from.Put(ctx, io.LimitReader(newNoise(), r.o.Size), storage.PutOptions{Size: r.o.Size})
	r.object = info.CID
	return err
}

func (r *run) fetch1(ctx context.Context) error { return r.fetch(ctx, 1) }
func (r *run) fetch4(ctx context.Context) error { return r.fetch(ctx, sources) }

// fetch brings the object into a new store from so many servers.
func (r *run) fetch(ctx context.Context, servers int) (err error) {
	dir := filepath.Join(r.dir, fmt.Sprint("to", servers))
	to, err := storage.Open(ctx, dir, storage.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	var from []peer.ID
	for _, s := range r.nodes.Servers[:servers] {
		from = append(from, s.ID())
	}
	f := transfer.NewFetcher(r.nodes.Client, nil, to, transfer.Options{})
	start, done, watch := time.Now(), make(chan error, 1), time.NewTicker(time.Millisecond)
	defer watch.Stop()
	go func() { done <- f.Fetch(ctx, r.object, from) }()
	var arrived time.Duration
	for {
		select {
		case <-watch.C:
			if arrived == 0 && f.Stats().Bytes >= uint64(r.o.Size) {
				arrived = time.Since(start)
			}
		case err := <-done:
			if arrived == 0 {
				arrived = time.Since(start)
			}
			r.arrived = append(r.arrived, arrived)
			return err
		}
	}
}

// disk writes as many bytes as a fetch does and syncs them.
func (r *run) disk(ctx context.Context) (err error) {
	f, err := os.Create(filepath.Join(r.dir, "disk"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	noise, block := newNoise(), make([]byte, 1<<20)
	for left := r.o.Size; left > 0; left -= int64(len(block)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := noise.Read(block); err != nil {
			return err
		}
		if _, err := f.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// raw streams as many bytes from a server to the client.
func (r *run) raw(ctx context.Context) error {
	return rawStream(ctx, r.nodes.Servers[0], r.nodes.Client, r.o.Size)
}

// rawStream streams bytes from a server to a client, in writes of the size of a block.
func rawStream(ctx context.Context, server, client p2p.Network, size int64) error {
	chunk := make([]byte, 1<<20)
	server.Handle(rawProtocol, p2p.Limits{}, func(ctx context.Context, s p2p.Stream) {
		defer s.Close()
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			return
		}
		for left := size; left > 0 && ctx.Err() == nil; {
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
	s, err := client.Open(ctx, server.ID(), rawProtocol)
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
	for got < size {
		if err := s.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		n, err := io.ReadFull(s, buf[:min(size-got, int64(len(buf)))])
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
