// Package gate owns the counting of concurrent incoming streams, in all and per peer. It refuses to know what a stream is.
package gate

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Gate admits up to a number of holders in all and per peer.
type Gate struct {
	all, each int

	mu    sync.Mutex
	total int
	peers map[peer.ID]int
}

// New returns a gate for up to all holders, of which up to each belong to one peer.
func New(all, each int) *Gate {
	return &Gate{all: all, each: each, peers: make(map[peer.ID]int)}
}

// Enter admits one more holder for the peer and says whether there was room. A true result needs one [Gate.Leave].
func (g *Gate) Enter(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.all || g.peers[id] >= g.each {
		return false
	}
	g.total++
	g.peers[id]++
	return true
}

// Leave gives one admission of the peer back.
func (g *Gate) Leave(id peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.peers[id]--; g.peers[id] == 0 {
		delete(g.peers, id)
	}
}
