package lease

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

type signedDomain = signed.Domain

// rawCBOR embeds bytes as they are.
func rawCBOR(b []byte) cbor.RawMessage { return cbor.RawMessage(b) }

func wish(who string, nonce uint64) Terms {
	return Terms{
		Version: 1, Run: wire.Link{Cid: wire.RecordCID([]byte{0xa0})}, Requester: peer.ID("\x00\x01" + who), Provider: "\x00\x01p",
		Nonce: nonce, MaxSeconds: 600, TickSeconds: 5, StartByMs: 1,
	}
}

func TestHoldRules(t *testing.T) {
	tab := NewTable(5)
	first, err := tab.Hold(wish("a", 1), 5, noon)
	if err != nil || first.Slot != 0 {
		t.Fatal(first.Slot, err)
	}
	again, err := tab.Hold(wish("a", 1), 5, noon.Add(4*time.Second))
	if err != nil || again.Slot != 0 {
		t.Errorf("the same request got slot %d: %v", again.Slot, err)
	}
	fid, _ := first.ID()
	if _, err := tab.Check(first, fid, noon.Add(8*time.Second)); err != nil {
		t.Errorf("renewed hold lapsed: %v", err)
	}
	if _, err := tab.Check(first, fid, noon.Add(9*time.Second)); !errors.Is(err, ErrNotHeld) {
		t.Errorf("hold outlives its time: %v", err)
	}
	cheaper := first
	cheaper.Price++
	cid, _ := cheaper.ID()
	if _, err := tab.Check(cheaper, cid, noon.Add(5*time.Second)); !errors.Is(err, ErrNotHeld) {
		t.Errorf("other terms than those held: %v", err)
	}
	for n := range uint64(2) {
		if _, err := tab.Hold(wish("a", n+2), 5, noon.Add(4*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tab.Hold(wish("a", 9), 5, noon.Add(4*time.Second)); !errors.Is(err, ErrHoldLimit) {
		t.Errorf("fourth hold of one peer: %v", err)
	}
	if _, err := tab.Hold(wish("b", 1), 3, noon.Add(4*time.Second)); !errors.Is(err, ErrNoSlot) {
		t.Errorf("slot beyond those on sale: %v", err)
	}
	tab.Unhold(wish("a", 2).Requester, 2)
	if _, err := tab.Hold(wish("b", 1), 3, noon.Add(4*time.Second)); err != nil {
		t.Errorf("released hold is not free: %v", err)
	}
}

// TestSlotsAgainstModel runs random traces against the plainest possible model of "who has which slot".
func TestSlotsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "slots")
		tab, now := NewTable(n), noon
		owner := map[uint32]ID{}
		epoch := map[uint32]uint64{}
		quotes := []Terms{}
		for step := range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				who := fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "who"))
				if q, err := tab.Hold(wish(who, uint64(step)), n, now); err == nil {
					if !owner[q.Slot].IsZero() {
						t.Fatalf("held slot %d, which is leased", q.Slot)
					}
					quotes = append(quotes, q)
				}
			case 1:
				if len(quotes) == 0 {
					continue
				}
				q := rapid.SampledFrom(quotes).Draw(t, "quote")
				id, _ := q.ID()
				e, err := tab.Check(q, id, now)
				if err != nil {
					continue
				}
				if err := tab.Bind(q.Slot, id, e); err != nil {
					t.Fatal(err)
				}
				if !owner[q.Slot].IsZero() || e != epoch[q.Slot]+1 {
					t.Fatalf("slot %d granted twice, or epoch jumped to %d", q.Slot, e)
				}
				owner[q.Slot], epoch[q.Slot] = id, e
			case 2:
				slot := uint32(rapid.IntRange(0, n-1).Draw(t, "slot"))
				tab.Release(slot, ID{9}) // a stranger's lease frees nothing
				if rapid.Bool().Draw(t, "really") {
					tab.Release(slot, owner[slot])
					delete(owner, slot)
				}
			case 3:
				if len(quotes) > 0 {
					q := rapid.SampledFrom(quotes).Draw(t, "drop")
					tab.Unhold(q.Requester, q.Nonce)
				}
			}
			if got := tab.Unbound(n); got != n-len(owner) {
				t.Fatalf("%d unbound, model says %d", got, n-len(owner))
			}
		}
		if got := tab.Free(n, now.Add(HoldTime)); got != n-len(owner) {
			t.Fatalf("%d free after all holds lapsed, want %d: a hold leaks", got, n-len(owner))
		}
	})
}

func TestRestoreKeepsEpochAndBeyondSlots(t *testing.T) {
	tab := NewTable(1)
	tab.Restore(0, 7, ID{})
	tab.Restore(3, 2, ID{5})
	q, err := tab.Hold(wish("a", 1), 1, noon)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := q.ID()
	if e, err := tab.Check(q, id, noon); err != nil || e != 8 {
		t.Errorf("epoch %d, %v; want 8", e, err)
	}
	if _, err := tab.Hold(wish("b", 1), 1, noon); !errors.Is(err, ErrNoSlot) {
		t.Errorf("restored slot beyond the table was sold: %v", err)
	}
}
