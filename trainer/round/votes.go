package round

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// outcome returns Decide, Heal or Abort, or nil while the attempt has to wait.
func (a Attempt) outcome() Action {
	if set, by := a.followed(); set != nil && (a.setup.Listen || a.setup.Retry < 2) {
		if end, ok := a.build(set).(Decide); ok {
			return end
		}
		if a.votesDue && !a.pending(set) {
			return Heal{by}
		}
		return nil
	}
	if a.setup.Listen && len(a.expected) == 0 && len(a.commits) == 0 {
		return Abort{ErrAlone}
	}
	if a.stage != StageSeen {
		return nil
	}
	if set := a.unanimous(); set != nil {
		return a.build(set)
	}
	if !a.votesDue && !a.passed() {
		return nil
	}
	set := a.quorum()
	if len(set) > 0 {
		set = a.welcome(set)
	}
	set = a.heaviest(set)
	if !a.votesDue {
		// An end other than a decision would only begin the next attempt, which would end at once as well.
		if end, ok := a.build(set).(Decide); ok && len(set) > 0 {
			return end
		}
		return nil
	}
	if len(set) == 0 {
		return Abort{ErrNoQuorum}
	}
	if a.pending(set) {
		return nil
	}
	return a.build(set)
}

// followed returns the set that at least half of the live peers committed and who they are; this peer counts among them when
// its own vote is that set. A peer that is late yields to it even if its own update is left out: those who were in time do
// not have to roll back.
func (a Attempt) followed() (set []Hash, by []peer.ID) {
	live := union2(a.live, a.setup.Self)
	for _, c := range a.commits {
		live = union2(live, c.peer)
	}
	own, total := a.group(a.setup.Self), uint64(0)
	for _, c := range a.commits {
		var same []peer.ID
		for _, o := range a.commits {
			if slices.Equal(c.commit.Set, o.commit.Set) {
				same = append(same, o.peer)
			}
		}
		better := len(same) > len(by) || len(same) == len(by) && c.commit.Total > total
		agree := len(same)
		if slices.Equal(a.within(own, c.commit.Set), a.ballot(a.setup.Self)) {
			agree++
		}
		if 2*agree >= len(live) && better {
			set, by, total = c.commit.Set, same, c.commit.Total
		}
	}
	return set, by
}

// passed reports whether all mates are past this round, and not all of them alike: no vote can come any more.
func (a Attempt) passed() bool { return len(a.expected) == 0 && len(a.commits) > 0 }

// unanimous returns the union of the sets on which every group's expected peers agree, this one among its own, so that nothing
// is gained by waiting. Where a mate has committed a heavier set, there is something to wait for.
func (a Attempt) unanimous() []Hash {
	var set []Hash
	for g := range a.setup.groups() {
		agreed, ok := a.agreed(g)
		if !ok {
			return nil
		}
		set = union(set, agreed)
	}
	if len(set) == 0 {
		return nil
	}
	set = a.welcome(oneEach(set, a.candidates))
	if _, whole := a.build(set).(Decide); !whole || a.rival(set) {
		return nil
	}
	return set
}

// welcome adds the hellos that every voter had heard when it first voted, or, where a mate has committed the same updates, the
// hellos of that commit: of peers that ask to be dealt in all know at the same time, or it is put off to the next round.
func (a Attempt) welcome(set []Hash) []Hash {
	updates := a.updates(set)
	for _, c := range a.commits {
		if slices.Equal(a.updates(c.commit.Set), updates) {
			return c.commit.Set
		}
	}
	for i, h := range a.hellos() {
		heard := !slices.ContainsFunc(a.ballots, func(b ballot) bool { return !contains(b.hellos, h) })
		if heard && len(a.ballots) > 0 && i < MaxMembers {
			set = union(set, []Hash{h})
		}
	}
	return set
}

// updates returns a set without the hellos in it.
func (a Attempt) updates(set []Hash) []Hash {
	var kept []Hash
	for _, id := range set {
		if i, ok := a.find(id); !ok || a.candidates[i].Role != RoleHello {
			kept = append(kept, id)
		}
	}
	return kept
}

// agreed returns the set for which all of a group's voters voted; false when they differ or one has not voted. Of a group that
// nobody is expected to vote for any more counts what was said.
func (a Attempt) agreed(g int) ([]Hash, bool) {
	var voters []peer.ID
	if g == a.group(a.setup.Self) && !a.setup.Listen {
		voters = append(voters, a.setup.Self)
	}
	for _, id := range a.expected {
		if a.group(id) == g {
			voters = append(voters, id)
		}
	}
	if len(voters) == 0 {
		return a.quorumOf(g), true
	}
	set := a.ballot(voters[0])
	for _, id := range voters {
		if b := a.ballot(id); len(b) == 0 || !slices.Equal(b, set) {
			return nil, false
		}
	}
	return a.within(g, set), true
}

// within returns the updates of a set whose authors are in the group, and those that are not known yet.
func (a Attempt) within(g int, set []Hash) []Hash {
	var kept []Hash
	for _, id := range set {
		if i, ok := a.find(id); !ok || a.candidates[i].Role != RoleHello && a.group(a.candidates[i].Author) == g {
			kept = append(kept, id)
		}
	}
	return kept
}

// rival reports whether a mate committed another set that is heavier, or may be for all that is known.
func (a Attempt) rival(set []Hash) bool {
	own := a.weight(set)
	return slices.ContainsFunc(a.commits, func(c announcement) bool {
		unknown := slices.ContainsFunc(c.commit.Set, func(id Hash) bool { _, known := a.find(id); return !known })
		return !slices.Equal(c.commit.Set, set) && (unknown || a.weight(c.commit.Set) > own)
	})
}

// quorum evaluates the votes of all groups, each group's for its own headers.
func (a Attempt) quorum() []Hash {
	var set []Hash
	for g := range a.setup.groups() {
		set = union(set, a.quorumOf(g))
	}
	return set
}

// quorumOf evaluates the votes of a group. From the third attempt on only the votes for the own header count in the own group,
// and none for what cannot be had, so that a peer whose blobs reach nobody but some goes on with those; the fork heals later.
func (a Attempt) quorumOf(g int) []Hash {
	var votes [][]Hash
	own := a.own()
	mine := own != nil && g == a.group(a.setup.Self)
	for _, b := range a.ballots {
		if a.group(b.voter) != g || a.setup.Retry >= 2 && mine && !contains(b.set, *own) {
			continue
		}
		votes = append(votes, a.within(g, b.set))
	}
	set := oneEach(Quorum(votes), a.candidates)
	if a.setup.Retry >= 2 {
		set = slices.DeleteFunc(set, func(id Hash) bool { _, whole := a.build([]Hash{id}).(Decide); return !whole && !a.pending([]Hash{id}) })
	}
	return set
}

// heaviest returns the set with the most tokens among the own choice and the sets that mates committed: the order in which
// forks are resolved later, applied before one arises.
func (a Attempt) heaviest(own []Hash) []Hash {
	best, most := own, a.weight(own)
	for _, c := range a.commits {
		if t := a.weight(c.commit.Set); t > most {
			best, most = c.commit.Set, t
		}
	}
	return best
}

// Quorum returns the headers that are in at least half of the votes, ascending.
func Quorum(votes [][]Hash) []Hash {
	count := map[Hash]int{}
	for _, v := range votes {
		for _, h := range v {
			count[h]++
		}
	}
	var set []Hash
	for h, n := range count {
		if 2*n >= len(votes) {
			set = append(set, h)
		}
	}
	slices.SortFunc(set, Hash.Compare)
	return set
}

// oneEach keeps one header of each author, the one with the smaller hash: who signs two headers for one round gains nothing.
func oneEach(set []Hash, known []candidate) []Hash {
	seen := map[peer.ID]bool{}
	var kept []Hash
	for _, id := range set {
		i := slices.IndexFunc(known, func(c candidate) bool { return c.ID == id })
		if i >= 0 && seen[known[i].Author] {
			continue
		}
		if i >= 0 {
			seen[known[i].Author] = true
		}
		kept = append(kept, id)
	}
	return kept
}

func union2(set []peer.ID, id peer.ID) []peer.ID {
	if slices.Contains(set, id) {
		return set
	}
	return append(slices.Clone(set), id)
}
