package faultlab

import (
	"context"
	"strings"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/trainer/round"
)

// Point is a moment in the protocol at which a script can act.
type Point string

// The points of the protocol. A script runs in the goroutine of the peer that has reached the point, which goes on only when
// the script returns: a peer that is killed before its header has said nothing.
const (
	Training     Point = "training" // a local step begins
	BeforeHeader Point = "before its header"
	AfterHeader  Point = "after its header"
	BeforeVote   Point = "before its vote"
	AfterVote    Point = "after its vote"
	BeforeCommit Point = "before its commit"
	AfterCommit  Point = "after its commit"
	BeforeServe  Point = "before it serves a blob"
	MidServe     Point = "while it serves a blob"
	AfterServe   Point = "after it served a blob"
	BeforeFetch  Point = "before it fetches a blob"
	AfterFetch   Point = "after it fetched a blob"
)

// Points lists all points, in the order of a round.
func Points() []Point {
	return []Point{
		Training, BeforeHeader, AfterHeader, BeforeServe, MidServe, AfterServe, BeforeFetch, AfterFetch,
		BeforeVote, AfterVote, BeforeCommit, AfterCommit,
	}
}

// Event is a point that a peer has reached.
type Event struct {
	Peer  string
	Point Point
	Round uint64 // rounds committed in the state that the peer works on
	Mate  string // who is served or asked, where the point is about a blob
}

// tapped is a peer's network: it tells the laboratory what the peer says.
type tapped struct {
	p2p.Network
	body *body
}

func (n *tapped) Join(name string, validate p2p.Validator) (p2p.Topic, error) {
	topic, err := n.Network.Join(name, validate)
	if err != nil {
		return nil, err
	}
	return &tappedTopic{topic, n.body}, nil
}

type tappedTopic struct {
	p2p.Topic
	body *body
}

var said = map[round.Kind][2]Point{
	round.KindHeader: {BeforeHeader, AfterHeader},
	round.KindSeen:   {BeforeVote, AfterVote},
	round.KindCommit: {BeforeCommit, AfterCommit},
}

func (t *tappedTopic) Publish(ctx context.Context, data []byte) error {
	m, err := round.Read(data) // the peer itself has just signed it
	if err != nil {
		return err
	}
	t.body.speaks()
	points, ok := said[m.Kind]
	if !ok {
		if m.Kind == round.KindHeartbeat {
			t.body.holds(m.Heartbeat.Round)
		}
		return t.Topic.Publish(ctx, data)
	}
	t.body.at(points[0], number(m), "")
	if log := t.body.log; log != nil && !t.body.dead() {
		log.Debug("says", "what", m.Kind, "round", number(m), "content", brief(m))
	}
	err = t.Topic.Publish(ctx, data)
	if err == nil && t.body.lab.Ledger != nil {
		t.body.lab.Ledger.add(m)
	}
	t.body.at(points[1], number(m), "")
	return err
}

func number(m round.Message) uint64 {
	switch m.Kind {
	case round.KindHeader:
		return m.Header.Round
	case round.KindSeen:
		return m.Seen.Round
	}
	return m.Commit.Round
}

// brief tells a message in a few characters, for logs: parent and hash of a header, parent and set of votes and commits.
func brief(m round.Message) string {
	var text strings.Builder
	list := func(parent round.Hash, set ...round.Hash) {
		text.WriteString(parent.Short() + ":")
		for _, h := range set {
			text.WriteString(" " + h.Short()[:4])
		}
	}
	switch m.Kind {
	case round.KindHeader:
		list(m.Header.Parent, m.Hash)
	case round.KindSeen:
		list(m.Seen.Parent, m.Seen.Headers...)
	case round.KindCommit:
		list(m.Commit.Parent, m.Commit.Set...)
		text.WriteString(" to " + m.Commit.Next.Short())
	}
	return text.String()
}
