package round

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Assign deals the shards among the members by rendezvous hashing with balanced load: every member gets the floor or the
// ceiling of shards/members. It returns each shard's owner as an index into members. All (member, shard) pairs are taken by
// descending score as long as the member has room, so a member that comes or goes moves few shards of the others.
func Assign(seed uint64, shards int, members []peer.ID) []int {
	owner := make([]int, shards)
	if len(members) == 0 {
		return owner
	}
	type pair struct {
		score         uint64
		shard, member int
	}
	pairs := make([]pair, 0, shards*len(members))
	for m, id := range members {
		sum := sha256.Sum256([]byte(id))
		base := mix(seed ^ binary.LittleEndian.Uint64(sum[:]))
		for s := range shards {
			pairs = append(pairs, pair{mix(base + uint64(s)*0x9e3779b97f4a7c15), s, m})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.shard, b.shard), cmp.Compare(members[a.member], members[b.member]))
	})
	for s := range owner {
		owner[s] = -1
	}
	floor, extra := shards/len(members), shards%len(members)
	load := make([]int, len(members))
	for _, p := range pairs {
		switch {
		case owner[p.shard] >= 0 || load[p.member] > floor:
			continue
		case load[p.member] == floor && extra == 0:
			continue
		case load[p.member] == floor:
			extra--
		}
		owner[p.shard] = p.member
		load[p.member]++
	}
	return owner
}

// stride is how many consecutive windows a member takes from a shard before it looks at another: a sixteenth of the round,
// so that a round mixes up to sixteen shards and its loss does not swing with one of them, and at most 16, so that long
// rounds go round all shards.
func stride(need uint64) uint64 { return min(max(need/16, 1), 16) }

// Take chooses the sample positions of one member's round: need windows out of its own shards, starting at the
// replicated cursors, always from the shard that has progressed least. windows holds the number of windows of every
// shard, cursors the next position of every shard. The ranges come sorted by shard; they are fewer windows than needed only
// when the member has no shard with windows.
func Take(own []int, windows, cursors []uint64, need uint64) []Range {
	next := make(map[int]uint64, len(own))
	var usable []int
	for _, s := range own {
		if windows[s] > 0 {
			next[s] = cursors[s]
			usable = append(usable, s)
		}
	}
	if len(usable) > MaxRanges {
		usable = usable[:MaxRanges]
	}
	step := stride(need)
	for need > 0 && len(usable) > 0 {
		least := usable[0]
		for _, s := range usable[1:] {
			if behind(next[s], windows[s], next[least], windows[least]) {
				least = s
			}
		}
		n := min(need, step)
		next[least] += n
		need -= n
	}
	var ranges []Range
	for _, s := range usable {
		if next[s] > cursors[s] {
			ranges = append(ranges, Range{Shard: uint32(s), From: cursors[s], To: next[s]})
		}
	}
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Shard, b.Shard) })
	return ranges
}

// behind reports whether a/na < b/nb, exactly.
func behind(a, na, b, nb uint64) bool {
	ahi, alo := bits.Mul64(a, nb)
	bhi, blo := bits.Mul64(b, na)
	return ahi < bhi || ahi == bhi && alo < blo
}

// Window names one sample window of a shard.
type Window struct {
	Shard int
	Index uint64 // below the shard's number of windows
	Epoch uint64 // how often the shard has been gone through before
}

// Windows lists the windows of the ranges in training order, dealt over the steps so that every step mixes the shards: step
// i of n takes positions i, i+n, i+2n and so on. steps must divide their number; the result is step-major.
func Windows(seed uint64, ranges []Range, windows []uint64, steps int) []Window {
	var flat []Window
	for _, r := range ranges {
		n := windows[r.Shard]
		for p := r.From; p < r.To; p++ {
			key := seed ^ mix(uint64(r.Shard)<<32^(p/n))
			flat = append(flat, Window{int(r.Shard), Permute(key, n, p%n), p / n})
		}
	}
	dealt := make([]Window, 0, len(flat))
	for i := range steps {
		for j := i; j < len(flat); j += steps {
			dealt = append(dealt, flat[j])
		}
	}
	return dealt
}

// Permute maps i to its place in a seeded permutation of [0, n): a four-round Feistel network over the next even number of
// bits, walked until the value falls inside. It needs no table, so an epoch of any size costs nothing to shuffle.
func Permute(key, n, i uint64) uint64 {
	if n <= 1 {
		return 0
	}
	half := (bits.Len64(n-1) + 1) / 2
	mask := uint64(1)<<half - 1
	for {
		left, right := i>>half, i&mask
		for r := range uint64(4) {
			left, right = right, left^(mix(key+r*0x9e3779b97f4a7c15+right)&mask)
		}
		i = left<<half | right
		if i < n {
			return i
		}
	}
}

// mix is the finaliser of SplitMix64: a bijection whose output bits all depend on all input bits.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Fits reports whether a header's ranges start at the cursors of its parent state and name windows that exist, and returns
// how many windows they hold.
func (h Header) Fits(cursors, windows []uint64) (uint64, bool) {
	var total uint64
	for _, r := range h.Ranges {
		if int(r.Shard) >= len(cursors) || windows[r.Shard] == 0 || r.From != cursors[r.Shard] {
			return 0, false
		}
		n := r.To - r.From
		if n > 1<<40 {
			return 0, false
		}
		total += n
	}
	return total, true
}

// Signed is a header with its author and hash.
type Signed struct {
	Header
	Author peer.ID
	ID     Hash
}

// Accept returns the headers of a committed set that are applied, in canonical order (by author). At most one header of an
// author, one claim on a shard and one merge of the same state enter a state: peers whose views of the membership differ may
// have dealt a shard twice. Conflicts go to the header that comes first in an order drawn anew for each round. What a merge
// brings back was dealt on the other side of a fork, so its ranges conflict with nobody's.
func Accept(headers []Signed) []Signed {
	type entry struct {
		rank uint64
		h    Signed
	}
	order := make([]entry, len(headers))
	for i, h := range headers {
		sum := sha256.Sum256([]byte(h.Author))
		order[i] = entry{mix(h.Round ^ binary.LittleEndian.Uint64(sum[:])), h}
	}
	slices.SortFunc(order, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.h.Author, b.h.Author), a.h.ID.Compare(b.h.ID))
	})
	authors, shards, merged := map[peer.ID]bool{}, map[uint32]bool{}, map[Hash]bool{}
	var accepted []Signed
	for _, e := range order {
		if authors[e.h.Author] {
			continue
		}
		if m := e.h.Merge; m != nil {
			if merged[m.State] {
				continue
			}
			merged[m.State] = true
		} else {
			if slices.ContainsFunc(e.h.Ranges, func(r Range) bool { return shards[r.Shard] }) {
				continue
			}
			for _, r := range e.h.Ranges {
				shards[r.Shard] = true
			}
		}
		authors[e.h.Author] = true
		accepted = append(accepted, e.h)
	}
	slices.SortFunc(accepted, func(a, b Signed) int { return cmp.Compare(a.Author, b.Author) })
	return accepted
}
