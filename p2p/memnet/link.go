package memnet

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Link is how that which one node sends to another travels. The zero value delivers everything at once.
type Link struct {
	Latency   time.Duration // from leaving the sender to arriving
	Jitter    time.Duration // up to this much more latency, drawn for each message and each piece of a stream
	Bandwidth int64         // bytes per second; a node sends one thing after another, to whomever; 0 means no limit
	Loss      float64       // share of the gossip messages that never arrive, 0 to 1; streams lose nothing
	Seed      uint64        // decides jitter and loss
}

// maxPiece is how many bytes of a stream are sent at a time on a shaped link: what other traffic of the node waits for.
const maxPiece = 16 << 10

// Shape gives every link this behaviour, but for those that [Net.ShapeLink] named. What is under way is not affected.
func (n *Net) Shape(l Link) {
	n.traffic.mu.Lock()
	defer n.traffic.mu.Unlock()
	n.traffic.all = l
}

// ShapeLink gives one direction between two nodes a behaviour of its own.
func (n *Net) ShapeLink(from, to peer.ID, l Link) {
	n.traffic.mu.Lock()
	defer n.traffic.mu.Unlock()
	n.traffic.links[route{from, to}] = l
}

// UnshapeLinks takes back what [Net.ShapeLink] said.
func (n *Net) UnshapeLinks() {
	n.traffic.mu.Lock()
	defer n.traffic.mu.Unlock()
	clear(n.traffic.links)
}

type route struct{ from, to peer.ID }

// traffic decides when that which is sent arrives. Its mutex is a leaf: nothing else is locked under it.
type traffic struct {
	mu    sync.Mutex
	all   Link
	links map[route]Link
	sent  map[route]uint64      // messages and pieces so far
	idle  map[peer.ID]time.Time // when the node's uplink has sent all that waits for it
}

// trip is one message or piece on its way.
type trip struct {
	left    time.Time // the last byte has left the sender
	arrives time.Time
	lost    bool
}

// send books the bytes on the sender's uplink. Jitter and loss are a hash of the link's seed, the two nodes and the number
// of things sent between them before, so that the same traffic fares the same each time.
func (t *traffic) send(r route, size int) trip {
	t.mu.Lock()
	defer t.mu.Unlock()
	link, own := t.links[r]
	if !own {
		link = t.all
	}
	now := time.Now()
	if link == (Link{}) {
		return trip{left: now, arrives: now}
	}
	number := t.sent[r]
	t.sent[r] = number + 1
	left := now
	if link.Bandwidth > 0 {
		if idle := t.idle[r.from]; idle.After(now) {
			left = idle
		}
		left = left.Add(time.Duration(float64(size) / float64(link.Bandwidth) * float64(time.Second)))
		t.idle[r.from] = left
	}
	late, luck := draw(link.Seed, r, number)
	delay := link.Latency + time.Duration(late*float64(link.Jitter))
	return trip{left: left, arrives: left.Add(delay), lost: luck < link.Loss}
}

// piece returns how many bytes of a stream to send at a time.
func (t *traffic) piece(r route) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	link, own := t.links[r]
	if own && link == (Link{}) || !own && t.all == (Link{}) {
		return window
	}
	return maxPiece
}

// forget drops what a dead node had still to send.
func (t *traffic) forget(id peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.idle, id)
}

// draw returns two numbers in [0, 1).
func draw(seed uint64, r route, number uint64) (a, b float64) {
	h := sha256.New()
	var word [8]byte
	for _, v := range []uint64{seed, number} {
		binary.LittleEndian.PutUint64(word[:], v)
		h.Write(word[:])
	}
	h.Write([]byte(r.from))
	h.Write([]byte(r.to))
	sum := h.Sum(nil)
	unit := func(b []byte) float64 { return float64(binary.LittleEndian.Uint64(b)>>11) / (1 << 53) }
	return unit(sum), unit(sum[8:])
}
