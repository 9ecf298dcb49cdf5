package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// checkpointBytes and checkpointAge say when the progress of a fetch is saved: after the larger of the two. A crash may cost
	// twice that, 64 MiB or 5 s of traffic, so that the disk has as much time to sync. Saving more often would make a fast fetch
	// wait for its own disk.
	checkpointBytes = 32 << 20
	checkpointAge   = 2500 * time.Millisecond
	// writebackBytes is how much is handed to the disk at a time while more arrives, so that Commit need not wait for all.
	writebackBytes = 16 << 20
)

// partialRecord is the index entry of an unfinished fetch.
type partialRecord struct {
	Class  Class  `cbor:"class"`
	Charge int64  `cbor:"charge"`           // bytes of the complete object, without those that it shares
	Bits   []byte `cbor:"bits"`             // bit i%8 of byte i/8: block i is in the file, durably
	Shared []byte `cbor:"shared,omitempty"` // likewise: block i is in another place of the store and not charged here
}

// Partial is a file object being fetched. Blocks arrive in any order; what arrived survives a restart. Methods are safe
// for concurrent use.
type Partial struct {
	s      *Store
	layout *unixfs.Layout
	rec    record
	file   vfs.File
	path   string
	shared bitmap             // blocks that are in another place of the store, or twice in the file; fixed after begin
	twins  bitmap             // of these, the ones that are in the file before
	holds  map[cid.Cid]func() // keep those here

	mu       sync.Mutex
	bits     bitmap
	missing  int
	dirty    int64 // bytes written since the last checkpoint
	saved    time.Time
	idle     int64 // bytes written since the last writeback
	flushing bool
	saving   bool
	earlier  bool           // some of the file is from an earlier fetch, or from a damaged object
	work     sync.WaitGroup // writes and checkpoints that finish must wait for
	closed   bool
}

// Begin starts or resumes the fetch of a file of several leaves. node returns the interior nodes of the file, root first;
// they are verified here. Blocks that other objects of the store hold are shared with them: they are not missing and cost
// nothing. The rest is reserved before Begin returns. A complete object is [ErrExists]; a damaged
// one becomes a partial that lacks only its bad blocks; one that another caller is fetching is [ErrBusy].
func (s *Store) Begin(ctx context.Context, root cid.Cid, node func(cid.Cid) ([]byte, error)) (*Partial, error) {
	layout, err := unixfs.Resolve(root, func(c cid.Cid) ([]byte, error) {
		block, err := node(c)
		if err == nil && !unixfs.NodeCID(block).Equals(c) {
			err = fmt.Errorf("storage: node %s: %w", c, ErrCorrupt)
		}
		return block, err
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	busy := s.active[root]
	s.active[root] = true
	s.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("storage: %s: %w", root, ErrBusy)
	}
	p := &Partial{s: s, layout: layout, saved: s.now(), holds: map[cid.Cid]func(){}}
	if err := p.begin(ctx); err != nil {
		if p.file != nil {
			err = errors.Join(err, p.file.Close())
		}
		p.release()
		return nil, fmt.Errorf("storage: begin %s: %w", root, s.diskError(err))
	}
	return p, nil
}

func (p *Partial) begin(ctx context.Context) error {
	s, root := p.s, p.layout.Root
	dir, path := s.partialPath(root)
	p.path = path
	p.bits = newBitmap(len(p.layout.Leaves))
	p.rec = record{
		Kind: File, Class: Cached, Size: p.layout.Size, BlockSize: p.layout.BlockSize, Leaves: len(p.layout.Ends),
		Nodes: len(p.layout.Nodes), Created: s.now().Unix(),
	}
	for _, n := range p.layout.Nodes {
		p.rec.NodeBytes += int64(len(n.Data))
	}
	if err := s.makeDir(dir); err != nil {
		return err
	}
	old, err := s.record(root)
	if err == nil {
		p.earlier = true
		if err := p.reopenDamaged(ctx, old); err != nil {
			return err
		}
		return errors.Join(p.keepNodes(), p.adoptMore(ctx))
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	switch resumed, err := p.resume(); {
	case err != nil:
		return err
	case resumed:
		return errors.Join(p.keepNodes(), p.adoptMore(ctx))
	}
	return p.fresh(ctx, dir)
}

// fresh begins a fetch of which nothing is here yet.
func (p *Partial) fresh(ctx context.Context, dir string) error {
	s := p.s
	if err := p.adopt(ctx); err != nil {
		return err
	}
	charge := p.rec.charge()
	if err := s.reserve(ctx, charge); err != nil {
		return err
	}
	mu := s.stripe(p.layout.Root) // a collection may be about to remove the file of an earlier fetch
	mu.Lock()
	defer mu.Unlock()
	err := p.openFile()
	if err == nil {
		err = errors.Join(s.syncDir(dir), p.keepNodes(), p.save(p.bits, pebble.Sync))
	}
	if err != nil {
		s.settle(0, -charge)
		return err
	}
	s.settle(charge, -charge)
	return nil
}

// adoptMore is adopt for a fetch that goes on: what it costs changes by what it shares now.
func (p *Partial) adoptMore(ctx context.Context) error {
	s, before := p.s, p.rec.charge()
	if err := p.adopt(ctx); err != nil {
		return err
	}
	more := p.rec.charge() - before
	if more > 0 {
		if err := s.reserve(ctx, more); err != nil {
			return err
		}
	}
	p.count()
	if more == 0 {
		return nil
	}
	err := p.save(p.bits, pebble.Sync)
	if err == nil {
		s.settle(more, 0)
	}
	s.settle(0, -max(0, more))
	return err
}

// adopt finds out which missing blocks are in other objects of the store, whole, and keeps those from eviction. Blocks that
// occur twice in the file are fetched once.
func (p *Partial) adopt(ctx context.Context) error {
	s, l := p.s, p.layout
	buf := s.buffer()
	defer s.recycle(buf)
	shared, twins, found := newBitmap(len(l.Leaves)), newBitmap(len(l.Leaves)), false
	seen := make(map[unixfs.Digest]bool, len(l.Leaves))
	for i, d := range l.Leaves {
		again := seen[d]
		seen[d] = true
		if p.bits.has(i) {
			continue
		}
		if again {
			twins.set(i)
		} else {
			owner, err := s.find(d, buf[:l.LeafSize(i)])
			if err = errors.Join(err, ctx.Err()); errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
				continue
			} else if err != nil {
				return err
			}
			if p.holds[owner] == nil {
				p.holds[owner] = s.Hold(owner)
			}
		}
		shared.set(i)
		found = true
	}
	p.shared, p.twins = nil, nil
	if found {
		p.shared, p.twins = shared, twins
	}
	p.rec.without(l, p.shared)
	return nil
}

// resume goes on with an earlier fetch, if there is one. With the stripe nobody removes it meanwhile.
func (p *Partial) resume() (resumed bool, err error) {
	s, root := p.s, p.layout.Root
	mu := s.stripe(root)
	mu.Lock()
	defer mu.Unlock()
	saved, err := s.partial(root)
	if err != nil {
		return false, ignoreMissing(err)
	}
	if len(saved.Bits) != len(p.bits) || saved.Shared != nil && !bitmap(saved.Shared).fits(len(p.layout.Leaves)) {
		return false, brokenProgress()
	}
	p.shared = saved.Shared
	p.rec.without(p.layout, p.shared)
	if saved.Charge != p.rec.charge() {
		return false, brokenProgress()
	}
	p.rec.Class, p.earlier = saved.Class, true
	if _, err := s.fs.Stat(p.path); err == nil { // else nothing is left of it
		copy(p.bits, saved.Bits)
	}
	return true, p.openFile()
}

func brokenProgress() error {
	return fmt.Errorf("its saved progress is broken: collect, then begin again: %w", ErrCorrupt)
}

// reopenDamaged turns a damaged object back into a partial and keeps its good blocks. One that is not damaged is [ErrExists].
func (p *Partial) reopenDamaged(ctx context.Context, old record) error {
	s, root := p.s, p.layout.Root
	for s.info(root, old).Damaged {
		more := max(0, p.rec.charge()-old.charge()) // a file in place becomes a copy, what was shared is fetched
		if err := s.reserve(ctx, more); err != nil {
			return err
		}
		done, err := p.unlistDamaged(old)
		if done && err == nil {
			s.settle(p.rec.charge()-old.charge(), -more)
			return p.salvage(old)
		}
		s.settle(0, -more)
		if err == nil {
			err = s.bequeath(ctx, root, nil)
		}
		if err == nil {
			old, err = s.record(root)
		}
		if err != nil {
			return err
		}
	}
	return ErrExists
}

// unlistDamaged makes the index call the object unfinished. It changes before any file does: a crash after that costs the good
// blocks and nothing else. It is not done while others need leaves of the object, or when the object has changed since.
func (p *Partial) unlistDamaged(old record) (done bool, err error) {
	s, root := p.s, p.layout.Root
	s.gate.Lock() // nobody begins to share its leaves
	defer s.gate.Unlock()
	mu := s.stripe(root)
	mu.Lock()
	defer mu.Unlock()
	now, err := s.record(root)
	if err != nil {
		return false, err
	}
	if !s.info(root, now).Damaged {
		return false, ErrExists // repaired meanwhile
	}
	needed, err := s.needed(root, nil)
	if needed || err != nil || now.charge() != old.charge() || now.filed() != old.filed() {
		return false, err
	}
	p.rec.Class = now.Class
	batch := s.db.NewBatch()
	defer batch.Close()
	b, err := wire.Marshal(partialRecord{Class: now.Class, Charge: p.rec.charge(), Bits: p.bits})
	if err == nil {
		err = errors.Join(s.unindex(batch, root, now), batch.Set(cidKey(keyPartial, root), b, nil))
	}
	if err == nil {
		s.changed(root)
		err = s.apply(batch, pebble.Sync)
	}
	return err == nil, err
}

// salvage takes over the file of a damaged object, or what is left of a file in place, and finds its good blocks.
func (p *Partial) salvage(old record) error {
	s, root := p.s, p.layout.Root
	if old.filed() {
		_, name := s.objectPath(root)
		if err := s.fs.Rename(name, p.path); err != nil {
			s.log.Warn("a damaged object has no file: it is fetched from the start", "cid", root, "err", err)
		}
	}
	if err := p.openFile(); err != nil {
		return err
	}
	from := p.file
	if old.External != nil {
		f, err := s.fs.Open(string(old.External.Path))
		if err != nil {
			return nil // all of it is missing
		}
		defer f.Close()
		from = f
	}
	buf := s.buffer()
	defer s.recycle(buf)
	for i, want := range p.layout.Leaves {
		leaf := buf[:p.layout.LeafSize(i)]
		n, _ := from.ReadAt(leaf, p.layout.LeafOffset(i))
		if n < len(leaf) || unixfs.Sum(leaf) != want {
			continue
		}
		if old.External != nil {
			if _, err := p.file.WriteAt(leaf, p.layout.LeafOffset(i)); err != nil {
				return err
			}
		}
		p.bits.set(i)
	}
	p.count()
	return nil
}

// count finds out how many blocks are missing.
func (p *Partial) count() {
	p.missing = 0
	for i := range p.layout.Leaves {
		if !p.bits.has(i) && !p.shared.has(i) {
			p.missing++
		}
	}
}

func (p *Partial) openFile() error {
	p.count()
	var err error
	p.file, err = p.s.fs.OpenReadWrite(p.path, vfs.WriteCategoryUnspecified)
	return err
}

// Layout describes the file that is being fetched. It must not be changed.
func (p *Partial) Layout() *unixfs.Layout { return p.layout }

// Missing lists the blocks that have not arrived, in order.
func (p *Partial) Missing() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]int, 0, p.missing)
	for i := range p.layout.Leaves {
		if !p.bits.has(i) && !p.shared.has(i) {
			out = append(out, i)
		}
	}
	return out
}

// Write verifies block i and writes it to its place. A block that does not match is [ErrCorrupt] and changes nothing; one
// that is there already is ignored.
func (p *Partial) Write(i int, block []byte) error {
	l := p.layout
	if i < 0 || i >= len(l.Leaves) || int64(len(block)) != l.LeafSize(i) || unixfs.Sum(block) != l.Leaves[i] {
		return fmt.Errorf("storage: %s block %d of %d bytes: %w", l.Root, i, len(block), ErrCorrupt)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("storage: %s block %d: %w", l.Root, i, fs.ErrClosed)
	}
	p.work.Add(1)
	defer p.work.Done()
	have := p.bits.has(i) || p.shared.has(i)
	p.mu.Unlock()
	if have {
		return nil
	}
	if _, err := p.file.WriteAt(block, l.LeafOffset(i)); err != nil {
		return fmt.Errorf("storage: %s block %d: %w", l.Root, i, p.s.diskError(err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.bits.has(i) {
		p.bits.set(i)
		p.missing--
	}
	p.dirty += int64(len(block))
	if p.idle += int64(len(block)); p.idle >= writebackBytes && !p.flushing && !p.closed {
		p.idle, p.flushing = 0, true
		p.work.Go(p.writeback)
	}
	if now := p.s.now(); !p.saving && !p.closed && p.dirty >= checkpointBytes && now.Sub(p.saved) >= checkpointAge {
		p.saving = true
		p.dirty, p.saved = 0, now
		bits := p.bits.clone()
		p.work.Go(func() { p.checkpoint(bits) })
	}
	return nil
}

// writeback starts writing to the disk what has arrived. It is a hint: errors come back from the sync that counts.
func (p *Partial) writeback() {
	_, _ = p.file.SyncTo(p.layout.Size)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushing = false
}

// checkpoint makes the blocks of a bitmap durable, then the bitmap. Failing costs progress after a crash, nothing else. The index
// is synced, too: an entry that is not waits in this process for more to come, and dies with it.
func (p *Partial) checkpoint(bits bitmap) {
	err := p.file.SyncData()
	if err == nil {
		err = p.save(bits, pebble.Sync)
	}
	if err != nil {
		p.s.log.Warn("cannot save the progress of a fetch", "cid", p.layout.Root, "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saving = false
}

func (p *Partial) save(bits bitmap, how *pebble.WriteOptions) error {
	b, err := wire.Marshal(partialRecord{Class: p.rec.Class, Charge: p.rec.charge(), Bits: bits, Shared: p.shared})
	if err != nil {
		return err
	}
	return p.s.set(cidKey(keyPartial, p.layout.Root), b, how)
}

// Commit turns the complete partial into an object and closes it. The partial is closed also when Commit fails. Blocks that
// were shared with an object that was deleted meanwhile are [ErrIncomplete]: begin again.
func (p *Partial) Commit(ctx context.Context) (Info, error) {
	s, root := p.s, p.layout.Root
	p.mu.Lock()
	missing := p.missing
	p.mu.Unlock()
	if err := ctx.Err(); err != nil || missing > 0 {
		return Info{}, errors.Join(fmt.Errorf("storage: commit %s: %d blocks are missing", root, missing), err, p.Close())
	}
	defer p.release()
	if err := p.finish(); err != nil {
		return Info{}, err
	}
	o := &newObject{cid: root, rec: p.rec, temp: p.path, layout: p.layout, shared: p.shared, partial: true}
	if p.earlier || p.shared != nil {
		return s.commit(o)
	}
	return s.commitHashed(o) // every block was hashed on its way into the file
}

// Close saves the progress and releases the partial; a later Begin resumes it.
func (p *Partial) Close() error {
	defer p.release()
	return p.finish()
}

// release lets others fetch the object, and the objects that it shares with go.
func (p *Partial) release() {
	p.s.inactive(p.layout.Root)
	for _, free := range p.holds {
		free()
	}
	clear(p.holds)
}

// finish makes everything that arrived durable and closes the file.
func (p *Partial) finish() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
	bits := p.bits // nobody writes it any more
	err := p.file.Sync()
	if err == nil {
		err = p.save(bits, pebble.Sync)
	}
	if err = errors.Join(err, p.file.Close()); err != nil {
		return fmt.Errorf("storage: close the fetch of %s: %w", p.layout.Root, p.s.diskError(err))
	}
	return nil
}

func (s *Store) inactive(c cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, c)
}

func (s *Store) isActive(c cid.Cid) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[c]
}

func (s *Store) partial(c cid.Cid) (partialRecord, error) {
	var rec partialRecord
	b, err := s.get(cidKey(keyPartial, c))
	if err != nil {
		return rec, err
	}
	return rec, wire.Unmarshal(b, &rec)
}

func (s *Store) eachPartial(ctx context.Context, f func(cid.Cid, partialRecord) error) error {
	return s.each(ctx, []byte{keyPartial}, func(key, value []byte) error {
		c, err := cid.Cast(key)
		if err != nil {
			return fmt.Errorf("storage: index key: %w", err)
		}
		var rec partialRecord
		if err := wire.Unmarshal(value, &rec); err != nil {
			return fmt.Errorf("storage: fetch of %s: %w", c, err)
		}
		return f(c, rec)
	})
}
