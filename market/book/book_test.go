package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/peertest"
	"github.com/capacloud/capanode/p2p/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.UnixMilli(1_800_000_000_000)

func beacon(t testing.TB, name string, seq uint64, at time.Time) []byte {
	env, err := offer.Seal(peertest.Key(t, name), offer.Beacon{
		Version: 1, Seq: seq, IssuedMs: at.UnixMilli(), TTL: 300, Class: "cpu", VRAMMiB: 4096, PerfMFLOPS: 50_000,
		Price: 100_000, Floor: 50_000, Free: 1, Total: 1, MaxLease: 3600,
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func TestApply(t *testing.T) {
	now := noon
	b := New(func() time.Time { return now })
	step := func(name string, env []byte, want error, verdict p2p.Verdict) {
		t.Helper()
		_, err := b.Apply(env)
		if !errors.Is(err, want) || (err == nil) != (want == nil) || Verdict(err) != verdict {
			t.Errorf("%s: got %v (verdict %d), want %v", name, err, Verdict(err), want)
		}
	}
	step("first", beacon(t, "a", 5, now), nil, p2p.Accept)
	step("again", beacon(t, "a", 5, now), offer.ErrDuplicate, p2p.Ignore)
	step("stale", beacon(t, "a", 4, now), offer.ErrStale, p2p.Ignore)
	step("second", beacon(t, "a", 6, now), nil, p2p.Accept)
	step("third", beacon(t, "a", 7, now), nil, p2p.Accept)
	step("over rate", beacon(t, "a", 8, now), offer.ErrRate, p2p.Ignore)
	step("future", beacon(t, "b", 1, now.Add(time.Minute)), offer.ErrFuture, p2p.Ignore)
	step("garbage", []byte("garbage"), offer.ErrMalformed, p2p.Reject)
	step("oversize", make([]byte, 600), offer.ErrOversize, p2p.Reject)
	now = now.Add(offer.RateEvery)
	step("after the rate", beacon(t, "a", 8, now), nil, p2p.Accept)
	if b.Len() != 1 {
		t.Errorf("%d offers", b.Len())
	}
	now = now.Add(time.Hour)
	if b.Len() != 0 {
		t.Errorf("%d offers after their time", b.Len())
	}
	step("expired", beacon(t, "b", 1, now.Add(-time.Hour)), offer.ErrExpired, p2p.Ignore)
	step("reborn", beacon(t, "a", 9, now), nil, p2p.Accept)
	if len(b.entries) != 1 || len(b.known) != 1 {
		t.Errorf("%d entries and %d digests are kept, want 1", len(b.entries), len(b.known))
	}
}

func TestEvidenceIsKeptOncePerPeer(t *testing.T) {
	b := New(func() time.Time { return noon })
	if _, err := b.Apply(beacon(t, "a", 5, noon)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, err := b.Apply(beacon(t, "a", 5, noon.Add(time.Duration(i+1)*time.Millisecond)))
		var proof *offer.Equivocation
		if !errors.As(err, &proof) || proof.Verify() != nil {
			t.Fatalf("got %v", err)
		}
	}
	if n := len(b.Evidence()); n != 1 {
		t.Errorf("%d proofs", n)
	}
	if o, ok := b.Get(b.Evidence()[0].Peer); !ok || o.Beacon.IssuedMs != noon.UnixMilli() {
		t.Errorf("the contradiction replaced the first beacon: %+v", o.Beacon)
	}
}

func TestConcurrentApplyAndQuery(t *testing.T) {
	b := New(func() time.Time { return noon })
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				if _, err := b.Apply(beacon(t, fmt.Sprint(w, i), 1, noon)); err != nil {
					t.Error(err)
				}
				b.Query(query.Query{})
			}
		})
	}
	wg.Wait()
	if res := b.Query(query.Query{}); res.Matched != 200 || b.Len() != 200 {
		t.Errorf("%d matched", res.Matched)
	}
}

// serve runs a handler for the book protocol on a new node and returns a stream to it.
func serve(t *testing.T, handler func(p2p.Stream)) p2p.Stream {
	net := memnet.New()
	a, b := net.Node("newcomer"), net.Node("old hand")
	t.Cleanup(func() { a.Close(); b.Close() })
	b.Handle(Protocol, p2p.Limits{}, func(_ context.Context, s p2p.Stream) { handler(s) })
	s, err := a.Open(t.Context(), b.ID(), Protocol)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnapshotBringsWhatIsMissing(t *testing.T) {
	clock := func() time.Time { return noon }
	old, young := New(clock), New(clock)
	for i := range 700 { // more than two frames
		if _, err := old.Apply(beacon(t, fmt.Sprint(i), 2, noon)); err != nil {
			t.Fatal(err)
		}
	}
	for _, env := range [][]byte{beacon(t, "0", 1, noon), beacon(t, "1", 2, noon), beacon(t, "2", 3, noon), beacon(t, "own", 1, noon)} {
		if _, err := young.Apply(env); err != nil {
			t.Fatal(err)
		}
	}
	added, err := young.Fetch(serve(t, func(s p2p.Stream) {
		if err := old.Serve(s); err != nil {
			t.Error(err)
		}
	}))
	if err != nil || added != 698 || young.Len() != 701 {
		t.Errorf("added %d of 698, %d offers in all: %v", added, young.Len(), err)
	}
	added, err = young.Fetch(serve(t, func(s p2p.Stream) { old.Serve(s) }))
	if err != nil || added != 0 {
		t.Errorf("second copy added %d: %v", added, err)
	}
}

func TestFetchFromHostileServer(t *testing.T) {
	for name, handler := range map[string]func(p2p.Stream){
		"garbage":      func(s p2p.Stream) { s.Write([]byte("\x00\x00\x00\x03abc")) },
		"huge frame":   func(s p2p.Stream) { s.Write([]byte("\xff\xff\xff\xffabc")) },
		"bad beacon":   func(s p2p.Stream) { wire.WriteRecord(s, beaconFrame{Beacons: [][]byte{{1, 2, 3}}}) },
		"many beacons": func(s p2p.Stream) { wire.WriteRecord(s, beaconFrame{Beacons: make([][]byte, envelopesPerFrame+1)}) },
		"endless": func(s p2p.Stream) {
			for wire.WriteRecord(s, beaconFrame{More: true}) == nil {
			}
		},
		"early end":     func(s p2p.Stream) {},
		"half a record": func(s p2p.Stream) { wire.WriteRecord(s, beaconFrame{More: true}) },
	} {
		b := New(nil)
		_, err := b.Fetch(serve(t, func(s p2p.Stream) {
			defer s.Close()
			var f digestFrame
			if err := wire.ReadRecord(s, MaxFrame, &f); err == nil {
				handler(s)
			}
		}))
		if !errors.Is(err, ErrProtocol) || b.Len() != 0 {
			t.Errorf("%s: got %v, %d offers", name, err, b.Len())
		}
	}
}

func TestServeHostileClient(t *testing.T) {
	for name, talk := range map[string]func(p2p.Stream){
		"garbage":    func(s p2p.Stream) { s.Write([]byte("\x00\x00\x00\x03abc")) },
		"huge frame": func(s p2p.Stream) { s.Write([]byte("\xff\xff\xff\xffabc")) },
		"no peers": func(s p2p.Stream) {
			wire.WriteRecord(s, map[string]any{"have": []any{map[string]any{"p": []byte{}, "s": 1}}})
		},
		"endless": func(s p2p.Stream) {
			for wire.WriteRecord(s, digestFrame{More: true}) == nil {
			}
		},
	} {
		done := make(chan error, 1)
		s := serve(t, func(s p2p.Stream) { done <- New(nil).Serve(s) })
		talk(s)
		s.CloseWrite()
		if err := <-done; !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v", name, err)
		}
		s.Reset()
	}
}

// tape is a stream whose other side has said everything already.
type tape struct {
	bytes.Reader
	said bytes.Buffer
}

func (s *tape) Write(b []byte) (int, error) { return s.said.Write(b) }
func (*tape) Close() error                  { return nil }
func (*tape) CloseWrite() error             { return nil }
func (*tape) Reset() error                  { return nil }
func (*tape) SetDeadline(time.Time) error   { return nil }
func (*tape) Remote() peer.ID               { return "" }

func FuzzSnapshot(f *testing.F) {
	frame := func(v any) []byte {
		var b bytes.Buffer
		if err := wire.WriteRecord(&b, v); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add(frame(digestFrame{Have: []digest{{peer.ID("\x00\x01x"), 3}}}))
	f.Add(append(frame(digestFrame{More: true}), frame(digestFrame{})...))
	f.Add(append(frame(beaconFrame{Beacons: [][]byte{beacon(f, "b", 1, noon)}, More: true}), frame(beaconFrame{})...))
	f.Add(frame(map[string]any{"have": []any{map[string]any{"s": 1}}}))
	own := beacon(f, "a", 1, noon)
	f.Fuzz(func(t *testing.T, data []byte) {
		b := New(func() time.Time { return noon })
		if _, err := b.Apply(own); err != nil {
			t.Fatal(err)
		}
		if err := b.Serve(&tape{Reader: *bytes.NewReader(data)}); err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("serve: untyped error %v", err)
		}
		added, err := b.Fetch(&tape{Reader: *bytes.NewReader(data)})
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("fetch: untyped error %v", err)
		}
		if b.Len() != 1+added {
			t.Errorf("added %d, holds %d", added, b.Len())
		}
	})
}
