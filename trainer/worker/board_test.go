package worker

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/round"
)

// Any member may pass on what a mate's header says, but nothing else, and nobody can push out what counts with what is old.
func TestHeadersArePassedOn(t *testing.T) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	author, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	run := wire.RecordCID([]byte("run"))
	b := newBoard(run, "self", "owner")
	b.roster.Members = []peer.ID{author, "mate"}
	if b.roster.Members[0] > b.roster.Members[1] {
		b.roster.Members[0], b.roster.Members[1] = b.roster.Members[1], b.roster.Members[0]
	}
	link := wire.Link{Cid: run}
	seal := func(r round.Record) []byte {
		raw, err := round.Seal(key, r)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	header := func(number uint64) []byte {
		return seal(round.Header{Version: round.Version, Run: link, Round: number, Role: round.RoleHello, Fragments: 1})
	}
	forged := header(9)
	forged[len(forged)-1] ^= 1
	beat := seal(round.Heartbeat{Version: round.Version, Run: link, Seq: 1, Round: 9})
	for name, c := range map[string]struct {
		from peer.ID
		raw  []byte
		want p2p.Verdict
	}{
		"a header of a mate's":      {"mate", header(9), p2p.Accept},
		"its own header":            {author, header(9), p2p.Accept},
		"passed on by a stranger":   {"stranger", header(9), p2p.Ignore},
		"a heartbeat of a mate's":   {"mate", beat, p2p.Reject},
		"a header with another bit": {"mate", forged, p2p.Reject},
	} {
		if got := b.validate(c.from, c.raw); got != c.want {
			t.Errorf("%s: verdict %v, want %v", name, got, c.want)
		}
	}
	now := time.Now()
	b.put(beat, now)
	for _, number := range []uint64{9, 8, 1, 2, 3, 4, 5} {
		b.put(header(number), now)
	}
	for _, number := range []uint64{8, 9} {
		if n := len(b.about(number, round.Hash{}).headers); n != 1 {
			t.Errorf("%d headers of round %d are left", n, number)
		}
	}
	if n := len(b.about(5, round.Hash{}).headers); n != 0 {
		t.Error("a header of a round long past was kept")
	}
}
