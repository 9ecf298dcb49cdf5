package round

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

// table drives attempts of peers a, b, c… at one round by hand.
type table struct {
	t       *testing.T
	attempt Attempt
	votes   [][]Hash
	fetches []Fetch
	end     Action
}

var tableParent = testHash("table parent")

func head(author peer.ID, tokens uint64) Signed {
	return Signed{
		Header: Header{Round: 3, Parent: tableParent, Tokens: tokens, Ranges: []Range{{0, 0, 1}}},
		Author: author, ID: testHash("header of " + string(author)),
	}
}

func newTable(t *testing.T, listen bool, expected ...peer.ID) *table {
	tb := &table{t: t, attempt: NewAttempt(Setup{Self: "a", Round: 3, Parent: tableParent, Listen: listen})}
	tb.view(expected...)
	if !listen {
		tb.do(Attempt.Publish, head("a", 100))
	}
	return tb
}

func (tb *table) take(a Attempt, actions []Action) {
	tb.attempt = a
	for _, x := range actions {
		switch x := x.(type) {
		case Vote:
			tb.votes = append(tb.votes, x.Set)
		case Fetch:
			tb.fetches = append(tb.fetches, x)
		default:
			if tb.end != nil {
				tb.t.Errorf("ended twice: %v, %v", tb.end, x)
			}
			tb.end = x
		}
	}
}

func (tb *table) do(f func(Attempt, Signed) (Attempt, []Action), h Signed) { tb.take(f(tb.attempt, h)) }
func (tb *table) view(expected ...peer.ID) {
	tb.take(tb.attempt.View(append([]peer.ID{"a"}, expected...), expected))
}

// past tells that these live but are past this round, so that nothing more is expected of them.
func (tb *table) past(live ...peer.ID) {
	tb.take(tb.attempt.View(append([]peer.ID{"a"}, live...), nil))
}
func (tb *table) header(id peer.ID) { tb.do(Attempt.Header, head(id, 100)) }
func (tb *table) held(id peer.ID)   { tb.take(tb.attempt.Held(testHash("header of " + string(id)))) }
func (tb *table) failed(id peer.ID) { tb.take(tb.attempt.Failed(testHash("header of " + string(id)))) }
func (tb *table) blob(id peer.ID)   { tb.header(id); tb.held(id) }
func (tb *table) headersDue()       { tb.take(tb.attempt.HeadersDue()) }
func (tb *table) votesDue()         { tb.take(tb.attempt.VotesDue()) }

func set(ids ...peer.ID) []Hash {
	var s []Hash
	for _, id := range ids {
		s = append(s, testHash("header of "+string(id)))
	}
	slices.SortFunc(s, Hash.Compare)
	return s
}

func (tb *table) seen(voter peer.ID, ids ...peer.ID) {
	tb.take(tb.attempt.Seen(voter, Seen{Round: 3, Parent: tableParent, Headers: set(ids...)}))
}

func (tb *table) commit(by peer.ID, ids ...peer.ID) {
	tb.take(tb.attempt.Commit(by, Commit{Round: 3, Parent: tableParent, Set: set(ids...), Total: 1000}))
}

func (tb *table) wantDecide(ids ...peer.ID) {
	tb.t.Helper()
	d, ok := tb.end.(Decide)
	if !ok || !slices.Equal(d.IDs, set(ids...)) || len(d.Headers) != len(ids) || tb.attempt.Stage() != StageCommitted {
		tb.t.Errorf("ended with %v in stage %d, want a commit of %v", tb.end, tb.attempt.Stage(), ids)
	}
}

func (tb *table) wantWaiting() {
	tb.t.Helper()
	if tb.end != nil {
		tb.t.Errorf("ended with %v, want to wait", tb.end)
	}
}

func (tb *table) wantAbort(why error) {
	tb.t.Helper()
	if a, ok := tb.end.(Abort); !ok || !errors.Is(a.Why, why) {
		tb.t.Errorf("ended with %v, want an abort: %v", tb.end, why)
	}
}

func TestAttemptAllWell(t *testing.T) {
	tb := newTable(t, false, "b", "c")
	tb.blob("b")
	if tb.wantWaiting(); len(tb.votes) != 0 {
		t.Error("voted before all headers came")
	}
	tb.blob("c")
	if len(tb.votes) != 1 || !slices.Equal(tb.votes[0], set("a", "b", "c")) {
		t.Errorf("votes %v", tb.votes)
	}
	tb.seen("b", "a", "b", "c")
	tb.wantWaiting()
	tb.seen("c", "a", "b", "c")
	tb.wantDecide("a", "b", "c")
	tb.seen("c", "a") // afterwards nothing moves
}

func TestAttemptAlone(t *testing.T) {
	newTable(t, false).wantDecide("a")
}

// Peer c dies at every step of the protocol; a and b must go on.
func TestAttemptDeathAtEveryStep(t *testing.T) {
	steps := []func(tb *table){
		func(tb *table) { tb.header("c") },
		func(tb *table) { tb.held("c") },
		func(tb *table) { tb.seen("c", "a", "b", "c") },
	}
	for died := range len(steps) + 1 {
		for _, silence := range []bool{true, false} { // noticed by silence, or by the deadlines only
			t.Run(fmt.Sprintf("%d steps done, silence %v", died, silence), func(t *testing.T) {
				tb := newTable(t, false, "b", "c")
				tb.header("b")
				for _, f := range steps[:died] {
					f(tb)
				}
				tb.held("b")
				if died == 1 {
					tb.failed("c") // the blob dies with its author
				}
				if silence {
					tb.view("b")
				} else {
					tb.headersDue()
				}
				want := []peer.ID{"a", "b"}
				if died >= 2 {
					want = append(want, "c") // its update is here
				}
				tb.seen("b", want...)
				if !silence {
					tb.votesDue()
				}
				tb.wantDecide(want...)
			})
		}
	}
}

// A header that half of the voters hold is fetched from them although its author is dead.
func TestAttemptFetchesFromVoters(t *testing.T) {
	tb := newTable(t, false, "b", "c")
	tb.blob("b")
	tb.header("c")
	tb.failed("c")
	if len(tb.fetches) != 2 || !slices.Equal(tb.fetches[1].From, []peer.ID{"c"}) {
		t.Fatalf("fetches %v", tb.fetches)
	}
	tb.view("b")
	tb.seen("b", "a", "b", "c")
	if len(tb.fetches) != 3 || !slices.Equal(tb.fetches[2].From, []peer.ID{"c", "b"}) {
		t.Fatalf("fetches %v", tb.fetches)
	}
	tb.wantWaiting()
	tb.held("c")
	if last := tb.votes[len(tb.votes)-1]; !slices.Equal(last, set("a", "b", "c")) {
		t.Errorf("last vote %v", last)
	}
	tb.wantDecide("a", "b", "c")
}

func TestAttemptQuorum(t *testing.T) {
	// b and c hold nothing of ours and agree on each other: at the deadline their headers have 2 and 3 of 3 votes, ours 1.
	tb := newTable(t, false, "b", "c")
	tb.blob("b")
	tb.blob("c")
	tb.seen("b", "b", "c")
	tb.seen("c", "b", "c")
	tb.wantWaiting()
	tb.votesDue()
	tb.wantDecide("b", "c")
}

func TestAttemptNoQuorum(t *testing.T) {
	tb := newTable(t, false, "b", "c", "d")
	tb.seen("b", "b")
	tb.seen("c", "c")
	tb.seen("d", "d")
	tb.votesDue()
	tb.wantAbort(ErrNoQuorum)
}

// From the third attempt on a peer goes on with those who hold its update, so that it cannot be stuck for ever.
func TestAttemptThirdTime(t *testing.T) {
	tb := &table{t: t, attempt: NewAttempt(Setup{Self: "a", Round: 3, Parent: tableParent, Retry: 2})}
	tb.view("b", "c", "d")
	tb.do(Attempt.Publish, head("a", 100))
	tb.seen("b", "b")
	tb.seen("c", "c")
	tb.seen("d", "d")
	tb.votesDue()
	tb.wantDecide("a")
}

func TestAttemptMissingBlob(t *testing.T) {
	tb := newTable(t, false, "b", "c")
	tb.blob("b")
	tb.header("c")
	tb.failed("c")
	tb.seen("b", "b", "c")
	tb.failed("c")
	tb.seen("c", "b", "c")
	tb.failed("c")
	tb.votesDue()
	tb.wantAbort(ErrMissing)
}

// A late peer follows what at least half of the live peers committed, even without its own update.
func TestAttemptFollows(t *testing.T) {
	tb := &table{t: t, attempt: NewAttempt(Setup{Self: "a", Round: 3, Parent: tableParent})}
	tb.header("b")
	tb.header("c")
	tb.commit("b", "b", "c")
	tb.past("b", "c")
	tb.do(Attempt.Publish, head("a", 100))
	tb.wantWaiting()
	tb.commit("c", "b", "c")
	tb.held("b")
	tb.wantWaiting()
	tb.held("c")
	tb.wantDecide("b", "c")
}

// A peer whose own vote is what a mate committed counts itself towards the half, and does not wait for a dead one's vote.
func TestAttemptFollowsItsOwnVote(t *testing.T) {
	tb := newTable(t, false, "b", "c", "dead")
	tb.blob("b")
	tb.blob("c")
	tb.headersDue()
	tb.seen("b", "a", "b", "c")
	tb.wantWaiting()
	tb.commit("b", "a", "b", "c")
	tb.wantDecide("a", "b", "c")
}

// What cannot be built is healed from those who committed it.
func TestAttemptHeals(t *testing.T) {
	tb := newTable(t, false, "b", "c")
	tb.commit("b", "b", "c")
	tb.commit("c", "b", "c")
	tb.wantWaiting()
	tb.votesDue()
	if h, ok := tb.end.(Heal); !ok || !slices.Equal(h.From, []peer.ID{"b", "c"}) {
		t.Errorf("ended with %v, want to heal from b or c", tb.end)
	}
}

// Mates that are past the round and committed different sets have no vote left to wait for: the heaviest set counts at once.
func TestAttemptMatesDisagree(t *testing.T) {
	tb := newTable(t, false, "b", "c", "d", "e")
	tb.blob("b")
	tb.blob("c")
	tb.seen("b", "a", "b")
	tb.seen("c", "a", "b", "c")
	tb.headersDue()
	tb.commit("b", "a", "b")
	tb.commit("c", "a", "b", "c")
	tb.wantWaiting()
	tb.past("b", "c", "d", "e")
	tb.wantDecide("a", "b", "c")

	tb = newTable(t, true, "b", "c", "d")
	tb.header("b")
	tb.commit("b", "b")
	tb.past("b", "c", "d")
	tb.failed("b")
	tb.wantWaiting() // or attempt would follow attempt without a pause
	tb.votesDue()
	tb.wantAbort(ErrNoQuorum)

	tb = newTable(t, true, "b", "c", "d")
	tb.blob("b")
	tb.commit("b", "b")
	tb.header("c")
	tb.commit("c", "b", "c")
	tb.past("b", "c", "d")
	tb.wantWaiting()
	tb.held("c")
	tb.wantDecide("b", "c")
}

// One of three cannot drag the others along by an early commit of its own.
func TestAttemptIgnoresEarlyLoner(t *testing.T) {
	tb := newTable(t, false, "b", "c")
	tb.blob("b")
	tb.commit("b", "b")
	tb.wantWaiting()
	tb.blob("c")
	tb.seen("c", "a", "b", "c")
	tb.votesDue()
	tb.wantDecide("a", "b", "c")
}

func TestAttemptListener(t *testing.T) {
	tb := newTable(t, true, "b", "c")
	tb.blob("b")
	tb.blob("c")
	tb.seen("b", "b", "c")
	tb.wantWaiting()
	tb.seen("c", "b", "c")
	tb.wantDecide("b", "c")
	if len(tb.votes) != 0 {
		t.Error("a listener voted")
	}

	tb = newTable(t, true, "b")
	tb.past()
	tb.wantAbort(ErrAlone)
}

// Two headers of one author count once, the same one everywhere.
func TestAttemptEquivocation(t *testing.T) {
	first, second := head("c", 100), head("c", 100)
	second.ID = testHash("another header of c")
	want := first.ID
	if second.ID.Compare(first.ID) < 0 {
		want = second.ID
	}
	for _, order := range [][]Signed{{first, second}, {second, first}} {
		tb := newTable(t, false, "c")
		for _, h := range order {
			tb.do(Attempt.Header, h)
			tb.take(tb.attempt.Held(h.ID))
		}
		third := head("c", 100)
		third.ID = testHash("a third header of c")
		tb.do(Attempt.Header, third)
		if len(tb.fetches) != 2 {
			t.Errorf("%d blobs of one author fetched, want 2", len(tb.fetches))
		}
		both := union([]Hash{first.ID}, []Hash{second.ID})
		tb.take(tb.attempt.Seen("c", Seen{Round: 3, Parent: tableParent, Headers: union(set("a"), both)}))
		d, ok := tb.end.(Decide)
		if !ok || !slices.Equal(d.IDs, union(set("a"), []Hash{want})) {
			t.Errorf("ended with %v", tb.end)
		}
	}
}

// Events of another round or parent change nothing.
func TestAttemptIgnoresOtherRounds(t *testing.T) {
	tb := newTable(t, false, "b")
	other := head("b", 1)
	other.Round = 4
	tb.do(Attempt.Header, other)
	tb.take(tb.attempt.Seen("b", Seen{Round: 3, Parent: testHash("x"), Headers: set("a")}))
	tb.take(tb.attempt.Commit("b", Commit{Round: 2, Parent: tableParent, Set: set("b")}))
	if tb.wantWaiting(); len(tb.fetches) != 0 {
		t.Error("fetched a blob of another round")
	}
	if w := tb.attempt.Waiting(); !slices.Equal(w, []peer.ID{"b"}) {
		t.Errorf("waiting for %v", w)
	}
}
