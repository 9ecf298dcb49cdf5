package round

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestGroupsTable(t *testing.T) {
	for _, c := range []struct {
		members, size, rounds int
		groups                string // sizes
	}{
		{1, 4, 1, "[1]"}, {4, 4, 1, "[4]"}, {5, 0, 1, "[5]"}, {3, 1, 0, "[1 1 1]"}, {0, 4, 1, "[]"},
		{8, 2, 3, "[2 2 2 2]"}, {8, 4, 2, "[4 4]"}, {16, 4, 2, "[4 4 4 4]"}, {32, 4, 3, "[4 4 4 4 4 4 4 4]"}, {32, 8, 2, "[8 8 8 8]"},
		{9, 3, 2, "[3 3 3]"}, {36, 6, 2, "[6 6 6 6 6 6]"}, {12, 4, 0, "[4 4 4]"}, {5, 2, 0, "[3 2]"}, {7, 4, 0, "[4 3]"},
		{13, 4, 0, "[4 3 3 3]"}, {3, 2, 0, "[3]"},
	} {
		g := Grouping{Seed: 1, Size: c.size}
		if got := g.Rounds(c.members); got != c.rounds {
			t.Errorf("%d members in groups of %d meet in %d rounds, want %d", c.members, c.size, got, c.rounds)
		}
		sizes := []int{}
		for _, group := range g.Groups(0, c.members) {
			sizes = append(sizes, len(group))
		}
		if got := fmt.Sprint(sizes); got != c.groups {
			t.Errorf("%d members in groups of %d: sizes %s, want %s", c.members, c.size, got, c.groups)
		}
	}
}

func TestGroupsPartition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, size := rapid.IntRange(1, 70).Draw(t, "members"), rapid.IntRange(2, 9).Draw(t, "size")
		g := Grouping{Seed: rapid.Uint64().Draw(t, "seed"), Size: size}
		groups := g.Groups(rapid.Uint64().Draw(t, "round"), n)
		seen := make([]bool, n)
		least, most := n, 0
		for _, group := range groups {
			least, most = min(least, len(group)), max(most, len(group))
			for _, p := range group {
				if seen[p] {
					t.Fatalf("member %d is in two groups: %v", p, groups)
				}
				seen[p] = true
			}
		}
		if slices.Contains(seen, false) {
			t.Fatalf("somebody is in no group: %v", groups)
		}
		if most > max(size, 3) || most > size && size > 2 || most-least > 1 || n > 1 && least < 2 {
			t.Fatalf("%d members in groups of %d: %v", n, size, groups)
		}
	})
}

// All axes of a grid give the mean of all with equal bits, whichever round is the first.
func TestGridMeansAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shape := rapid.SampledFrom([][2]int{{8, 2}, {8, 4}, {16, 4}, {32, 4}, {32, 8}, {128, 8}, {27, 3}, {36, 6}}).Draw(t, "shape")
		n := shape[0]
		g := Grouping{Seed: rapid.Uint64().Draw(t, "seed"), Size: shape[1]}
		first := rapid.Uint64Range(0, 1<<40).Draw(t, "first round")
		x := make([]float32, n)
		for i := range x {
			x[i] = rapid.Float32Range(-1, 1).Draw(t, "value")
		}
		for r := range g.Rounds(n) {
			for _, group := range g.Groups(first+uint64(r), n) {
				var sum float32
				for _, p := range group {
					sum += x[p]
				}
				for _, p := range group {
					x[p] = sum / float32(len(group))
				}
			}
		}
		for i := range x {
			if x[i] != x[0] {
				t.Fatalf("member %d has %g, member 0 %g", i, x[i], x[0])
			}
		}
	})
}

// With pairs in a full hypercube, the partner of a partner is oneself, and each round has another partner.
func TestHypercube(t *testing.T) {
	g, members := Grouping{Seed: 3, Size: 2}, peers(16)
	for _, self := range members {
		met := map[string]bool{}
		for r := range uint64(4) {
			mates := g.Mates(r, members, self)
			if len(mates) != 2 || !slices.Contains(mates, self) || !slices.Equal(mates, g.Mates(r, members, mates[0])) {
				t.Fatalf("round %d: mates of %s are %v", r, self, mates)
			}
			met[string(mates[0])], met[string(mates[1])] = true, true
		}
		if len(met) != 5 {
			t.Errorf("%s met %d others in four rounds", self, len(met)-1)
		}
	}
	if g.Mates(0, members, "stranger") != nil {
		t.Error("a stranger has mates")
	}
}

// Random groups mix: in a few rounds everybody has met most others, and another seed gives other groups.
func TestRandomGroupsMix(t *testing.T) {
	g, n := Grouping{Seed: 5, Size: 4}, 13
	met := map[int]bool{}
	for r := range uint64(10) {
		for _, group := range g.Groups(r, n) {
			if slices.Contains(group, 0) {
				for _, p := range group {
					met[p] = true
				}
			}
		}
	}
	if len(met) < 10 {
		t.Errorf("met %d of %d", len(met), n)
	}
	if fmt.Sprint(g.Groups(1, n)) == fmt.Sprint(Grouping{Seed: 6, Size: 4}.Groups(1, n)) {
		t.Error("the seed does not matter")
	}
	if got, want := fmt.Sprint(g.Groups(7, n)), "[[2 7 9 11] [3 4 5] [6 10 12] [0 1 8]]"; got != want {
		t.Errorf("groups %s, want %s: changing them splits runs of mixed versions", got, want)
	}
}

func TestSlicesCoverAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, block := rapid.IntRange(1, 5000).Draw(t, "n"), rapid.IntRange(1, 64).Draw(t, "block")
		parts := rapid.IntRange(1, 40).Draw(t, "parts")
		next := 0
		for r := range uint64(parts) {
			from, to := Slice(r, n, block, parts)
			if from != next || to < from || from%block != 0 && from != n {
				t.Fatalf("slice %d is %d to %d after %d", r, from, to, next)
			}
			next = to
		}
		if next != n {
			t.Fatalf("slices end at %d of %d", next, n)
		}
	})
}
