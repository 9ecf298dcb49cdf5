package round

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Grouping says who averages with whom. It is a pure function of the run's seed, the round and the sorted membership view:
// peers with the same view compute the same groups, peers with different views fall into different groups, and nobody asks.
//
// All members form one group where they fit into one. Where they fill a grid whose sides are at most Size, the groups are
// the lines of the grid along axis round mod dimensions: with Size 2 that is a hypercube, where the partner is the member
// whose position differs in one bit. Any run of that many rounds with exact means gives everybody the mean of all, for a
// quarter to a half of the bytes of random pairs (Moshpit SGD, arXiv 2103.03239, and a comparison of our own). Other
// numbers of members are dealt into random groups, anew each round.
type Grouping struct {
	Seed uint64 // of the run
	Size int    // G, the members of a group; less than 1 means all of them
}

// Groups deals the members, named by their places in the sorted view, into groups for one round. Sizes differ by one at
// most. No group has more than Size members, but for one that takes in the odd peer when Size is 2; nobody is alone unless
// all are.
//
// The members of a group are listed by their coordinate along the axis. Means that are summed in that order end with the
// same bits everywhere when a grid has gone through all its axes.
func (g Grouping) Groups(round uint64, members int) [][]int {
	if members < 1 {
		return nil
	}
	if g.Size < 1 || members <= g.Size || g.Size == 1 {
		return alike(members, g.Size == 1)
	}
	if sides := Grid(members, g.Size); sides != nil {
		return g.lines(round, members, sides)
	}
	count := (members + g.Size - 1) / g.Size
	if members/count < 2 {
		count = members / 2
	}
	groups := make([][]int, count)
	key := mix(g.Seed ^ mix(round^0x67726f757073)) // "groups"
	for p := range members {
		groups[p%count] = append(groups[p%count], int(Permute(key, uint64(members), uint64(p))))
	}
	for _, group := range groups {
		slices.Sort(group)
	}
	return groups
}

// alike returns one group of all members, or one for each of them.
func alike(members int, alone bool) [][]int {
	groups := [][]int{{}}
	for p := range members {
		if alone && p > 0 {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], p)
	}
	return groups
}

// lines returns the grid's lines along the round's axis. Who sits where is drawn once for the run, so that any sequence of
// len(sides) rounds goes through all axes.
func (g Grouping) lines(round uint64, members int, sides []int) [][]int {
	axis := int(round % uint64(len(sides)))
	step := 1 // between neighbours on the axis
	for _, side := range sides[:axis] {
		step *= side
	}
	var groups [][]int
	for first := range members {
		if first/step%sides[axis] != 0 {
			continue
		}
		group := make([]int, sides[axis])
		for c := range group {
			group[c] = int(Permute(mix(g.Seed), uint64(members), uint64(first+c*step)))
		}
		groups = append(groups, group)
	}
	return groups
}

// Grid returns the sides of a full grid of that many members: as few sides as groups of at most size allow, as equal as
// they get, the longest first. It is nil where the members fill no such grid, and has one side where one group holds all.
func Grid(members, size int) []int {
	if members < 2 || size < 2 {
		return nil
	}
	axes, room := 0, 1
	for room < members {
		room *= size
		axes++
	}
	sides := divide(members, axes, size)
	slices.SortFunc(sides, func(a, b int) int { return b - a })
	return sides
}

// divide writes n as a product of so many factors from 2 to limit, the largest factor as small as possible; nil if it cannot.
func divide(n, factors, limit int) []int {
	if factors == 1 {
		if n >= 2 && n <= limit {
			return []int{n}
		}
		return nil
	}
	var best []int
	for f := 2; f <= min(limit, n/2); f++ {
		if n%f != 0 {
			continue
		}
		if rest := divide(n/f, factors-1, limit); rest != nil {
			sides := append(rest, f)
			if best == nil || slices.Max(sides) < slices.Max(best) {
				best = sides
			}
		}
	}
	return best
}

// Mates returns the members of self's group in the round, self included, in the order in which their updates are summed.
// members is the sorted view; the result is nil when self is not in it.
func (g Grouping) Mates(round uint64, members []peer.ID, self peer.ID) []peer.ID {
	place, in := slices.BinarySearch(members, self)
	if !in {
		return nil
	}
	for _, group := range g.Groups(round, len(members)) {
		if !slices.Contains(group, place) {
			continue
		}
		mates := make([]peer.ID, len(group))
		for i, p := range group {
			mates[i] = members[p]
		}
		return mates
	}
	return nil
}

// Slice returns the range of n elements that the members of a group bring together in the round besides their updates: one
// of parts slices of whole blocks, each once in parts rounds, so that weights that drifted apart come together again.
func Slice(round uint64, n, block, parts int) (from, to int) {
	blocks := uint64((n + block - 1) / block)
	p, of := round%uint64(parts), uint64(parts)
	return min(int(p*blocks/of)*block, n), min(int((p+1)*blocks/of)*block, n)
}
