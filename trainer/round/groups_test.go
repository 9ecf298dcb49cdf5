package round

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"
)

// newGroups seats a at a table of two groups: a and b, c and d.
func newGroups(t *testing.T) *table {
	tb := &table{t: t, attempt: NewAttempt(Setup{Self: "a", Round: 3, Parent: tableParent, Groups: [][]peer.ID{{"a", "b"}, {"c", "d"}}})}
	tb.view("b", "c", "d")
	tb.do(Attempt.Publish, head("a", 100))
	return tb
}

// A group votes when its own blobs are there; the others' are never asked for; the set is of all groups.
func TestAttemptInGroups(t *testing.T) {
	tb := newGroups(t)
	tb.header("c")
	tb.header("d")
	tb.blob("b")
	if len(tb.fetches) != 1 || tb.fetches[0].Header.Author != "b" {
		t.Errorf("fetched %v", tb.fetches)
	}
	if len(tb.votes) != 1 || !slices.Equal(tb.votes[0], set("a", "b")) {
		t.Errorf("voted for %v before the other group's blobs were anywhere", tb.votes)
	}
	tb.seen("b", "a", "b")
	tb.wantWaiting()
	tb.seen("c", "c", "d", "a") // whatever c says of a counts for nothing
	tb.seen("d", "c", "d", "a")
	tb.wantDecide("a", "b", "c", "d")
	if !tb.attempt.Mate(head("b", 1)) || tb.attempt.Mate(head("c", 1)) {
		t.Error("mates are a and b")
	}
}

// A group that comes to nothing is absent; one that has lost a member goes on with the rest.
func TestAttemptGroupFails(t *testing.T) {
	tb := newGroups(t)
	tb.blob("b")
	tb.header("c") // and dies; d says nothing
	tb.seen("b", "a", "b")
	tb.wantWaiting()
	tb.votesDue()
	tb.wantDecide("a", "b")

	tb = newGroups(t)
	tb.blob("b")
	tb.header("c")
	tb.header("d")
	tb.seen("b", "a", "b")
	tb.seen("d", "d")
	tb.wantWaiting()
	tb.view("b", "d") // c fell silent
	tb.wantDecide("a", "b", "d")
}

// A vote for a header that never came here holds up the decision until it comes.
func TestAttemptGroupHeaderMissing(t *testing.T) {
	tb := newGroups(t)
	tb.blob("b")
	tb.header("c")
	tb.seen("b", "a", "b")
	tb.seen("c", "c", "d")
	tb.seen("d", "c", "d")
	tb.wantWaiting()
	tb.header("d")
	tb.wantDecide("a", "b", "c", "d")
}

func greet(author peer.ID) Signed {
	h := head(author, 0)
	h.Role, h.Ranges = RoleHello, nil
	return h
}

func (tb *table) heard(voter peer.ID, hellos []Hash, ids ...peer.ID) {
	tb.take(tb.attempt.Seen(voter, Seen{Round: 3, Parent: tableParent, Headers: set(ids...), Hellos: hellos}))
}

// A hello enters the set when all had heard it at their first vote, whatever group they are in; else it waits for the next round.
func TestAttemptHello(t *testing.T) {
	for _, late := range []bool{false, true} {
		tb := newGroups(t)
		tb.header("c")
		tb.header("d")
		tb.do(Attempt.Header, greet("e"))
		tb.blob("b")
		hello := set("e")
		tb.heard("b", hello, "a", "b")
		tb.heard("c", hello, "c", "d")
		if late {
			tb.heard("d", nil, "c", "d")
			tb.heard("d", hello, "c", "d") // what it said first counts
			tb.wantDecide("a", "b", "c", "d")
			continue
		}
		tb.heard("d", hello, "c", "d")
		tb.wantDecide("a", "b", "c", "d", "e")
	}
}

// Where a mate has committed the same updates, its hellos are taken: there is nothing else to fork about.
func TestAttemptTakesHellosOfACommit(t *testing.T) {
	tb := newGroups(t)
	tb.header("c")
	tb.header("d")
	tb.do(Attempt.Header, greet("e"))
	tb.blob("b")
	tb.commit("c", "a", "b", "c", "d")
	tb.heard("b", set("e"), "a", "b")
	tb.heard("d", set("e"), "c", "d")
	tb.past("b", "c", "d")
	tb.wantDecide("a", "b", "c", "d")
}

// Sums along the axes of a grid leave equal bits, and the mean of all members that are on it.
func TestGridMeets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, size := rapid.IntRange(1, 80).Draw(t, "members"), rapid.IntRange(2, 9).Draw(t, "size")
		sides := Grid(n, size)
		points := 1
		for _, s := range sides {
			points *= s
			if s > size && n > size {
				t.Fatalf("%d members in groups of %d: sides %v", n, size, sides)
			}
		}
		if points > n || 2*points <= n {
			t.Fatalf("%d members in groups of %d: %d have a place", n, size, points)
		}
		if again := Grid(points, size); !slices.Equal(again, sides) {
			t.Fatalf("the grid of the %d on it has sides %v, not %v", points, again, sides)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		values, sum := make([]float32, points), 0.0
		for i := range values {
			values[i] = rng.Float32()
			sum += float64(values[i])
		}
		for axis := range sides {
			next := make([]float32, points)
			for _, line := range Lines(sides, axis) {
				var mean float32
				for _, p := range line {
					mean += float32(values[p] * (1 / float32(len(line))))
				}
				for _, p := range line {
					next[p] = mean
				}
			}
			values = next
		}
		for i, v := range values {
			if v != values[0] || math.Abs(float64(v)-sum/float64(points)) > 1e-5 {
				t.Fatalf("sides %v: member %d has %g, member 0 %g, the mean is %g", sides, i, v, values[0], sum/float64(points))
			}
		}
	})
	for _, c := range []struct {
		n, size int
		want    string
	}{{8, 4, "[4 2]"}, {16, 4, "[4 4]"}, {24, 4, "[4 3 2]"}, {24, 8, "[8 3]"}, {32, 4, "[4 4 2]"}, {32, 8, "[8 4]"}, {17, 8, "[8 2]"}, {7, 8, "[7]"}, {23, 8, "[7 3]"}} {
		if got := fmt.Sprint(Grid(c.n, c.size)); got != c.want {
			t.Errorf("%d members in groups of %d: sides %s, want %s", c.n, c.size, got, c.want)
		}
	}
}

func signedBy(authors ...peer.ID) (list []Signed) {
	for _, id := range authors {
		list = append(list, Signed{Header{Tokens: 1, Ranges: []Range{{0, 0, 1}}}, id, testHash(string(id))})
	}
	return list
}

// Who misses one set keeps its seat, who misses two does not.
func TestViewFollowsTheSets(t *testing.T) {
	s := NewState(testRun(t), 1, []float32{1})
	for _, c := range []struct {
		authors, view []peer.ID
	}{
		{[]peer.ID{"a", "b", "c"}, []peer.ID{"a", "b", "c"}},
		{[]peer.ID{"a", "c"}, []peer.ID{"a", "b", "c"}},
		{[]peer.ID{"a", "b", "d"}, []peer.ID{"a", "b", "c", "d"}},
		{[]peer.ID{"a", "d"}, []peer.ID{"a", "b", "d"}},
		{[]peer.ID{"a", "d"}, []peer.ID{"a", "d"}},
	} {
		set := signedBy(c.authors...)
		s.Advance(set, set, Turn{Steps: 1, Groups: true})
		if !slices.Equal(s.Members(), c.view) || !s.Apart {
			t.Errorf("after a set of %v the view is %v, want %v", c.authors, s.Members(), c.view)
		}
	}
	if s.Key() == s.Hash() {
		t.Error("the key of a state that is apart is the state's hash")
	}
	other := *s
	other.Weights = []float32{2}
	if s.Key() != other.Key() || s.Proof().Ledger() != s.Key() {
		t.Error("the key of a state that is apart depends on the weights")
	}
}

// The finale ends when all axes were gone through by all who had a place; where one was missing, the others begin again.
func TestFinaleCountsAxes(t *testing.T) {
	s := NewState(testRun(t), 1, []float32{1})
	s.Apart = true
	all, some := []peer.ID{"a", "b", "c", "d"}, []peer.ID{"a", "b", "d"}
	step := func(axes int, offers, authors []peer.ID, mixed uint64, apart bool) {
		t.Helper()
		set := signedBy(authors...)
		s.Advance(set, set, Turn{Steps: 1, Groups: axes > 1, Offers: offers, Axes: axes})
		if s.Mixed != mixed || s.Apart != apart || !slices.Equal(s.Members(), authors) {
			t.Errorf("after %v of %v: %d axes done, apart %v, view %v", authors, offers, s.Mixed, s.Apart, s.Members())
		}
	}
	step(2, all, all, 1, true)
	step(2, all, some, 0, true)
	if s.Steps != 0 {
		t.Error("the last step was counted before its time")
	}
	step(2, some, some, 1, true)
	step(2, some, some, 0, false)
	if s.Steps != 1 || s.Key() != s.Hash() {
		t.Errorf("after the finale %d steps, and the key is not the state's hash", s.Steps)
	}
	s.Apart = true
	step(1, all, some, 0, false) // in one group whoever was in the mean has the same
}

func TestReadViewRefuses(t *testing.T) {
	good := appendView(nil, []Seat{{"a", false}, {"bb", true}})
	if view, rest, err := readView(append(good, 9)); err != nil || len(view) != 2 || view[1] != (Seat{"bb", true}) || len(rest) != 1 {
		t.Errorf("read %v, %d bytes left, %v", view, len(rest), err)
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "cut": good[:len(good)-1], "too many": {0xff, 0xff}, "flag": {1, 0, 2, 1, 'a'}, "no ID": {1, 0, 0, 0},
		"long ID": append([]byte{1, 0, 0, 65}, make([]byte, 65)...), "order": appendView(nil, []Seat{{"b", false}, {"a", false}}),
		"twice": appendView(nil, []Seat{{"a", false}, {"a", true}}),
	} {
		if _, _, err := readView(raw); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v, want ErrState", name, err)
		}
	}
	s := testState(t)
	back, err := DecodeHead(s.Head(), s.Shape())
	if err != nil || back.Weights != nil {
		t.Fatalf("a ledger alone: %+v, %v", back, err)
	}
	if back.Weights, back.Momentum = s.Weights, s.Momentum; back.Key() != s.Key() || back.Hash() != s.Hash() {
		t.Errorf("a ledger with its arrays again: %+v", back)
	}
	if _, err := DecodeHead(s.Bytes(), s.Shape()); !errors.Is(err, ErrState) {
		t.Errorf("a ledger with arrays behind it: %v", err)
	}
}

// Roles bind what a header may hold.
func TestHeaderRoles(t *testing.T) {
	h := samples(t)["header"].(Header)
	h.Merge = nil
	hello, weights := h, h
	hello.Role, hello.Blob.Cid, hello.Size, hello.Ranges, hello.Steps, hello.Tokens, hello.Lag, hello.Slice = RoleHello, weights.Run.Cid, 0, nil, 0, 0, 0, 0
	hello.Blob = Header{}.Blob
	weights.Role, weights.Ranges, weights.Steps, weights.Tokens, weights.Lag, weights.Slice = RoleWeights, nil, 0, 0, 0, 0
	for name, good := range map[string]Header{"update": h, "hello": hello, "weights": weights} {
		if err := good.check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func() Header{
		"hello with a blob":    func() Header { b := hello; b.Blob = h.Blob; return b },
		"hello with a size":    func() Header { b := hello; b.Size = 1; return b },
		"hello with samples":   func() Header { b := hello; b.Ranges = h.Ranges; return b },
		"hello with tokens":    func() Header { b := hello; b.Tokens = 1; return b },
		"weights with steps":   func() Header { b := weights; b.Steps = 1; return b },
		"weights with a slice": func() Header { b := weights; b.Slice = 1; return b },
		"weights of a fork":    func() Header { b := weights; b.Merge = &Merge{}; return b },
		"update all slice":     func() Header { b := h; b.Slice = b.Size; return b },
		"huge groups":          func() Header { b := h; b.Group = MaxMembers + 1; return b },
		"unknown role":         func() Header { b := h; b.Role = 3; return b },
	} {
		if err := change().check(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", name, err)
		}
	}
}
