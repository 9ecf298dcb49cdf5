package round

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Grouping says who averages with whom. It is a pure function of the run's seed, the round and the sorted membership view:
// peers with the same view compute the same groups, peers with different views fall into different groups, and nobody asks.
//
// All members form one group where they fit into one. Where their number and Size are powers of two, the members are the
// corners of a hypercube and a group is those that differ in a window of the position's bits, which moves on by its width each
// round: with Size 2 the partner is the member whose position differs in one bit. Any [Grouping.Rounds] rounds in a row with
// exact means give everybody the mean of all, for a quarter to a half of the bytes of random pairs, and all groups are
// equally large, so what a peer downloads does not grow with the run (after Moshpit SGD, arXiv 2103.03239, which averages
// along the axes of a grid). The same goes for the lines of a full square or cube of other sides. Other numbers of members
// are dealt into random groups, anew each round.
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
	if c, ok := newCube(members, g.Size); ok {
		return g.faces(round, c)
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

// cube is members at the points of a cube: a position is so many digits to a base, and a group spans a window of digits.
type cube struct{ base, digits, window int }

// newCube returns the cube that the members fill with groups of exactly size: pairs of neighbours on each axis to the base of
// two where both numbers are powers of two, otherwise lines of size points.
func newCube(members, size int) (cube, bool) {
	for _, base := range []int{2, size} {
		c := cube{base, logarithm(members, base), logarithm(size, base)}
		if c.digits > 0 && c.window > 0 {
			return c, true
		}
	}
	return cube{}, false
}

// logarithm returns the exponent of n as a power of base; 0 where it is none.
func logarithm(n, base int) int {
	exponent := 0
	for base > 1 && n > 1 && n%base == 0 {
		n /= base
		exponent++
	}
	if n != 1 {
		return 0
	}
	return exponent
}

// Rounds returns how many rounds in a row with exact means bring all members to the mean of all of them: 1 where one group
// holds all, 0 where groups are random and no number does.
func (g Grouping) Rounds(members int) int {
	if g.Size < 1 || members <= g.Size {
		return 1
	}
	c, ok := newCube(members, g.Size)
	if !ok {
		return 0
	}
	return (c.digits + c.window - 1) / c.window
}

// faces returns the groups of a round: the points that differ in its window of digits. Who sits where is drawn once for the
// run, so that windows of different rounds fit together.
func (g Grouping) faces(round uint64, c cube) [][]int {
	start := int(round % uint64(c.digits) * uint64(c.window) % uint64(c.digits))
	weights := make([]int, c.digits)
	members := 1
	for d := range weights {
		weights[d] = members
		members *= c.base
	}
	inside := make([]int, c.window) // weights of the window's digits
	for i := range inside {
		inside[i] = weights[(start+i)%c.digits]
	}
	var groups [][]int
	for first := range members {
		if slices.ContainsFunc(inside, func(w int) bool { return first/w%c.base != 0 }) {
			continue
		}
		group := []int{first}
		for _, w := range inside {
			line := group
			for step := 1; step < c.base; step++ {
				for _, p := range line {
					group = append(group, p+step*w)
				}
			}
		}
		for i, p := range group {
			group[i] = int(Permute(mix(g.Seed), uint64(members), uint64(p)))
		}
		groups = append(groups, group)
	}
	return groups
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

// Grid returns the sides of a grid of at most size points a side, for as many of the members as fit one: one round of exact means
// along each axis, in groups of the line's points, brings these to the mean of all of them, for so few bytes that what a member
// downloads does not grow with the run. It is one line where all fit into a group. As few axes as a greedy choice gives.
func Grid(members, size int) []int {
	if members <= size || size < 2 {
		return []int{members}
	}
	for points := members; ; points-- { // ends at the latest at a power of two
		if sides := factors(points, size); sides != nil {
			return sides
		}
	}
}

// factors returns numbers of at most size whose product is n, the largest first; nil where n has a larger prime.
func factors(n, size int) (sides []int) {
	for n > 1 {
		d := min(size, n)
		for n%d != 0 {
			d--
		}
		if d == 1 {
			return nil
		}
		sides, n = append(sides, d), n/d
	}
	return sides
}

// Lines returns the lines of a grid along an axis: groups of points, named by their number, in order of their coordinate. Means
// that are summed in that order leave equal bits everywhere when a grid has gone through all its axes.
func Lines(sides []int, axis int) [][]int {
	points, stride := 1, 1
	for a, side := range sides {
		points *= side
		if a < axis {
			stride *= side
		}
	}
	var lines [][]int
	for first := range points {
		if first/stride%sides[axis] != 0 {
			continue
		}
		line := make([]int, sides[axis])
		for i := range line {
			line[i] = first + i*stride
		}
		lines = append(lines, line)
	}
	return lines
}

// Slice returns the range of n elements that the members of a group bring together in the round besides their updates: one
// of parts slices of whole blocks, each once in parts rounds, so that weights that drifted apart come together again.
func Slice(round uint64, n, block, parts int) (from, to int) {
	blocks := uint64((n + block - 1) / block)
	p, of := round%uint64(parts), uint64(parts)
	return min(int(p*blocks/of)*block, n), min(int((p+1)*blocks/of)*block, n)
}
