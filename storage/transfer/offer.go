package transfer

import (
	"math/rand/v2"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// offer is an unfinished fetch whose blocks are served to others as they arrive. A nil offer does nothing.
type offer struct {
	s     *Server
	part  *storage.Partial
	epoch uint64 // tells this count of arrivals from that of another fetch of the file

	mu    sync.Mutex
	order []uint32 // blocks in the order in which they arrived
}

// offer starts serving what a partial has, until withdraw. A nil server offers nothing.
func (s *Server) offer(part *storage.Partial) *offer {
	if s == nil {
		return nil
	}
	o := &offer{s: s, part: part, epoch: rand.Uint64()}
	for i := range part.Layout().Leaves {
		if part.Has(i) {
			o.order = append(o.order, uint32(i))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offers[part.Layout().Root] = o
	o.publish()
	return o
}

// publish makes the interior nodes known; s.mu is held.
func (o *offer) publish() {
	for _, n := range o.part.Layout().Nodes {
		o.s.nodes[n.CID] = n.Data
	}
}

// arrived notes a block.
func (o *offer) arrived(i int) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.order = append(o.order, uint32(i))
}

// withdraw ends the offer: what follows is served from the store, or not at all.
func (o *offer) withdraw() {
	if o == nil {
		return
	}
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	delete(o.s.offers, o.part.Layout().Root)
	for _, n := range o.part.Layout().Nodes {
		delete(o.s.nodes, n.CID)
	}
	for _, other := range o.s.offers {
		other.publish() // files may share nodes
	}
}

// news says what has arrived since a count of an epoch, or all of it when that is another epoch.
func (o *offer) news(epoch uint64, since uint32) have {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := have{epoch: o.epoch, count: uint32(len(o.order)), delta: epoch == o.epoch && int(since) <= len(o.order)}
	if !h.delta {
		since = 0
	}
	h.blocks = newBits(len(o.part.Layout().Leaves))
	for _, b := range o.order[since:] {
		h.blocks.set(int(b))
	}
	return h
}

// offered returns the unfinished fetch of a file, nil if there is none.
func (s *Server) offered(c cid.Cid) *offer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offers[c]
}

// node returns an interior node of a file that is being fetched.
func (s *Server) node(c cid.Cid, buf []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.nodes[c]
	if !ok || unixfs.NodeCID(data) != c {
		return nil, false
	}
	return buf[:copy(buf, data)], true
}
