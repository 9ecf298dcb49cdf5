package round

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"
)

// model is a swarm of attempts over a network that loses, reorders and delays messages, fails fetches, fires deadlines early
// and kills peers. It knows no I/O: a state is the hash of its history.
type model struct {
	t     *rapid.T
	peers []*modelPeer
	queue []modelEvent
	loss  int // per cent of messages and fetches that fail
	early bool
	group int  // most members of a group; 0: one group
	due   bool // the deadlines fire
}

type modelPeer struct {
	id      peer.ID
	dead    bool
	claim   Claim
	listen  bool
	retry   int
	attempt Attempt
	end     Action
}

type modelEvent struct {
	to *modelPeer
	do func(Attempt) (Attempt, []Action)
}

func newModel(t *rapid.T, n int) *model {
	m := &model{t: t}
	for i := range n {
		id := peer.ID(fmt.Sprintf("peer %d", i))
		m.peers = append(m.peers, &modelPeer{id: id, claim: Claim{Peer: id, State: testHash("start")}})
	}
	return m
}

func (m *model) draw(label string, n int) int { return rapid.IntRange(0, n-1).Draw(m.t, label) }
func (m *model) lost() bool                   { return m.loss > 0 && m.draw("lost", 100) < m.loss }

func (m *model) alive() []*modelPeer {
	return slices.DeleteFunc(slices.Clone(m.peers), func(p *modelPeer) bool { return p.dead })
}

// views queues the live view of every peer; whoever is at another state is not expected.
func (m *model) views() {
	for _, p := range m.alive() {
		var live, expected []peer.ID
		for _, o := range m.alive() {
			live = append(live, o.id)
			if o.claim.State == p.claim.State && !o.listen {
				expected = append(expected, o.id)
			}
		}
		m.queue = append(m.queue, modelEvent{p, func(a Attempt) (Attempt, []Action) { return a.View(live, expected) }})
	}
}

// round plays one round of all living peers to its end and returns how many committed.
func (m *model) round(kills int) int {
	for _, p := range m.alive() {
		var claims []Claim
		for _, o := range m.alive() {
			if o != p && !m.lost() {
				claims = append(claims, o.claim)
			}
		}
		if best, ok := Best(p.claim, claims, 1<<20); ok {
			p.claim, p.listen, p.retry = best, true, 0
			p.claim.Peer = p.id
		}
		p.end = nil
		p.attempt = NewAttempt(Setup{Self: p.id, Round: p.claim.Round, Parent: p.claim.State, Listen: p.listen, Retry: p.retry, Groups: m.groups(p.claim.Round)})
	}
	m.queue = nil
	m.views()
	for _, p := range m.alive() {
		if p.listen {
			continue
		}
		h := Signed{
			Header: Header{Round: p.claim.Round, Parent: p.claim.State, Tokens: uint64(100 + len(p.id)), Ranges: []Range{{0, 0, 1}}},
			Author: p.id, ID: testHash(fmt.Sprint(p.id, p.claim.Round, p.claim.State)),
		}
		m.queue = append(m.queue, modelEvent{p, func(a Attempt) (Attempt, []Action) { return a.Publish(h) }})
		m.tell(p, func(a Attempt) (Attempt, []Action) { return a.Header(h) })
	}
	m.due = false
	m.drain(kills)
	m.due = true
	for _, deadline := range []func(Attempt) (Attempt, []Action){Attempt.HeadersDue, Attempt.VotesDue} {
		for _, p := range m.alive() {
			m.queue = append(m.queue, modelEvent{p, deadline})
		}
		m.drain(0)
	}
	committed := 0
	for _, p := range m.alive() {
		committed += m.finish(p)
	}
	return committed
}

// groups deals all peers, dead or not: that is what the ledger knows.
func (m *model) groups(number uint64) (groups [][]peer.ID) {
	if m.group == 0 || len(m.peers) <= m.group {
		return nil
	}
	for _, places := range (Grouping{Seed: 1, Size: m.group}).Groups(number, len(m.peers)) {
		var group []peer.ID
		for _, p := range places {
			group = append(group, m.peers[p].id)
		}
		groups = append(groups, group)
	}
	return groups
}

// tell queues an event for everybody else, unless the message is lost.
func (m *model) tell(from *modelPeer, do func(Attempt) (Attempt, []Action)) {
	for _, p := range m.alive() {
		if p != from && !m.lost() {
			m.queue = append(m.queue, modelEvent{p, do})
		}
	}
}

// drain delivers queued events in random order, killing peers in between.
func (m *model) drain(kills int) {
	for len(m.queue) > 0 {
		i := m.draw("event", len(m.queue))
		e := m.queue[i]
		m.queue = slices.Delete(m.queue, i, i+1)
		if kills > 0 && len(m.alive()) > 1 && m.draw("kill", 10) == 0 {
			kills--
			m.alive()[m.draw("victim", len(m.alive()))].dead = true
			m.views()
		}
		if m.early && m.draw("early", 20) == 0 {
			m.apply(e.to, Attempt.HeadersDue)
		}
		m.apply(e.to, e.do)
	}
}

func (m *model) apply(p *modelPeer, do func(Attempt) (Attempt, []Action)) {
	if p.dead {
		return
	}
	var actions []Action
	p.attempt, actions = do(p.attempt)
	for _, a := range actions {
		switch a := a.(type) {
		case Fetch:
			event := func(x Attempt) (Attempt, []Action) { return x.Failed(a.Header.ID) }
			reachable := slices.ContainsFunc(m.alive(), func(o *modelPeer) bool { return slices.Contains(a.From, o.id) })
			if reachable && !m.lost() {
				event = func(x Attempt) (Attempt, []Action) { return x.Held(a.Header.ID) }
			}
			m.queue = append(m.queue, modelEvent{p, event})
		case Vote:
			s := Seen{Round: p.claim.Round, Parent: p.claim.State, Headers: a.Set}
			m.tell(p, func(x Attempt) (Attempt, []Action) { return x.Seen(p.id, s) })
		case Decide:
			p.end = a
			c := Commit{Round: p.claim.Round, Parent: p.claim.State, Set: a.IDs}
			m.tell(p, func(x Attempt) (Attempt, []Action) { return x.Commit(p.id, c) })
		default:
			p.end = a
			if abort, ok := a.(Abort); !m.due && (!ok || abort.Why != ErrAlone) {
				m.t.Fatalf("%s ends with %v before its deadline: the next attempt would end so at once", p.id, a)
			}
		}
	}
}

// finish moves a peer past its attempt and returns 1 if it committed.
func (m *model) finish(p *modelPeer) int {
	switch end := p.end.(type) {
	case Decide:
		h := sha256.New()
		h.Write(p.claim.State[:])
		for i, id := range end.IDs {
			h.Write(id[:])
			p.claim.Tokens += end.Headers[i].Tokens
		}
		p.claim.Round++
		p.claim.Steps++
		p.claim.State = Hash(h.Sum(nil))
		p.listen, p.retry = false, 0
		return 1
	case Abort, Heal:
		p.retry++
		if p.listen && len(m.alive()) == 1 {
			p.listen = false
		}
		if a, ok := end.(Abort); ok && a.Why == ErrAlone {
			p.listen = false
		}
	default:
		m.t.Fatalf("%s hangs after all deadlines in stage %d, waiting for %v", p.id, p.attempt.Stage(), p.attempt.Waiting())
	}
	return 0
}

// Whatever is lost, delayed or killed: nobody hangs, who decided on the same votes decided the same, and two quiet rounds
// bring all survivors to one state.
func TestModelConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t, rapid.IntRange(1, 6).Draw(t, "peers"))
		m.group = rapid.SampledFrom([]int{0, 0, 2, 3}).Draw(t, "group")
		m.loss = rapid.IntRange(0, 40).Draw(t, "loss")
		m.early = rapid.Bool().Draw(t, "early")
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			m.round(rapid.IntRange(0, 2).Draw(t, "kills"))
			m.checkAgreement()
		}
		m.loss, m.early = 0, false
		before := uint64(0)
		for _, p := range m.alive() {
			before = max(before, p.claim.Tokens)
		}
		for range 2 {
			m.round(0)
		}
		alive := m.alive()
		for _, p := range alive {
			if p.claim.State != alive[0].claim.State {
				t.Errorf("%s ended at round %d, %s at round %d", p.id, p.claim.Round, alive[0].id, alive[0].claim.Round)
			}
			if p.claim.Tokens < before {
				t.Errorf("%s lost committed tokens: %d of %d", p.id, p.claim.Tokens, before)
			}
		}
	})
}

// checkAgreement compares peers that committed the same set on the same parent.
func (m *model) checkAgreement() {
	states := map[string]Hash{}
	for _, p := range m.alive() {
		d, ok := p.end.(Decide)
		if !ok {
			continue
		}
		key := fmt.Sprint(p.attempt.setup.Parent, d.IDs)
		if other, seen := states[key]; seen && other != p.claim.State {
			m.t.Errorf("same parent and set, different states")
		}
		states[key] = p.claim.State
	}
}

// Without losses and deaths nothing is left out, in whatever order messages arrive.
func TestModelQuiet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t, rapid.IntRange(1, 6).Draw(t, "peers"))
		m.group = rapid.SampledFrom([]int{0, 2, 3}).Draw(t, "group")
		for range 2 {
			if n := m.round(0); n != len(m.peers) {
				t.Fatalf("%d of %d committed", n, len(m.peers))
			}
		}
		for _, p := range m.peers {
			if d := p.end.(Decide); len(d.IDs) != len(m.peers) {
				t.Errorf("%s committed %d of %d updates", p.id, len(d.IDs), len(m.peers))
			}
		}
	})
}

// The commit rule is a function of the set of votes: their order, and how a vote grew, do not matter.
func TestQuorumIsOrderFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := []peer.ID{"a", "b", "c", "d"}
		var votes [][]Hash
		for range rapid.IntRange(1, 6).Draw(t, "voters") {
			var v []Hash
			for _, id := range ids {
				if rapid.Bool().Draw(t, "holds") {
					v = union(v, set(id))
				}
			}
			votes = append(votes, v)
		}
		want := Quorum(votes)
		if !sortedSet(want) {
			t.Errorf("not a sorted set: %v", want)
		}
		if got := Quorum(rapid.Permutation(votes).Draw(t, "order")); !slices.Equal(got, want) {
			t.Errorf("another order gives %v, want %v", got, want)
		}
		for _, h := range want {
			n := 0
			for _, v := range votes {
				if contains(v, h) {
					n++
				}
			}
			if 2*n < len(votes) {
				t.Errorf("%s has %d of %d votes", h.Short(), n, len(votes))
			}
		}
	})
}
