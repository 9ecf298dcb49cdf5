package faultlab

import (
	"fmt"
	"maps"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/round"
)

// Ledger remembers every header and commit that was said in a run, by whomever, so that the way to a state can be walked
// back and checked. It grows with the run.
type Ledger struct {
	mu      sync.Mutex
	headers map[round.Hash]round.Signed
	commits map[round.Hash]round.Commit // by the state they lead to
	order   []round.Hash                // of the headers
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{headers: map[round.Hash]round.Signed{}, commits: map[round.Hash]round.Commit{}}
}

func (l *Ledger) add(m round.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m.Kind {
	case round.KindHeader:
		if _, known := l.headers[m.Hash]; !known {
			l.order = append(l.order, m.Hash)
		}
		l.headers[m.Hash] = round.Signed{Header: *m.Header, Author: m.From, ID: m.Hash}
	case round.KindCommit:
		l.commits[m.Commit.Next] = *m.Commit
	}
}

// Updates counts the updates of local steps that were applied.
func (l Link) Updates() (n int) {
	for _, h := range l.Accepted {
		if h.Trains() && h.Merge == nil {
			n++
		}
	}
	return n
}

// Link is one committed round on the way to a state.
type Link struct {
	Round    uint64
	Next     round.Hash
	Tokens   uint64 // committed in the round
	Total    uint64 // committed in the state after it
	Accepted []round.Signed
}

// Chain walks back from a state of so many rounds to the state before the first round, and returns the rounds between,
// oldest first. It fails where a round does not follow from the one before: an unknown commit or header, tokens that are
// not the sum of what was applied, or samples that do not begin where those before ended. So no sample is in a state twice.
func (l *Ledger) Chain(state round.Hash, rounds uint64) ([]Link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	links := make([]Link, rounds)
	for n := rounds; n > 0; n-- {
		c, ok := l.commits[state]
		if !ok || c.Round != n-1 {
			return nil, fmt.Errorf("nobody committed state %s of round %d", state.Short(), n-1)
		}
		var set []round.Signed
		for _, id := range c.Set {
			h, ok := l.headers[id]
			if !ok || h.Round != c.Round || h.Parent != c.Parent {
				return nil, fmt.Errorf("round %d holds header %s, which nobody said about it", c.Round, id.Short())
			}
			set = append(set, h)
		}
		link := Link{Round: c.Round, Next: c.Next, Total: c.Total, Accepted: round.Accept(set)}
		for _, h := range link.Accepted {
			link.Tokens += h.Tokens
		}
		links[n-1], state = link, c.Parent
	}
	return links, follow(links)
}

// follow checks sums and cursors along a chain.
func follow(links []Link) error {
	cursors := map[uint32]uint64{}
	var total uint64
	for _, l := range links {
		if total += l.Tokens; l.Total != total {
			return fmt.Errorf("round %d leads to %d tokens, the updates applied until then sum to %d", l.Round, l.Total, total)
		}
		next := maps.Clone(cursors)
		for _, h := range l.Accepted {
			for _, r := range h.Ranges {
				if r.From != cursors[r.Shard] {
					return fmt.Errorf("round %d trains shard %d from window %d, the cursor is at %d", l.Round, r.Shard, r.From, cursors[r.Shard])
				}
				if h.Merge == nil && next[r.Shard] != r.From {
					return fmt.Errorf("round %d trains shard %d twice", l.Round, r.Shard)
				}
			}
			if h.Merge == nil {
				advance(next, h.Ranges)
			}
		}
		for _, h := range l.Accepted {
			if h.Merge != nil { // of shards that both sides of a fork trained, the further one counts
				advance(next, h.Ranges)
			}
		}
		cursors = next
	}
	return nil
}

func advance(cursors map[uint32]uint64, ranges []round.Range) {
	for _, r := range ranges {
		cursors[r.Shard] = max(cursors[r.Shard], r.To)
	}
}

// Headers returns the headers of what an author trained, in the order in which it said them.
func (l *Ledger) Headers(author peer.ID) []round.Signed {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []round.Signed
	for _, id := range l.order {
		if h := l.headers[id]; h.Author == author && h.Trains() && h.Merge == nil {
			list = append(list, h)
		}
	}
	return list
}
