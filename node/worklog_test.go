package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

type work = map[peer.ID]uint64

// openLog opens a work log whose members may do 100 tokens a round.
func openLog(t interface{ Fatal(...any) }, path string) *workLog {
	w, err := openWorkLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func mustAdd(t interface{ Fatal(...any) }, w *workLog, number, total uint64, done work) {
	if err := w.add(worker.Report{Round: number, Total: total, Work: done, Next: round.Hash{byte(number + 1)}}); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t interface{ Fatal(...any) }, w *workLog, id peer.ID, claimed uint64) uint64 {
	n, err := w.verified(id, claimed)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWorkLogRules(t *testing.T) {
	const a, b peer.ID = "a", "b"
	type claim struct {
		by        peer.ID
		claimed   uint64
		want      uint64
		restarted bool // the log is read again before the claim
	}
	for name, c := range map[string]struct {
		fill   func(t *testing.T, w *workLog)
		claims []claim
	}{
		"nothing committed": {func(*testing.T, *workLog) {}, []claim{{a, 5, 0, false}, {a, math.MaxUint64, 0, true}}},
		"what was seen": {func(t *testing.T, w *workLog) {
			mustAdd(t, w, 0, 150, work{a: 100, b: 50})
		}, []claim{{a, 100, 100, false}, {a, 60, 60, false}, {a, 500, 100, false}, {b, 100, 50, true}}},
		"a fork replaces a round": {func(t *testing.T, w *workLog) {
			mustAdd(t, w, 0, 100, work{a: 100})
			mustAdd(t, w, 0, 200, work{a: 80, b: 100})
		}, []claim{{a, 100, 80, false}, {b, 100, 100, true}}},
		"unseen rounds are shared once": {func(t *testing.T, w *workLog) {
			mustAdd(t, w, 9, 900, work{a: 50, b: 50}) // nine rounds with 800 tokens went by unseen
		}, []claim{{a, 650, 650, false}, {b, 650, 250, true}, {b, 650, 250, true}, {a, 650, 650, true}}},
		"a share is bounded by what one member can do": {func(t *testing.T, w *workLog) {
			mustAdd(t, w, 2, math.MaxUint64, work{b: 100})
		}, []claim{{a, math.MaxUint64, 200, false}, {a, math.MaxUint64, 200, true}}},
		"a round that turns up late is not paid twice": {func(t *testing.T, w *workLog) {
			mustAdd(t, w, 1, 200, work{a: 100})
			if got := mustVerify(t, w, a, 200); got != 200 {
				t.Errorf("one unseen round: verified %d, want 200", got)
			}
			mustAdd(t, w, 0, 100, work{a: 100})
		}, []claim{{a, 400, 200, false}, {a, 400, 200, true}}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "work.jsonl")
			w := openLog(t, path)
			c.fill(t, w)
			for i, q := range c.claims {
				if q.restarted {
					w = openLog(t, path)
				}
				if got := mustVerify(t, w, q.by, q.claimed); got != q.want {
					t.Errorf("claim %d: %s claims %d, verified %d, want %d", i, q.by, q.claimed, got, q.want)
				}
			}
		})
	}
}

func TestWorkLogSurvivesATornLine(t *testing.T) {
	const a peer.ID = "a"
	path := filepath.Join(t.TempDir(), "work.jsonl")
	w := openLog(t, path)
	mustAdd(t, w, 0, 100, work{a: 100})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) {
		if err := os.WriteFile(path, append(whole[:len(whole):len(whole)], whole[:cut]...), 0o600); err != nil {
			t.Fatal(err)
		}
		w := openLog(t, path)
		mustAdd(t, w, 1, 200, work{a: 100})
		if got, want := openLog(t, path).state(2), (round.Hash{2}).String(); got != want {
			t.Fatalf("torn after %d bytes: state %s, want %s", cut, got, want)
		}
		if got := mustVerify(t, openLog(t, path), a, 1000); got != 200 {
			t.Fatalf("torn after %d bytes: verified %d, want 200", cut, got)
		}
	}
}

func TestWorkLogPaysNothingThatItCannotRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work.jsonl")
	w := openLog(t, path)
	mustAdd(t, w, 3, 400, work{"b": 100})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	w.path = filepath.Join(path, "gone")
	if n, err := w.verified("a", 100); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("verified %d, %v; want an error", n, err)
	}
}

// Whatever members claim, and however often the requester is killed: nobody gets more than claimed, and all together get no
// more than what was committed.
func TestWorkLogNeverPaysMoreThanCommitted(t *testing.T) {
	members := []peer.ID{"a", "b", "c"}
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		w := openLog(t, path)
		paid := work{}
		var number, total uint64
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0: // a round commits, seen or not
				done := work{}
				for _, id := range members {
					if n := rapid.Uint64Range(0, 100).Draw(t, "work"); n > 0 {
						done[id] = n
						total += n
					}
				}
				if rapid.Bool().Draw(t, "seen") {
					mustAdd(t, w, number, total, done)
				}
				number++
			case 1:
				w = openLog(t, path)
			default:
				id := rapid.SampledFrom(members).Draw(t, "member")
				claimed := rapid.OneOf(rapid.Uint64Range(0, 3000), rapid.Uint64()).Draw(t, "claimed")
				got := mustVerify(t, w, id, claimed)
				if got > claimed {
					t.Fatalf("%s claims %d and gets %d", id, claimed, got)
				}
				paid[id] = max(paid[id], got)
			}
			if sum := paid["a"] + paid["b"] + paid["c"]; sum > total {
				t.Fatalf("paid %v of %d committed tokens", paid, total)
			}
		}
	})
}
