package round

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Reasons of an aborted attempt.
var (
	// ErrNoQuorum reports that no update was held by half of the voters.
	ErrNoQuorum = errors.New("no update was seen by half of the voters")
	// ErrMissing reports that an update of the committed set could not be fetched from anybody.
	ErrMissing = errors.New("an update of the committed set cannot be fetched")
	// ErrAlone reports that a listening peer has nobody left to listen to.
	ErrAlone = errors.New("nobody to listen to")
)

// Stage is where an attempt stands.
type Stage uint8

// Stages of an attempt. The last two are final.
const (
	StagePublished Stage = iota // own header is out; gathering headers and blobs
	StageSeen                   // own vote is out; gathering votes
	StageCommitted
	StageAborted
)

// Setup names the round that an attempt is about.
type Setup struct {
	Self   peer.ID
	Round  uint64
	Parent Hash
	Listen bool // hold no header and no vote: commit what the others commit
	Retry  int  // earlier attempts at the same round
}

// Action is what the state machine asks its shell to do: [Fetch], [Vote], [Decide], [Heal] or [Abort].
type Action interface{ action() }

// Fetch asks for a header's blob from the first of the peers that has it; the answer is Held or Failed.
type Fetch struct {
	Header Signed
	From   []peer.ID
}

// Vote asks to publish a Seen with this set. Later votes of an attempt only add.
type Vote struct{ Set []Hash }

// Decide ends the attempt: aggregate these headers, all of whose blobs are held.
type Decide struct {
	IDs     []Hash   // the committed set, ascending
	Headers []Signed // same order
}

// Heal ends the attempt: at least half of the live peers committed a set that cannot be built here; fetch the state from
// one of these.
type Heal struct{ From []peer.ID }

// Abort ends the attempt without a commit; nothing has changed and the round may be tried again.
type Abort struct{ Why error }

func (Fetch) action()  {}
func (Vote) action()   {}
func (Decide) action() {}
func (Heal) action()   {}
func (Abort) action()  {}

type blobState uint8

const (
	blobWanted blobState = iota
	blobFetching
	blobHeld
	blobFailed
)

// candidate is a header that may enter the set.
type candidate struct {
	Signed
	blob  blobState
	tried []peer.ID // sources of the last fetch
}

type ballot struct {
	voter peer.ID
	set   []Hash
}

type announcement struct {
	peer   peer.ID
	commit Commit
}

// Attempt is one try at one round. It is a value: every event returns the next attempt and the actions that follow from
// it, and the receiver stays as it was. Events may come in any order and repeatedly.
type Attempt struct {
	setup      Setup
	stage      Stage
	live       []peer.ID // peers with a fresh heartbeat, this one included, ascending
	expected   []peer.ID // live peers from which a header and a vote of this round can still come, without this one
	candidates []candidate
	ballots    []ballot // by voter; this peer's own vote included
	commits    []announcement
	viewed     bool // live and expected are known
	headersDue bool
	votesDue   bool
}

// NewAttempt starts an attempt that knows nothing yet.
func NewAttempt(setup Setup) Attempt {
	return Attempt{setup: setup, live: []peer.ID{setup.Self}}
}

// Stage returns where the attempt stands.
func (a Attempt) Stage() Stage { return a.stage }

// Waiting lists the live peers whose header or vote is missing, for display.
func (a Attempt) Waiting() []peer.ID {
	var missing []peer.ID
	for _, id := range a.expected {
		if a.stage == StagePublished && !a.answered(id) || a.stage == StageSeen && a.ballot(id) == nil {
			missing = append(missing, id)
		}
	}
	return missing
}

// View tells which peers live (this one included) and which of the others are still expected to send a header and a vote
// for this round. Nothing is decided before the first view.
func (a Attempt) View(live, expected []peer.ID) (Attempt, []Action) {
	a.viewed, a.live = true, slices.Sorted(slices.Values(live))
	a.expected = slices.DeleteFunc(slices.Sorted(slices.Values(expected)), func(id peer.ID) bool { return id == a.setup.Self })
	return a.settle()
}

// Publish enters the own header, whose blob is held.
func (a Attempt) Publish(h Signed) (Attempt, []Action) {
	a = a.add(h)
	return a.mark(h.ID, blobHeld).settle()
}

// Header enters a mate's header. Headers of another round or parent are ignored, and so is the third header of one author.
func (a Attempt) Header(h Signed) (Attempt, []Action) { return a.add(h).settle() }

// Held reports that a header's blob was fetched and is well formed.
func (a Attempt) Held(id Hash) (Attempt, []Action) { return a.mark(id, blobHeld).settle() }

// Failed reports that a header's blob could not be had from any of the sources asked.
func (a Attempt) Failed(id Hash) (Attempt, []Action) { return a.mark(id, blobFailed).settle() }

// Seen enters a vote. Votes of one peer are united, so that their order does not matter.
func (a Attempt) Seen(voter peer.ID, s Seen) (Attempt, []Action) {
	if s.Round != a.setup.Round || s.Parent != a.setup.Parent || voter == a.setup.Self {
		return a, nil
	}
	return a.cast(voter, s.Headers).settle()
}

// Commit enters a mate's announcement that it committed.
func (a Attempt) Commit(from peer.ID, c Commit) (Attempt, []Action) {
	if c.Round != a.setup.Round || c.Parent != a.setup.Parent || from == a.setup.Self {
		return a, nil
	}
	i, found := slices.BinarySearchFunc(a.commits, from, func(x announcement, id peer.ID) int { return cmp.Compare(x.peer, id) })
	a.commits = slices.Clone(a.commits)
	if found {
		a.commits[i].commit = c
	} else {
		a.commits = slices.Insert(a.commits, i, announcement{from, c})
	}
	return a.settle()
}

// HeadersDue says that the deadline for headers passed.
func (a Attempt) HeadersDue() (Attempt, []Action) {
	a.headersDue = true
	return a.settle()
}

// VotesDue says that the deadline for votes passed.
func (a Attempt) VotesDue() (Attempt, []Action) {
	a.headersDue, a.votesDue = true, true
	return a.settle()
}

// settle applies the rules of the protocol to all that is known: the only place where an attempt moves.
func (a Attempt) settle() (Attempt, []Action) {
	if a.stage >= StageCommitted {
		return a, nil
	}
	a, actions := a.fetches()
	if !a.viewed {
		return a, actions
	}
	if a.stage == StagePublished && (a.headersDue || a.gathered()) {
		a.stage = StageSeen
	}
	if a.stage == StageSeen && !a.setup.Listen {
		if held := a.held(); len(held) > len(a.ballot(a.setup.Self)) {
			a = a.cast(a.setup.Self, held)
			actions = append(actions, Vote{held})
		}
	}
	switch end := a.outcome().(type) {
	case nil:
	case Decide:
		a.stage = StageCommitted
		actions = append(actions, end)
	default:
		a.stage = StageAborted
		actions = append(actions, end)
	}
	return a, actions
}

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
	set := a.heaviest(a.quorum())
	if !a.votesDue {
		// An end other than a decision would only begin the next attempt, which would end at once as well.
		if end, ok := a.build(set).(Decide); ok && len(set) > 0 && a.passed() {
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
	var total uint64
	for _, c := range a.commits {
		var same []peer.ID
		for _, o := range a.commits {
			if slices.Equal(c.commit.Set, o.commit.Set) {
				same = append(same, o.peer)
			}
		}
		better := len(same) > len(by) || len(same) == len(by) && c.commit.Total > total
		agree := len(same)
		if slices.Equal(c.commit.Set, a.ballot(a.setup.Self)) {
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

// unanimous returns the set on which every expected peer and this one agree, so that nothing is gained by waiting. Where a
// mate has committed another set, there is something to wait for.
func (a Attempt) unanimous() []Hash {
	set := a.ballot(a.setup.Self)
	if a.setup.Listen && len(a.expected) > 0 {
		set = a.ballot(a.expected[0])
	}
	for _, id := range a.expected {
		if !slices.Equal(a.ballot(id), set) {
			return nil
		}
	}
	if _, whole := a.build(set).(Decide); len(set) == 0 || !whole {
		return nil
	}
	set = oneEach(set, a.candidates)
	if slices.ContainsFunc(a.commits, func(c announcement) bool { return !slices.Equal(c.commit.Set, set) }) {
		return nil
	}
	return set
}

// quorum evaluates the votes. From the third attempt on only the votes for the own header count, so that a peer whose
// blobs reach nobody but some goes on with those; the fork heals later.
func (a Attempt) quorum() []Hash {
	var votes [][]Hash
	own := a.own()
	for _, b := range a.ballots {
		if a.setup.Retry >= 2 && own != nil && !contains(b.set, *own) {
			continue
		}
		votes = append(votes, b.set)
	}
	return oneEach(Quorum(votes), a.candidates)
}

// heaviest returns the set with the most tokens among the own choice and the sets that mates committed: the order in which
// forks are resolved later, applied before one arises.
func (a Attempt) heaviest(own []Hash) []Hash {
	best, most := own, a.tokens(own)
	for _, c := range a.commits {
		if t := a.tokens(c.commit.Set); t > most {
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

// build returns Decide when every blob of the set is held, else Abort.
func (a Attempt) build(set []Hash) Action {
	d := Decide{IDs: set}
	for _, id := range set {
		i, ok := a.find(id)
		if !ok || a.candidates[i].blob != blobHeld {
			return Abort{fmt.Errorf("round %d: update %s: %w", a.setup.Round, id.Short(), ErrMissing)}
		}
		d.Headers = append(d.Headers, a.candidates[i].Signed)
	}
	return d
}

// pending reports whether a blob of the set is still on its way.
func (a Attempt) pending(set []Hash) bool {
	return slices.ContainsFunc(set, func(id Hash) bool {
		i, ok := a.find(id)
		return ok && a.candidates[i].blob <= blobFetching
	})
}

// tokens sums the tokens of a set, 0 when one of its headers is unknown or failed.
func (a Attempt) tokens(set []Hash) uint64 {
	var sum uint64
	for _, id := range set {
		i, ok := a.find(id)
		if !ok || a.candidates[i].blob == blobFailed {
			return 0
		}
		sum += a.candidates[i].Tokens
	}
	return sum
}

// fetches asks for the blobs that are wanted, and again for failed ones when a new holder voted.
func (a Attempt) fetches() (Attempt, []Action) {
	var actions []Action
	for i, c := range a.candidates {
		if c.blob != blobWanted && c.blob != blobFailed {
			continue
		}
		from := []peer.ID{c.Author}
		for _, b := range a.ballots {
			if b.voter != c.Author && b.voter != a.setup.Self && contains(b.set, c.ID) {
				from = append(from, b.voter)
			}
		}
		if c.blob == blobFailed && len(from) <= len(c.tried) {
			continue
		}
		a.candidates = slices.Clone(a.candidates)
		a.candidates[i].blob, a.candidates[i].tried = blobFetching, from
		actions = append(actions, Fetch{c.Signed, from})
	}
	return a, actions
}

// gathered reports whether every expected header's blob has come or failed.
func (a Attempt) gathered() bool {
	if a.setup.Listen {
		return true
	}
	return a.own() != nil && !slices.ContainsFunc(a.expected, func(id peer.ID) bool { return !a.answered(id) })
}

func (a Attempt) answered(id peer.ID) bool {
	return slices.ContainsFunc(a.candidates, func(c candidate) bool { return c.Author == id && c.blob >= blobHeld })
}

func (a Attempt) held() []Hash {
	var set []Hash
	for _, c := range a.candidates {
		if c.blob == blobHeld {
			set = append(set, c.ID)
		}
	}
	return set
}

func (a Attempt) own() *Hash {
	for _, c := range a.candidates {
		if c.Author == a.setup.Self {
			return &c.ID
		}
	}
	return nil
}

func (a Attempt) add(h Signed) Attempt {
	if h.Round != a.setup.Round || h.Parent != a.setup.Parent {
		return a
	}
	i, found := a.find(h.ID)
	same := 0
	for _, c := range a.candidates {
		if c.Author == h.Author {
			same++
		}
	}
	if found || same >= 2 {
		return a
	}
	a.candidates = slices.Insert(slices.Clone(a.candidates), i, candidate{Signed: h})
	return a
}

func (a Attempt) mark(id Hash, b blobState) Attempt {
	if i, ok := a.find(id); ok && a.candidates[i].blob != blobHeld {
		a.candidates = slices.Clone(a.candidates)
		a.candidates[i].blob = b
	}
	return a
}

func (a Attempt) cast(voter peer.ID, set []Hash) Attempt {
	i, found := slices.BinarySearchFunc(a.ballots, voter, func(b ballot, id peer.ID) int { return cmp.Compare(b.voter, id) })
	a.ballots = slices.Clone(a.ballots)
	if found {
		a.ballots[i].set = union(a.ballots[i].set, set)
	} else {
		a.ballots = slices.Insert(a.ballots, i, ballot{voter, slices.Clone(set)})
	}
	return a
}

func (a Attempt) ballot(id peer.ID) []Hash {
	for _, b := range a.ballots {
		if b.voter == id {
			return b.set
		}
	}
	return nil
}

func (a Attempt) find(id Hash) (int, bool) {
	return slices.BinarySearchFunc(a.candidates, id, func(c candidate, h Hash) int { return c.ID.Compare(h) })
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
