package round

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
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
	Listen bool // hold no update and no vote: commit what the others commit
	Retry  int  // earlier attempts at the same round

	Hellos []Hash // of the vote in the earlier attempts: what a peer has said of them stands

	// Groups are who averages with whom, in a run whose groups are smaller than the run; nil where all are in one. Blobs are
	// fetched and voted for within a group alone. The committed set is of all groups: it is what the ledger goes by.
	Groups [][]peer.ID
}

// groups returns the number of groups.
func (s Setup) groups() int { return max(len(s.Groups), 1) }

// outsider returns the group of a peer that has no place in any, because it came when they were dealt: its ID decides.
func (s Setup) outsider(id peer.ID) int {
	sum := sha256.Sum256([]byte(id))
	return int(binary.LittleEndian.Uint16(sum[:])) % s.groups()
}

// Action is what the state machine asks its shell to do: [Fetch], [Vote], [Decide], [Heal] or [Abort].
type Action interface{ action() }

// Fetch asks for a header's blob from the first of the peers that has it; the answer is Held or Failed.
type Fetch struct {
	Header Signed
	From   []peer.ID
}

// Vote asks to publish a Seen with these sets. Later votes of an attempt only add headers.
type Vote struct{ Set, Hellos []Hash }

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
	blobForeign // of another group: never asked for
)

// candidate is a header that may enter the set.
type candidate struct {
	Signed
	blob  blobState
	tried []peer.ID // sources of the last fetch
}

type ballot struct {
	voter  peer.ID
	set    []Hash
	hellos []Hash // those of the first vote
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
	places     map[peer.ID]int // group of each peer, never changed; nil when there is one
	viewed     bool            // live and expected are known
	headersDue bool
	votesDue   bool
}

// NewAttempt starts an attempt that knows nothing yet.
func NewAttempt(setup Setup) Attempt {
	a := Attempt{setup: setup, live: []peer.ID{setup.Self}}
	if len(setup.Groups) > 1 {
		a.places = map[peer.ID]int{}
		for g, group := range setup.Groups {
			for _, id := range group {
				a.places[id] = g
			}
		}
	}
	return a
}

// Stage returns where the attempt stands.
func (a Attempt) Stage() Stage { return a.stage }

// Waiting lists the live peers whose header or vote is missing, for display.
func (a Attempt) Waiting() []peer.ID {
	var missing []peer.ID
	for _, id := range a.expected {
		if a.stage == StagePublished && a.mate(id) && !a.answered(id) || a.stage == StageSeen && a.ballot(id) == nil {
			missing = append(missing, id)
		}
	}
	return missing
}

// View tells which peers live (this one included) and which of the others are still expected to send a header and a vote
// for this round. Nothing is decided before the first view.
func (a Attempt) View(live, expected []peer.ID) (Attempt, []Action) {
	live = slices.Sorted(slices.Values(live))
	expected = slices.DeleteFunc(slices.Sorted(slices.Values(expected)), func(id peer.ID) bool { return id == a.setup.Self })
	if a.viewed && slices.Equal(live, a.live) && slices.Equal(expected, a.expected) {
		return a, nil
	}
	a.viewed, a.live, a.expected = true, live, expected
	return a.settle()
}

// Publish enters the own header, whose blob is held.
func (a Attempt) Publish(h Signed) (Attempt, []Action) {
	a = a.add(h)
	return a.mark(h.ID, blobHeld).settle()
}

// Header enters a mate's header. Headers of another round or parent are ignored, and so is the third header of one author.
func (a Attempt) Header(h Signed) (Attempt, []Action) {
	if _, known := a.find(h.ID); known {
		return a, nil // shells say everything again and again; what is not new moves nothing
	}
	return a.add(h).settle()
}

// Held reports that a header's blob was fetched and is well formed.
func (a Attempt) Held(id Hash) (Attempt, []Action) { return a.mark(id, blobHeld).settle() }

// Failed reports that a header's blob could not be had from any of the sources asked.
func (a Attempt) Failed(id Hash) (Attempt, []Action) { return a.mark(id, blobFailed).settle() }

// Seen enters a vote. Votes of one peer are united, so that their order does not matter.
func (a Attempt) Seen(voter peer.ID, s Seen) (Attempt, []Action) {
	if s.Round != a.setup.Round || s.Parent != a.setup.Parent || voter == a.setup.Self {
		return a, nil
	}
	if old := a.ballot(voter); len(old) > 0 && slices.Equal(old, s.Headers) {
		return a, nil
	}
	return a.cast(voter, s.Headers, s.Hellos).settle()
}

// Commit enters a mate's announcement that it committed.
func (a Attempt) Commit(from peer.ID, c Commit) (Attempt, []Action) {
	if c.Round != a.setup.Round || c.Parent != a.setup.Parent || from == a.setup.Self {
		return a, nil
	}
	i, found := slices.BinarySearchFunc(a.commits, from, func(x announcement, id peer.ID) int { return cmp.Compare(x.peer, id) })
	if found && slices.Equal(a.commits[i].commit.Set, c.Set) && a.commits[i].commit.Total == c.Total {
		return a, nil
	}
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
			hellos := a.setup.Hellos
			if a.setup.Retry == 0 {
				hellos = a.hellos()
			}
			a = a.cast(a.setup.Self, held, hellos)
			actions = append(actions, Vote{held, a.ballotOf(a.setup.Self).hellos})
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

// build returns Decide when every blob of the set that this peer's group needs is held, and the other headers are known, else
// Abort.
func (a Attempt) build(set []Hash) Action {
	d := Decide{IDs: set}
	for _, id := range set {
		i, ok := a.find(id)
		if !ok || a.candidates[i].blob != blobHeld && a.candidates[i].blob != blobForeign {
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

// weight sums the tokens of a set, where weights count for one and hellos for nothing; 0 when a header is unknown or failed.
func (a Attempt) weight(set []Hash) uint64 {
	var sum uint64
	for _, id := range set {
		i, ok := a.find(id)
		if !ok || a.candidates[i].blob == blobFailed {
			return 0
		}
		if a.candidates[i].Role != RoleHello {
			sum += max(a.candidates[i].Tokens, 1)
		}
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

// gathered reports whether the blob of every header that is expected in the own group has come or failed.
func (a Attempt) gathered() bool {
	if a.setup.Listen {
		return true
	}
	return a.own() != nil && !slices.ContainsFunc(a.expected, func(id peer.ID) bool { return a.mate(id) && !a.answered(id) })
}

func (a Attempt) answered(id peer.ID) bool {
	return slices.ContainsFunc(a.candidates, func(c candidate) bool { return c.Author == id && c.Role != RoleHello && c.blob >= blobHeld })
}

// group returns the number of the group that a peer is in.
func (a Attempt) group(id peer.ID) int {
	if a.places == nil {
		return 0
	}
	if g, ok := a.places[id]; ok {
		return g
	}
	return a.setup.outsider(id)
}

// Mate reports whether a header's author is in the group of this peer: its update is applied here.
func (a Attempt) Mate(h Signed) bool { return a.mate(h.Author) }

// mate reports whether a peer is in the own group.
func (a Attempt) mate(id peer.ID) bool { return a.group(id) == a.group(a.setup.Self) }

func (a Attempt) held() []Hash {
	var set []Hash
	for _, c := range a.candidates {
		if c.blob == blobHeld && c.Role != RoleHello {
			set = append(set, c.ID)
		}
	}
	return set
}

// hellos lists those heard so far.
func (a Attempt) hellos() []Hash {
	var set []Hash
	for _, c := range a.candidates {
		if c.Role == RoleHello {
			set = append(set, c.ID)
		}
	}
	return set
}

// own returns the own update, nil for a peer that has none.
func (a Attempt) own() *Hash {
	for _, c := range a.candidates {
		if c.Author == a.setup.Self && c.Role != RoleHello {
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
	c := candidate{Signed: h}
	switch {
	case h.Role == RoleHello:
		c.blob = blobHeld // there is none to fetch
	case !a.mate(h.Author):
		c.blob = blobForeign
	}
	a.candidates = slices.Insert(slices.Clone(a.candidates), i, c)
	return a
}

func (a Attempt) mark(id Hash, b blobState) Attempt {
	if i, ok := a.find(id); ok && a.candidates[i].blob != blobHeld {
		a.candidates = slices.Clone(a.candidates)
		a.candidates[i].blob = b
	}
	return a
}

func (a Attempt) cast(voter peer.ID, set, hellos []Hash) Attempt {
	i, found := slices.BinarySearchFunc(a.ballots, voter, func(b ballot, id peer.ID) int { return cmp.Compare(b.voter, id) })
	a.ballots = slices.Clone(a.ballots)
	if found {
		a.ballots[i].set = union(a.ballots[i].set, set)
	} else {
		a.ballots = slices.Insert(a.ballots, i, ballot{voter, slices.Clone(set), slices.Clone(hellos)})
	}
	return a
}

func (a Attempt) ballot(id peer.ID) []Hash { return a.ballotOf(id).set }

// ballotOf returns a peer's vote; its zero value says that there is none.
func (a Attempt) ballotOf(id peer.ID) ballot {
	i, found := slices.BinarySearchFunc(a.ballots, id, func(b ballot, id peer.ID) int { return cmp.Compare(b.voter, id) })
	if !found {
		return ballot{}
	}
	return a.ballots[i]
}

func (a Attempt) find(id Hash) (int, bool) {
	return slices.BinarySearchFunc(a.candidates, id, func(c candidate, h Hash) int { return c.ID.Compare(h) })
}
