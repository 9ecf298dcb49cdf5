package ipfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	bsmsg "github.com/ipfs/boxo/bitswap/message"
	exchange "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/assemble"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// askers and asked make the window: so many requests at a time, each for so many blocks. The next request goes out when the
	// last block of one has come, so that about three quarters of askers×asked blocks are always wanted. kubo's own reader
	// wants ten.
	askers = 8
	asked  = 16
)

// empty is the block without a byte, of which every empty file consists.
var empty = unixfs.RawCID(nil)

// Fetch makes an object complete in the store with blocks from the given peers, which must be connected, and from every other
// connected peer that speaks bitswap. What is here already is not asked for; what arrived before a fetch failed is kept. The
// object arrives as [storage.Cached]. bytes bounds the content that is missing; 0 means any size.
//
// When the given peers all say that they lack a block, which a first question does not make them do, or no block comes for Options.Patience, the error is
// [transfer.ErrNoProviders], and also [storage.ErrCorrupt] if a peer sent bytes that nobody asked for: IPFS nodes do not hash
// what they read from their disks, so a damaged block arrives under another CID.
func (x *Exchange) Fetch(ctx context.Context, c cid.Cid, bytes int64, from []peer.ID) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	f := &fetch{x: x, from: from, stop: stop, wanted: map[cid.Cid]map[peer.ID]bool{}}
	f.patience = time.AfterFunc(x.o.Patience, f.stalled)
	defer f.patience.Stop()
	defer x.notice.add(f)()
	f.session = x.swap.NewSession(ctx)
	err := assemble.Objects(ctx, x.store, []cid.Cid{c}, f, assemble.Options{Bytes: bytes})
	if cause := context.Cause(ctx); cause != nil {
		err = cause // says more than that the context ended
	}
	if err != nil {
		return fmt.Errorf("ipfs: fetch %s: %w", c, err)
	}
	return nil
}

// fetch is one object on its way. It is a source of its blocks.
type fetch struct {
	x        *Exchange
	from     []peer.ID
	session  exchange.Fetcher
	stop     context.CancelCauseFunc
	patience *time.Timer

	mu     sync.Mutex
	wanted map[cid.Cid]map[peer.ID]bool // blocks that are awaited, and who has said that it lacks them
	strays map[peer.ID]int              // blocks from a peer that no fetch asked for
}

// Blocks implements [assemble.Source].
func (f *fetch) Blocks(ctx context.Context, list []cid.Cid, have func(i int, block []byte) error) error {
	at := map[cid.Cid][]int{}
	var unique []cid.Cid
	for i, c := range list {
		if c == empty { // nobody need be asked, and boxo's servers do not have it
			if err := have(i, nil); err != nil {
				return err
			}
			continue
		}
		if at[c] == nil {
			unique = append(unique, c)
		}
		at[c] = append(at[c], i)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	batches := make(chan []cid.Cid, (len(unique)+asked-1)/asked)
	for len(unique) > 0 {
		n := min(asked, len(unique))
		batches <- unique[:n]
		unique = unique[n:]
	}
	close(batches)
	var workers sync.WaitGroup
	for range min(askers, len(batches)) {
		workers.Go(func() {
			for batch := range batches {
				if err := f.batch(ctx, batch, at, have); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// batch asks for some blocks and waits for all of them.
func (f *fetch) batch(ctx context.Context, batch []cid.Cid, at map[cid.Cid][]int, have func(i int, block []byte) error) error {
	f.want(batch)
	defer f.unwant(batch)
	blocks, err := f.session.GetBlocks(ctx, batch)
	if err != nil {
		return err
	}
	got := 0
	for b := range blocks {
		for _, i := range at[b.Cid()] {
			if err := have(i, b.RawData()); err != nil {
				return err
			}
		}
		f.patience.Reset(f.x.o.Patience) // after the work: a slow disk is not the peer's fault
		got++
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if got < len(batch) {
		return errors.New("the exchange was closed")
	}
	return nil
}

func (f *fetch) want(list []cid.Cid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range list {
		f.wanted[c] = map[peer.ID]bool{}
	}
}

func (f *fetch) unwant(list []cid.Cid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range list {
		delete(f.wanted, c)
	}
}

// lacks notes that a peer does not have a block. When nobody who was named has it, waiting longer is in vain.
func (f *fetch) lacks(p peer.ID, c cid.Cid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	who, ok := f.wanted[c]
	if !ok || len(f.from) == 0 {
		return
	}
	who[p] = true
	for _, id := range f.from {
		if !who[id] {
			return
		}
	}
	f.stop(f.failure(fmt.Sprintf("block %s: asked %s, not there", c, names(f.from))))
}

func (f *fetch) stray(p peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.strays == nil {
		f.strays = map[peer.ID]int{}
	}
	f.strays[p]++
}

func (f *fetch) stalled() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.wanted) == 0 { // the disk is at work
		f.patience.Reset(f.x.o.Patience)
		return
	}
	text := fmt.Sprintf("no block for %v; asked %s", f.x.o.Patience, names(f.from))
	for c := range f.wanted {
		text += fmt.Sprintf("; one of %d that are missing is %s", len(f.wanted), c)
		break
	}
	f.stop(f.failure(text))
}

// failure says why a fetch ends; mu is held.
func (f *fetch) failure(text string) error {
	err := fmt.Errorf("%s: %w", text, transfer.ErrNoProviders)
	for p, n := range f.strays {
		err = errors.Join(err, fmt.Errorf("%s sent %d blocks under other CIDs, none of which was kept: its copy is damaged: %w", p, n, storage.ErrCorrupt))
	}
	return err
}

func names(ids []peer.ID) string {
	if len(ids) == 0 {
		return "all connected peers"
	}
	var out []string
	for _, id := range ids {
		out = append(out, id.String())
	}
	return strings.Join(out, ", ")
}

// notice sees every message, for what sessions do not tell: who lacks a block, and what came unasked. It implements boxo's tracer.
type notice struct {
	mu      sync.Mutex
	fetches map[*fetch]bool
}

func newNotice() *notice { return &notice{fetches: map[*fetch]bool{}} }

// add tells a fetch what comes from now on, until the result is called.
func (n *notice) add(f *fetch) (remove func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fetches[f] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.fetches, f)
	}
}

// MessageReceived sees a message from a peer before it is worked on.
func (n *notice) MessageReceived(p peer.ID, m bsmsg.BitSwapMessage) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.fetches) == 0 {
		return
	}
	for _, b := range m.Blocks() {
		if !n.asked(b.Cid()) {
			for f := range n.fetches {
				f.stray(p)
			}
		}
	}
	for _, c := range m.DontHaves() {
		for f := range n.fetches {
			f.lacks(p, c)
		}
	}
}

// asked tells whether some fetch awaits a block; mu is held.
func (n *notice) asked(c cid.Cid) bool {
	for f := range n.fetches {
		f.mu.Lock()
		_, ok := f.wanted[c]
		f.mu.Unlock()
		if ok {
			return true
		}
	}
	return false
}

// MessageSent does nothing.
func (n *notice) MessageSent(peer.ID, bsmsg.BitSwapMessage) {}
