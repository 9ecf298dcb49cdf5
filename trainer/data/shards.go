package data

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
)

// inFlight bounds the bytes of tokens that are compressed at once.
const inFlight = 64 << 20

// writer cuts one side's tokens into its planned number of shards.
type writer struct {
	put   *putter
	dtype dataset.Dtype
	split dataset.Split
	total uint64 // tokens
	count int    // shards
	first int    // place of the first one in the manifest
	made  int
	raw   []byte // of the shard being filled
}

func (w *writer) add(raw []byte) {
	for len(raw) > 0 {
		want := int(shardSize(w.total, w.count, w.made)) * w.dtype.Width()
		if w.raw == nil {
			w.raw = make([]byte, 0, want)
		}
		n := min(want-len(w.raw), len(raw))
		w.raw = append(w.raw, raw[:n]...)
		if raw = raw[n:]; len(w.raw) == want {
			w.put.shard(w.first+w.made, dataset.Tokens{Dtype: w.dtype, Raw: w.raw}, w.split)
			w.made, w.raw = w.made+1, nil
		}
	}
}

// putter compresses and stores shards on all processors.
type putter struct {
	ctx    context.Context
	store  Store
	shards []dataset.Shard
	slots  chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	room   *sync.Cond
	bytes  int // of tokens in flight
	failed error
}

func newPutter(ctx context.Context, store Store) *putter {
	p := &putter{ctx: ctx, store: store, slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
	p.room = sync.NewCond(&p.mu)
	return p
}

// shard stores a shard as the i-th of the manifest, once there is room for it.
func (p *putter) shard(i int, tokens dataset.Tokens, split dataset.Split) {
	p.mu.Lock()
	for p.bytes > 0 && p.bytes+len(tokens.Raw) > inFlight {
		p.room.Wait()
	}
	p.bytes += len(tokens.Raw)
	p.mu.Unlock()
	p.slots <- struct{}{}
	p.wg.Go(func() {
		err := p.store1(i, tokens, split)
		<-p.slots
		p.mu.Lock()
		defer p.mu.Unlock()
		p.bytes -= len(tokens.Raw)
		p.room.Broadcast()
		if p.failed == nil {
			p.failed = err
		}
	})
}

func (p *putter) store1(i int, tokens dataset.Tokens, split dataset.Split) error {
	if err := p.err(); err != nil {
		return err
	}
	file, err := dataset.EncodeShard(tokens)
	if err != nil {
		return fmt.Errorf("data: shard %d: %w", i, err)
	}
	c, err := p.store.PutBytes(p.ctx, file, storage.PutOptions{})
	if err != nil {
		return fmt.Errorf("data: store shard %d: %w", i, err)
	}
	p.shards[i] = dataset.Shard{CID: wire.Link{Cid: c}, Tokens: uint64(tokens.Len()), Bytes: uint64(len(file)), Split: split}
	return nil
}

// err is the first error so far.
func (p *putter) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	return p.ctx.Err()
}

func (p *putter) wait() error {
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}
