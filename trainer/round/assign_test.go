package round

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"
)

func peers(n int) []peer.ID {
	var ids []peer.ID
	for i := range n {
		ids = append(ids, peer.ID(fmt.Sprintf("member %03d", i)))
	}
	return ids
}

func TestAssignIsBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "members")
		shards := rapid.IntRange(1, 300).Draw(t, "shards")
		load := make([]int, n)
		for s, m := range Assign(rapid.Uint64().Draw(t, "seed"), shards, peers(n)) {
			if m < 0 || m >= n {
				t.Fatalf("shard %d belongs to member %d of %d", s, m, n)
			}
			load[m]++
		}
		for m, l := range load {
			if l < shards/n || l > (shards+n-1)/n {
				t.Errorf("member %d has %d of %d shards among %d", m, l, shards, n)
			}
		}
	})
}

// The dealing is a function of the set of members, and a member that leaves moves few shards besides its own.
func TestAssignMovesLittle(t *testing.T) {
	for _, n := range []int{2, 4, 8, 16} {
		const shards = 256
		members := peers(n)
		before := Assign(9, shards, members)
		shuffled := slices.Clone(members)
		slices.Reverse(shuffled)
		reversed := Assign(9, shards, shuffled)
		after := Assign(9, shards, members[:n-1])
		moved := 0
		for s := range before {
			if members[before[s]] != shuffled[reversed[s]] {
				t.Fatalf("shard %d depends on the order of the members", s)
			}
			if before[s] != n-1 && before[s] != after[s] {
				moved++
			}
		}
		if moved > shards/n {
			t.Errorf("%d members: %d of %d shards moved between those who stayed", n, moved, shards)
		}
	}
	if got := Assign(1, 3, nil); len(got) != 3 {
		t.Errorf("no members: %v", got)
	}
}

func TestTake(t *testing.T) {
	windows := []uint64{100, 100, 0, 50}
	for name, c := range map[string]struct {
		own     []int
		cursors []uint64
		need    uint64
		want    []Range
	}{
		"one shard":       {[]int{1}, []uint64{5, 7, 0, 0}, 20, []Range{{1, 7, 27}}},
		"least first":     {[]int{0, 1}, []uint64{50, 7, 0, 0}, 16, []Range{{1, 7, 23}}},
		"by fraction":     {[]int{0, 3}, []uint64{40, 0, 0, 25}, 16, []Range{{0, 40, 54}, {3, 25, 27}}},
		"strides":         {[]int{0, 1}, []uint64{0, 0, 0, 0}, 40, []Range{{0, 0, 20}, {1, 0, 20}}},
		"empty shard":     {[]int{2}, []uint64{0, 0, 0, 0}, 4, nil},
		"over the epoch":  {[]int{3}, []uint64{0, 0, 0, 45}, 10, []Range{{3, 45, 55}}},
		"nothing to take": {nil, []uint64{0, 0, 0, 0}, 4, nil},
	} {
		if got := Take(c.own, windows, c.cursors, c.need); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// Members that follow the rules for many rounds, with members coming and going and updates lost, never train a window twice
// in an epoch of what is committed.
func TestNoSampleTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards := rapid.IntRange(1, 12).Draw(t, "shards")
		var windows []uint64
		for range shards {
			windows = append(windows, rapid.Uint64Range(1, 60).Draw(t, "windows"))
		}
		s := State{Cursors: make([]uint64, shards)}
		seen := map[string]bool{}
		for number := range uint64(rapid.IntRange(1, 12).Draw(t, "rounds")) {
			var headers []Signed
			everyone := peers(rapid.IntRange(1, 5).Draw(t, "members"))
			for i, id := range everyone {
				view := everyone
				if rapid.IntRange(0, 3).Draw(t, "narrow view") == 0 {
					view = everyone[:i+1] // disagrees with the others about who takes part
				}
				var own []int
				for shard, m := range Assign(1, shards, view) {
					if view[m] == id {
						own = append(own, shard)
					}
				}
				ranges := Take(own, windows, s.Cursors, 20)
				h := Signed{Header: Header{Round: number, Ranges: ranges, Tokens: 1}, Author: id, ID: testHash(string(id))}
				if _, fits := h.Fits(s.Cursors, windows); !fits {
					t.Fatalf("own ranges %v do not fit cursors %v", ranges, s.Cursors)
				}
				if len(ranges) > 0 && rapid.IntRange(0, 3).Draw(t, "lost") > 0 {
					headers = append(headers, h)
				}
			}
			applied := Accept(headers)
			for _, h := range applied {
				for _, r := range h.Ranges {
					for p := r.From; p < r.To; p++ {
						n := windows[r.Shard]
						key := fmt.Sprint(r.Shard, p/n, Windows(1, []Range{{r.Shard, p, p + 1}}, windows, 1))
						if seen[key] {
							t.Fatalf("round %d: shard %d position %d was trained before", number, r.Shard, p)
						}
						seen[key] = true
					}
				}
			}
			if len(headers) > 0 && len(applied) == 0 {
				t.Fatal("every header lost a conflict")
			}
			s.Advance(headers, applied, Turn{Steps: 1})
		}
	})
}

func TestAcceptIsOrderFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var headers []Signed
		for i, id := range peers(rapid.IntRange(1, 6).Draw(t, "peers")) {
			shard := uint32(rapid.IntRange(0, 3).Draw(t, "shard"))
			headers = append(headers, Signed{Header: Header{Ranges: []Range{{shard, 0, 1}}}, Author: id, ID: testHash(fmt.Sprint(i))})
		}
		want := Accept(headers)
		got := Accept(rapid.Permutation(headers).Draw(t, "order"))
		if len(got) != len(want) || !slices.EqualFunc(got, want, func(a, b Signed) bool { return a.ID == b.ID }) {
			t.Errorf("another order: %v, want %v", got, want)
		}
		if !slices.IsSortedFunc(want, func(a, b Signed) int { return int(a.Author[len(a.Author)-1]) - int(b.Author[len(b.Author)-1]) }) {
			t.Error("not in canonical order")
		}
	})
}

func TestFitsRefuses(t *testing.T) {
	cursors, windows := []uint64{10, 20, 0}, []uint64{100, 100, 0}
	for name, r := range map[string]Range{
		"behind": {0, 9, 12}, "ahead": {0, 11, 12}, "no such shard": {3, 0, 1}, "empty shard": {2, 0, 1}, "huge": {0, 10, 1 << 60},
	} {
		if n, ok := (Header{Ranges: []Range{r}}).Fits(cursors, windows); ok {
			t.Errorf("%s: %v fits with %d windows", name, r, n)
		}
	}
	if n, ok := (Header{Ranges: []Range{{0, 10, 15}, {1, 20, 22}}}).Fits(cursors, windows); !ok || n != 7 {
		t.Errorf("got %d, %v, want 7 windows", n, ok)
	}
}

func TestPermute(t *testing.T) {
	for _, n := range []uint64{1, 2, 3, 4, 5, 63, 64, 65, 1000} {
		for key := range uint64(3) {
			hit := make([]bool, n)
			fixed := 0
			for i := range n {
				p := Permute(key, n, i)
				if p >= n || hit[p] {
					t.Fatalf("n=%d key=%d: %d maps to %d, which is outside or taken", n, key, i, p)
				}
				hit[p] = true
				if p == i {
					fixed++
				}
			}
			if n >= 64 && fixed > int(n)/4 {
				t.Errorf("n=%d key=%d: %d of them stay in place", n, key, fixed)
			}
		}
	}
}

func TestWindowsDealsSteps(t *testing.T) {
	ranges, windows := []Range{{0, 0, 6}, {2, 4, 10}}, []uint64{6, 6, 6}
	all := Windows(1, ranges, windows, 3)
	if len(all) != 12 {
		t.Fatalf("%d windows, want 12", len(all))
	}
	for step := range 3 {
		shards := map[int]int{}
		for _, w := range all[4*step:][:4] {
			shards[w.Shard]++
		}
		if shards[0] != 2 || shards[2] != 2 {
			t.Errorf("step %d takes %v", step, shards)
		}
	}
	if slices.Equal(all, Windows(2, ranges, windows, 3)) {
		t.Error("the seed does not matter")
	}
}

func TestBest(t *testing.T) {
	own := Claim{"me", 5, 5, 500, testHash("own")}
	bigger, smaller := testHash("1"), testHash("2")
	if bigger.Compare(smaller) < 0 {
		bigger, smaller = smaller, bigger
	}
	for name, c := range map[string]struct {
		own    Claim
		claims []Claim
		want   peer.ID
	}{
		"nobody":         {own, nil, ""},
		"equal":          {own, []Claim{{"a", 5, 5, 500, own.State}}, ""},
		"behind":         {own, []Claim{{"a", 9, 9, 499, bigger}}, ""},
		"more tokens":    {own, []Claim{{"a", 5, 5, 501, bigger}, {"b", 4, 4, 502, smaller}}, "b"},
		"tie by hash":    {Claim{"me", 5, 5, 500, smaller}, []Claim{{"a", 5, 5, 500, bigger}}, "a"},
		"tie the other":  {Claim{"me", 5, 5, 500, bigger}, []Claim{{"a", 5, 5, 500, smaller}}, ""},
		"impossible":     {own, []Claim{{"a", 6, 6, 1 << 40, bigger}}, ""},
		"endless steps":  {own, []Claim{{"a", 5, 1 << 60, 1000, bigger}}, ""},
		"endless rounds": {own, []Claim{{"a", 1 << 60, 1 << 60, 1000, bigger}}, ""},
	} {
		got, ok := Best(c.own, c.claims, 1000)
		if ok != (c.want != "") || ok && got.Peer != c.want {
			t.Errorf("%s: got %+v, %v", name, got, ok)
		}
	}
}

func TestDeadline(t *testing.T) {
	var none Arrivals
	if d := none.Deadline(time.Minute); d != 4*time.Minute {
		t.Errorf("without history and with a minute of computing: %v", d)
	}
	if d := none.Deadline(0); d != MaxWait {
		t.Errorf("without history: %v", d)
	}
	steady := none
	for range 200 {
		steady = steady.Add(3 * time.Second)
	}
	if d := steady.Deadline(10 * time.Second); d != 4500*time.Millisecond || len(steady.late) != history {
		t.Errorf("steady arrivals: %v from %d", d, len(steady.late))
	}
	if d := none.Add(-time.Hour).Deadline(0); d != MinWait {
		t.Errorf("prompt mates: %v", d)
	}
	mixed := none
	for _, s := range []time.Duration{2, 3, 4, 5, 60} {
		mixed = mixed.Add(s * time.Second)
	}
	if d := mixed.Deadline(time.Minute); d != 7*time.Second {
		t.Errorf("median 4, MAD 1: %v, want 7s", d)
	}
	if d := none.Add(time.Hour).Deadline(time.Second); d != MaxWait {
		t.Errorf("one very late mate: %v", d)
	}
}
