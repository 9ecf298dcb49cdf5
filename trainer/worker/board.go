package worker

import (
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/trainer/round"
)

// keepMessages is how many headers, votes and commits of one member the board of another remembers: this round's and the next's,
// and those of an equivocation. It bounds what a member can make us keep.
const keepMessages = 4

// observedMessages is the same for who only follows the run, and has to report every round: rounds of gradients are a step long, and
// several may pass while one is entered in the books.
const observedMessages = 32

// board holds the newest messages of every member of a run. It is the only thing that the topic's goroutine and the
// training goroutine share.
type board struct {
	run         cid.Cid
	self, owner peer.ID
	changed     chan struct{} // holds a token when something new came
	keep        int           // messages of each kind and member

	mu        sync.Mutex
	roster    round.Roster
	rosterRaw []byte // sealed by the owner; members pass it on
	members   map[peer.ID]*member
}

type member struct {
	beat    round.Heartbeat
	beatAt  time.Time
	headers []arrival
	seens   []round.Seen
	commits []round.Commit
}

// arrival is a header and when it came.
type arrival struct {
	round.Signed
	at      time.Time
	message []byte
}

func newBoard(run cid.Cid, self, owner peer.ID) *board {
	return &board{run: run, self: self, owner: owner, changed: make(chan struct{}, 1), keep: keepMessages, members: map[peer.ID]*member{}}
}

// validate is the topic's validator. What breaks a rule is rejected and blamed on the forwarder; what may be right for
// somebody with a newer roster is ignored.
func (b *board) validate(from peer.ID, data []byte) p2p.Verdict {
	if from == b.self {
		return b.speak(data)
	}
	m, err := round.Open(b.run, data)
	if err != nil {
		return p2p.Reject
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.Kind == round.KindRoster {
		switch {
		case m.From != b.owner:
			return p2p.Reject
		case m.Roster.Epoch < b.roster.Epoch:
			return p2p.Ignore
		}
		return p2p.Accept
	}
	switch {
	case m.From != from && m.Kind != round.KindHeader: // headers of the dead are passed on
		return p2p.Reject
	case !b.roster.Has(from) || !b.roster.Has(m.From):
		return p2p.Ignore
	}
	return p2p.Accept
}

// speak judges what this peer says. It has signed that itself, and verified the roster that it passes on; the mates ignore
// the rest until the roster names it.
func (b *board) speak(data []byte) p2p.Verdict {
	roster, _ := b.current()
	if len(data) > 0 && round.Kind(data[0]) == round.KindRoster || roster.Has(b.self) {
		return p2p.Accept
	}
	return p2p.Ignore
}

// put stores a message that passed validate.
func (b *board) put(data []byte, now time.Time) {
	m, err := round.Read(data)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.Kind == round.KindRoster {
		if m.From == b.owner && m.Roster.Epoch > b.roster.Epoch {
			b.roster, b.rosterRaw = *m.Roster, data
			b.wake()
		}
		return
	}
	if !b.roster.Has(m.From) || m.From == b.self {
		return
	}
	w := b.members[m.From]
	if w == nil {
		w = &member{}
		b.members[m.From] = w
	}
	switch m.Kind {
	case round.KindHeartbeat:
		if m.Heartbeat.Seq > w.beat.Seq {
			w.beat, w.beatAt = *m.Heartbeat, now
		}
	case round.KindHeader:
		// Anybody may pass a header on; old ones must not push those out that count.
		stale := m.Header.Round+uint64(b.keep/keepMessages) < w.beat.Round
		if !stale && !slices.ContainsFunc(w.headers, func(a arrival) bool { return a.ID == m.Hash }) {
			w.headers = push(w.headers, arrival{round.Signed{Header: *m.Header, Author: m.From, ID: m.Hash}, now, data}, b.keep)
		}
	case round.KindSeen:
		w.seens = push(slices.DeleteFunc(w.seens, func(s round.Seen) bool {
			return s.Round == m.Seen.Round && s.Parent == m.Seen.Parent && len(s.Headers) <= len(m.Seen.Headers)
		}), *m.Seen, b.keep)
	case round.KindCommit:
		w.commits = push(slices.DeleteFunc(w.commits, func(c round.Commit) bool {
			return c.Round == m.Commit.Round && c.Parent == m.Commit.Parent
		}), *m.Commit, b.keep)
	}
	b.wake()
}

func push[T any](list []T, v T, keep int) []T {
	if len(list) >= keep {
		list = slices.Delete(list, 0, len(list)-keep+1)
	}
	return append(list, v)
}

func (b *board) wake() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// current returns the roster and its sealed bytes; the epoch is 0 before one came.
func (b *board) current() (round.Roster, []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.roster, b.rosterRaw
}

// mate is a live member as its last heartbeat tells.
type mate struct {
	id      peer.ID
	phase   round.Phase
	claim   round.Claim
	elapsed time.Duration // since its local steps began, as of now
	speed   uint64
}

// mates lists the other members with a fresh heartbeat, ascending by ID.
func (b *board) mates(now time.Time) []mate {
	b.mu.Lock()
	defer b.mu.Unlock()
	var live []mate
	for _, id := range b.roster.Members {
		w := b.members[id]
		if w == nil || w.beatAt.IsZero() || now.Sub(w.beatAt) > round.Silence || w.beat.Phase == round.PhaseLeaving {
			continue
		}
		claim := round.Claim{Peer: id, Round: w.beat.Round, Steps: w.beat.Steps, Tokens: w.beat.Tokens, State: w.beat.State}
		elapsed := time.Duration(min(w.beat.Elapsed, 1<<32)) * time.Millisecond
		if elapsed > 0 || w.beat.Phase == round.PhaseTraining {
			elapsed += now.Sub(w.beatAt)
		}
		live = append(live, mate{id, w.beat.Phase, claim, elapsed, w.beat.Speed})
	}
	return live
}

// takesPart reports whether a mate trains in the round that starts from the state: it is at that state, or about to commit
// the round before it.
func (m mate) takesPart(at round.Claim) bool {
	same := m.claim.Round == at.Round && m.claim.State == at.State
	switch m.phase {
	case round.PhaseTraining, round.PhaseExchanging:
		return same || m.claim.Round+1 == at.Round
	case round.PhaseJoining: // waits for its mates, and starts from here
		return same
	}
	return false
}

// gets reports whether a mate is dealt shards for that round: those who take part, and those who listened to the round
// before and will train now.
func (m mate) gets(at round.Claim) bool {
	return m.takesPart(at) || m.phase == round.PhaseListening && m.claim.Round+1 == at.Round
}

// messages are what the members said about one round.
type messages struct {
	headers []arrival
	seens   map[peer.ID]round.Seen
	commits map[peer.ID]round.Commit
}

// about collects what was said about the round that starts from the parent.
func (b *board) about(number uint64, parent round.Hash) messages {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := messages{seens: map[peer.ID]round.Seen{}, commits: map[peer.ID]round.Commit{}}
	for _, id := range b.roster.Members {
		w := b.members[id]
		if w == nil {
			continue
		}
		for _, h := range w.headers {
			if h.Round == number && h.Parent == parent {
				m.headers = append(m.headers, h)
			}
		}
		for _, s := range w.seens {
			if s.Round == number && s.Parent == parent {
				m.seens[id] = s
			}
		}
		for _, c := range w.commits {
			if c.Round == number && c.Parent == parent {
				m.commits[id] = c
			}
		}
	}
	return m
}
