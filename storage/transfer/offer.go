package transfer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// maxStopped is how many fetches that nobody goes on with are known at a time; others cost a look into the index.
const maxStopped = 8

// fixedEpoch is the epoch of what will not grow.
const fixedEpoch = 0

// unfinished is a fetch of which some blocks are here.
type unfinished interface {
	Layout() *unixfs.Layout
	Has(block int) bool
	Block(i int, dst []byte) ([]byte, error)
}

// offer is an unfinished fetch whose blocks are served to others as they arrive, or one that has stopped. A nil offer does nothing.
type offer struct {
	s     *Server
	part  unfinished
	epoch uint64 // tells this count of arrivals from that of another fetch of the file

	mu    sync.Mutex
	order []uint32 // blocks in the order in which they arrived
}

// offer starts serving what a partial has, until withdraw. A nil server offers nothing.
func (s *Server) offer(part *storage.Partial) *offer {
	if s == nil {
		return nil
	}
	o := s.newOffer(part)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offers[part.Layout().Root] = o
	o.publish()
	return o
}

// resume serves what a stopped fetch of a file has left, of this process or of one before it. It returns nil when there is none.
func (s *Server) resume(ctx context.Context, c cid.Cid) *offer {
	if c.Type() != cid.DagProtobuf {
		return nil
	}
	part, err := s.store.OpenStopped(ctx, c)
	if err != nil {
		if !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrBusy) {
			s.log.Warn("cannot serve what a stopped fetch has", "cid", c, "err", err)
		}
		return nil
	}
	o := s.newOffer(part)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.offers[c]; other != nil {
		return other // somebody was faster
	}
	s.offers[c] = o
	o.publish()
	if s.stopped = append(s.stopped, o); len(s.stopped) > maxStopped {
		s.stopped[0].drop()
	}
	return o
}

func (s *Server) newOffer(part unfinished) *offer {
	o := &offer{s: s, part: part, epoch: fixedEpoch}
	if o.running() {
		o.epoch = rand.Uint64() | 1
	}
	for i := range part.Layout().Leaves {
		if part.Has(i) {
			o.order = append(o.order, uint32(i))
		}
	}
	return o
}

// running tells whether the fetch is under way.
func (o *offer) running() bool {
	if o == nil {
		return false
	}
	_, ok := o.part.(*storage.Partial)
	return ok
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
	o.drop()
}

// drop is withdraw with s.mu held.
func (o *offer) drop() {
	o.s.stopped = slices.DeleteFunc(o.s.stopped, func(x *offer) bool { return x == o })
	if root := o.part.Layout().Root; o.s.offers[root] == o {
		delete(o.s.offers, root)
	}
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
