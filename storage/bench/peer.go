package bench

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// PeerOptions says how to compare this program with kubo, the reference IPFS node.
type PeerOptions struct {
	Peer   string // path of a built ipfs, kubo v0.43 or like it
	Self   string // path of this program
	Size   int64  // content bytes, at least 2 MiB
	Rounds int    // each runs every contestant once, one after the other; medians count
	Dir    string // where everything is made and removed again: about six times the size; empty means the folder for temporary files
}

// PeerFigures compare whole commands, from their start to their end, on the same file. A ratio is kubo's time over this program's.
type PeerFigures struct {
	OverGet, OverTuned, OverAdd float64
	Fetch, Import               Cost // this program: `storage get` and `storage add`
	Get, Tuned, Add             Cost // kubo: `ipfs get` as it is by default and tuned, and `ipfs add`
}

// Cost is what one command takes.
type Cost struct {
	Rate float64 // MB/s, 10⁶ bytes per second
	CPU  float64 // processor seconds of all processes that take part, per 10⁹ bytes; 0 where the system does not tell
}

// kuboProfile is how kubo adds a file to get this program's CID, which is also the layout in which it is fastest.
var kuboProfile = []string{"--cid-version=1", "--chunker=size-1048576", "--max-file-links=1024", "--raw-leaves"}

// kuboTuning is what speeds up kubo's server: ten times the bytes under way, and more workers.
var kuboTuning = []string{
	`{"Bitswap":{"MaxOutstandingBytesPerPeer":10485760,"TaskWorkerCount":32,"EngineTaskWorkerCount":32,"EngineBlockstoreWorkerCount":128}}`,
}

// Peer measures. Every program runs in processes of its own and talks TCP over loopback. Each fetch goes to a new, empty node
// and ends with a whole copy in its store and another in a file; this program's two are synced to the disk, kubo's are not.
// kubo's daemons run already when its fetch begins, connected, while this program starts its node, dials and stops it again.
func Peer(ctx context.Context, o PeerOptions) (f PeerFigures, err error) {
	if o.Size < 2<<20 || o.Rounds < 1 {
		return f, fmt.Errorf("bench: %d bytes in %d rounds, want at least 2 MiB in one", o.Size, o.Rounds)
	}
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := &match{o: o, dir: dir, file: filepath.Join(dir, "file")}
	defer m.stopAll()
	if err := m.prepare(ctx); err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	contests := []struct {
		run  func(ctx context.Context) (time.Duration, time.Duration, error)
		cost *Cost
	}{{m.fetch, &f.Fetch}, {m.get, &f.Get}, {m.getTuned, &f.Tuned}, {m.add, &f.Import}, {m.kuboAdd, &f.Add}}
	took, used := make([][]time.Duration, len(contests)), make([][]time.Duration, len(contests))
	for range o.Rounds {
		for i, c := range contests {
			wall, cpu, err := c.run(ctx)
			if err != nil {
				return f, fmt.Errorf("bench: %w", err)
			}
			took[i], used[i] = append(took[i], wall), append(used[i], cpu)
		}
	}
	for i, c := range contests {
		*c.cost = Cost{Rate: float64(o.Size) / 1e6 / median(took[i]).Seconds(), CPU: median(used[i]).Seconds() / (float64(o.Size) / 1e9)}
	}
	f.OverGet, f.OverTuned, f.OverAdd = f.Fetch.Rate/f.Get.Rate, f.Fetch.Rate/f.Tuned.Rate, f.Import.Rate/f.Add.Rate
	return f, nil
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return (d[(len(d)-1)/2] + d[len(d)/2]) / 2
}

// match is one file, three servers that have it, and a number for the next empty node.
type match struct {
	o      PeerOptions
	dir    string
	file   string
	digest [sha256.Size]byte
	next   int

	ours, plain, tuned seat
	running            []*daemon
}

// seat is a server: where it listens and under which CID it has the file.
type seat struct {
	daemon *daemon
	addr   string
	cid    string
}

func (m *match) stopAll() {
	for _, d := range m.running {
		d.stop()
	}
}

// start runs a daemon that stopAll stops.
func (m *match) start(ctx context.Context, env []string, ready string, args ...string) (*daemon, string, error) {
	d, line, err := startDaemon(ctx, env, ready, args...)
	if err == nil {
		m.running = append(m.running, d)
	}
	return d, line, err
}

// prepare writes the file and starts the servers.
func (m *match) prepare(ctx context.Context) error {
	if err := m.write(); err != nil {
		return err
	}
	home := m.fresh()
	out, _, err := runProgram(ctx, nil, m.self(home, "storage", "add", m.file)...)
	if err != nil {
		return err
	}
	if fields := strings.Fields(out); len(fields) > 0 {
		m.ours.cid = fields[0]
	}
	if m.ours.daemon, m.ours.addr, err = m.start(ctx, nil, "/p2p/", m.self(home, "bootstrap")...); err != nil {
		return err
	}
	if m.plain, err = m.kuboServer(ctx, nil); err != nil {
		return err
	}
	m.tuned, err = m.kuboServer(ctx, kuboTuning, kuboProfile...)
	if err == nil && m.tuned.cid != m.ours.cid {
		err = fmt.Errorf("kubo names the file %s, this program %s", m.tuned.cid, m.ours.cid)
	}
	return err
}

// write makes the file, durably, so that nothing measured waits for it.
func (m *match) write() error {
	f, err := os.Create(m.file)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(newNoise(), m.o.Size))
	h.Sum(m.digest[:0])
	return errors.Join(err, f.Sync(), f.Close())
}

// fresh names a folder that does not exist.
func (m *match) fresh() string {
	m.next++
	return filepath.Join(m.dir, fmt.Sprint(m.next))
}

func (m *match) self(home string, args ...string) []string {
	return append([]string{m.o.Self, "--home", home, "--mdns=false", "--listen", "/ip4/127.0.0.1/tcp/0", "--network", "bench",
		"--quota", fmt.Sprint(2*m.o.Size + 64<<20)}, args...)
}

// kuboRepo makes an empty node that listens on loopback and knows nobody.
func (m *match) kuboRepo(ctx context.Context, tuning []string) (env []string, err error) {
	env = []string{"IPFS_PATH=" + m.fresh()}
	_, _, err = runProgram(ctx, env, m.o.Peer, "init", "-e", "--profile=test")
	for _, t := range tuning {
		if err == nil {
			_, _, err = runProgram(ctx, env, m.o.Peer, "config", "--json", "Internal", t)
		}
	}
	return env, err
}

func (m *match) kuboServer(ctx context.Context, tuning []string, layout ...string) (s seat, err error) {
	env, err := m.kuboRepo(ctx, tuning)
	if err != nil {
		return s, err
	}
	out, _, err := runProgram(ctx, env, append(append([]string{m.o.Peer, "add", "-Q"}, layout...), m.file)...)
	if err != nil {
		return s, err
	}
	s.cid = strings.TrimSpace(out)
	if s.daemon, _, err = m.start(ctx, env, "Daemon is ready", m.o.Peer, "daemon"); err != nil {
		return s, err
	}
	out, _, err = runProgram(ctx, env, m.o.Peer, "id")
	if err != nil {
		return s, err
	}
	var id struct{ Addresses []string }
	if err := json.Unmarshal([]byte(out), &id); err != nil {
		return s, fmt.Errorf("ipfs id: %w", err)
	}
	for _, a := range id.Addresses {
		if strings.HasPrefix(a, "/ip4/127.0.0.1/tcp/") && !strings.Contains(a, "/ws") {
			s.addr = a
			return s, nil
		}
	}
	return s, fmt.Errorf("ipfs id: no loopback TCP address among %q", id.Addresses)
}

// timed runs a command and returns how long it took and what processor time it and the daemons used.
func timed(ctx context.Context, daemons []*daemon, env []string, args ...string) (wall, cpu time.Duration, err error) {
	var before, after time.Duration
	known := true
	for _, d := range daemons {
		t, ok := d.cpu()
		before, known = before+t, known && ok
	}
	start := time.Now()
	_, cpu, err = runProgram(ctx, env, args...)
	wall = time.Since(start)
	for _, d := range daemons {
		t, ok := d.cpu()
		after, known = after+t, known && ok
	}
	if !known {
		return wall, 0, err
	}
	return wall, cpu + after - before, err
}

// fetch measures this program's `storage get`.
func (m *match) fetch(ctx context.Context) (wall, cpu time.Duration, err error) {
	home, out := m.fresh(), m.fresh()
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	wall, cpu, err = timed(ctx, []*daemon{m.ours.daemon}, nil, m.self(home, "storage", "get", m.ours.cid, out, "--from", m.ours.addr)...)
	return wall, cpu, errors.Join(err, m.check(out))
}

func (m *match) get(ctx context.Context) (time.Duration, time.Duration, error) {
	return m.kuboGet(ctx, m.plain, nil)
}

func (m *match) getTuned(ctx context.Context) (time.Duration, time.Duration, error) {
	return m.kuboGet(ctx, m.tuned, kuboTuning)
}

// kuboGet measures `ipfs get` through a new daemon.
func (m *match) kuboGet(ctx context.Context, from seat, tuning []string) (wall, cpu time.Duration, err error) {
	env, err := m.kuboRepo(ctx, tuning)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(strings.TrimPrefix(env[0], "IPFS_PATH="))) }()
	d, _, err := startDaemon(ctx, env, "Daemon is ready", m.o.Peer, "daemon")
	if err != nil {
		return 0, 0, err
	}
	defer d.stop()
	// A peering, not only a connection: kubo asks those whom it does not know to have the file.
	for _, cmd := range [][]string{{"swarm", "peering", "add", from.addr}, {"swarm", "connect", from.addr}} {
		if _, _, err := runProgram(ctx, env, append([]string{m.o.Peer}, cmd...)...); err != nil {
			return 0, 0, err
		}
	}
	out := m.fresh()
	wall, cpu, err = timed(ctx, []*daemon{from.daemon, d}, env, m.o.Peer, "get", "-o", out, from.cid)
	return wall, cpu, errors.Join(err, m.check(out))
}

// add measures this program's `storage add` into an empty store.
func (m *match) add(ctx context.Context) (wall, cpu time.Duration, err error) {
	home := m.fresh()
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	return timed(ctx, nil, nil, m.self(home, "storage", "add", m.file)...)
}

// kuboAdd measures `ipfs add` of the same layout into an empty repository, without a daemon, which is faster than through one.
func (m *match) kuboAdd(ctx context.Context) (wall, cpu time.Duration, err error) {
	env, err := m.kuboRepo(ctx, nil)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(strings.TrimPrefix(env[0], "IPFS_PATH="))) }()
	return timed(ctx, nil, env, append(append([]string{m.o.Peer, "add", "-Q"}, kuboProfile...), m.file)...)
}

// check compares a fetched file with the original, and removes it.
func (m *match) check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	if err = errors.Join(err, f.Close(), os.Remove(path)); err == nil && [sha256.Size]byte(h.Sum(nil)) != m.digest {
		err = fmt.Errorf("%s differs from what was fetched", path)
	}
	return err
}
