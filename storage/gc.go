package storage

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// gcKeys is about how many index entries are removed per turn at the gate, so that writers wait a millisecond or two.
	gcKeys = 512
	// gcSync is how many objects are removed from the index per sync of it. Their files go after that.
	gcSync = 4096
	// evictShare is the part of the quota that an eviction frees beyond what is wanted, so that a full cache does not look
	// through the whole index for each new object.
	evictShare = 64
	// giveWayEvery is how many objects are scanned or removed between two turns of others: some tens of microseconds.
	giveWayEvery = 16
	// everything is more bytes than a store can hold: what a collection wants.
	everything = 1 << 62
)

// Removed counts what a collection or eviction removed.
type Removed struct {
	Objects int
	Bytes   int64 // of the quota
}

// GC removes every cached object that no pin, lease, owned folder or running work reaches, and the leases that are over. Readers
// do not notice; writers wait for single steps of it.
func (s *Store) GC(ctx context.Context) (Removed, error) {
	if err := s.endLeases(ctx); err != nil {
		return Removed{}, err
	}
	select {
	case s.evicting <- struct{}{}:
	case <-ctx.Done():
		return Removed{}, ctx.Err()
	}
	defer func() { <-s.evicting }()
	return s.evict(ctx, everything)
}

// protection is a new reason to keep an object.
type protection struct {
	cid  cid.Cid
	root bool // by itself; else it counts if something reaches it
}

// protected tells a collection that is under way, if any, what it has not seen.
func (s *Store) protected(p protection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.collecting {
		s.fresh = append(s.fresh, p)
	}
}

// changed tells a collection that is under way, if any, that it must not rely on what it has seen of a record. Call it before the
// record changes, with its stripe.
func (s *Store) changed(c cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.collecting {
		s.stale[c] = true
	}
}

// candidate is a cached object or an abandoned fetch that may go.
type candidate struct {
	cid     cid.Cid
	rank    rank
	use     uint64 // LRU clock, or with a known next use how far away it is
	bytes   int64
	keys    int // index entries
	partial bool
	// inline and filed say where a single block was when it was scanned; for all else the record is read again.
	inline, filed bool
}

// rank is the first criterion of the order in which candidates go.
type rank int

const (
	abandoned rank = iota // a fetch that nobody goes on with
	useless               // an order names it and will not use it again
	unknown               // no order names it: least recently used first
	expected              // an order will use it: farthest first
)

func (a candidate) compare(b candidate) int {
	if a.rank != b.rank {
		return cmp.Compare(a.rank, b.rank)
	}
	if a.rank == expected {
		return cmp.Compare(b.use, a.use)
	}
	return cmp.Compare(a.use, b.use)
}

// removal is one object that the index does not name any more.
type removal struct {
	cid     cid.Cid
	bytes   int64
	file    string // empty when there is none of the store's own
	partial bool
}

// collection is one run of eviction. It marks what is protected, once; from then on the store tells it what protection is new.
// Protection that ends meanwhile is noticed by the next run.
type collection struct {
	s     *Store
	kept  map[cid.Cid]bool
	queue []candidate // in the order in which they go
}

// evict removes unprotected cached objects until want bytes are free or none is left. The caller holds the token of evicting.
func (s *Store) evict(ctx context.Context, want int64) (total Removed, err error) {
	s.mu.Lock()
	s.collecting, s.fresh, s.stale = true, nil, map[cid.Cid]bool{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.collecting, s.fresh, s.stale = false, nil, nil
	}()
	c := &collection{s: s, kept: map[cid.Cid]bool{}}
	err = c.scan(ctx)
	if want < everything || s.sharing.Load() { // else the order of the index, in which they are, is as good as any other, and much faster
		s.rank(c.queue)
		slices.SortStableFunc(c.queue, candidate.compare)
	}
	if want == everything && s.sharing.Load() {
		slices.Reverse(c.queue) // the newer ones share with the older ones: then little has to move
	}
	for err == nil && len(c.queue) > 0 && total.Bytes < want {
		var gone []removal
		for err == nil && len(c.queue) > 0 && len(gone) < gcSync && total.Bytes < want {
			var step []removal
			step, err = c.step(ctx, want-total.Bytes)
			for _, r := range step {
				total.Objects++
				total.Bytes += r.bytes
			}
			gone = append(gone, step...)
		}
		if serr := s.flush(); serr != nil {
			return total, errors.Join(err, fmt.Errorf("storage: remove: %w", serr))
		}
		s.unfile(gone)
	}
	return total, err
}

// step removes the front of the queue from the index, in one turn at the gate. Leaves that objects which stay share with those
// that go move to them before.
func (c *collection) step(ctx context.Context, want int64) ([]removal, error) {
	s := c.s
	if err := errors.Join(ctx.Err(), c.protect(ctx)); err != nil { // most of it, before anybody waits
		return nil, err
	}
	next := c.front(want)
	c.bequeath(ctx, next)
	s.gate.Lock()
	defer s.gate.Unlock()
	if err := c.protect(ctx); err != nil {
		return nil, err
	}
	next, err := s.spare(slices.DeleteFunc(next, func(x candidate) bool { return c.kept[x.cid] }))
	if err != nil {
		return nil, err
	}
	defer s.lockStripes()()
	batch := s.db.NewBatch()
	defer batch.Close()
	var out []removal
	for i, x := range next {
		giveWay(i)
		gone, err := c.unlist(batch, x)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, gone)
	}
	if err := s.apply(batch, pebble.NoSync); err != nil {
		return nil, fmt.Errorf("storage: remove: %w", err)
	}
	return out, nil
}

// bequeath moves leaves that objects which stay share with those that go.
func (c *collection) bequeath(ctx context.Context, next []candidate) {
	if !c.s.sharing.Load() {
		return
	}
	going := leaving(next)
	for _, x := range next {
		if err := c.s.bequeath(ctx, x.cid, going); err != nil {
			c.s.log.Warn("an object that others share cannot go", "cid", x.cid, "err", err)
		}
	}
}

// giveWay lets others have the processor now and then: a reader that comes back from the disk would else wait until the runtime
// takes it away from a collection, which is ten milliseconds.
func giveWay(i int) {
	if i%giveWayEvery == 0 {
		runtime.Gosched()
	}
}

// front takes from the queue what one turn removes: enough to free want bytes, and about gcKeys entries at most.
func (c *collection) front(want int64) []candidate {
	n, keys, sum := 0, 0, int64(0)
	for ; n < len(c.queue) && keys < gcKeys && sum < want; n++ {
		if x := c.queue[n]; !c.kept[x.cid] {
			keys += x.keys
			sum += x.bytes
		}
	}
	next := slices.Clone(c.queue[:n])
	c.queue = c.queue[n:]
	return slices.DeleteFunc(next, func(x candidate) bool { return c.kept[x.cid] })
}

// protect marks what was protected since it was called last.
func (c *collection) protect(ctx context.Context) error {
	c.s.mu.Lock()
	fresh := c.s.fresh
	c.s.fresh = nil
	c.s.mu.Unlock()
	for _, p := range fresh {
		if !p.root && !c.kept[p.cid] {
			continue
		}
		seen := map[cid.Cid]bool{} // what was marked before may have more below it now
		if err := c.s.mark(ctx, p.cid, seen); err != nil {
			return err
		}
		for k := range seen {
			c.kept[k] = true
		}
	}
	return nil
}

// unlist writes the removal of one candidate into the batch. Of a single block that nobody has touched since the scan, which is
// what most objects are, the index is not read again.
func (c *collection) unlist(batch *pebble.Batch, next candidate) (removal, error) {
	s := c.s
	s.mu.Lock()
	stale := s.stale[next.cid]
	s.mu.Unlock()
	if stale || !next.inline && !next.filed {
		return s.unlist(batch, next)
	}
	out := removal{cid: next.cid, bytes: next.bytes}
	if next.filed {
		_, out.file = s.objectPath(next.cid)
	}
	return out, s.unindex(batch, next.cid, record{Kind: Block, Inline: next.inline})
}

// unlist writes the removal of one candidate into the batch.
func (s *Store) unlist(batch *pebble.Batch, c candidate) (removal, error) {
	out := removal{cid: c.cid, partial: c.partial}
	if c.partial {
		rec, err := s.partial(c.cid)
		if err != nil || s.isActive(c.cid) {
			return out, errors.Join(ErrNotFound, err)
		}
		_, out.file = s.partialPath(c.cid)
		out.bytes = rec.Charge
		return out, s.unlistFetch(batch, c.cid)
	}
	rec, err := s.record(c.cid)
	if err != nil {
		return out, err
	}
	if rec.filed() {
		_, out.file = s.objectPath(c.cid)
	}
	out.bytes = rec.charge()
	return out, s.unindex(batch, c.cid, rec)
}

// unfile removes the files of objects whose removal from the index is durable: a crash leaves a leftover file, never an entry
// without one. Only then their bytes are free. An object that has come back meanwhile keeps its file.
func (s *Store) unfile(gone []removal) {
	fileless := int64(0)
	for _, r := range gone {
		if r.file != "" {
			s.unfileOne(r)
		} else {
			fileless += r.bytes
		}
	}
	s.settle(-fileless, 0)
}

func (s *Store) unfileOne(r removal) {
	mu := s.stripe(r.cid)
	mu.Lock()
	defer mu.Unlock()
	if !s.indexed(s.fs.PathBase(r.file)) {
		s.discard(r.file)
	}
	s.settle(-r.bytes, 0)
}

// lockStripes keeps everybody from changing any record.
func (s *Store) lockStripes() (unlock func()) {
	for i := range s.stripes {
		s.stripes[i].Lock()
	}
	return func() {
		for i := range s.stripes {
			s.stripes[i].Unlock()
		}
	}
}

// scan lists what may go, and marks what may not.
func (c *collection) scan(ctx context.Context) error {
	s := c.s
	s.mu.Lock()
	roots := make([]cid.Cid, 0, len(s.holds))
	for h := range s.holds {
		roots = append(roots, h)
	}
	s.mu.Unlock()
	pins, err := s.Pins(ctx)
	if err != nil {
		return err
	}
	for _, p := range pins {
		roots = append(roots, p.CID)
	}
	if err := s.settleUses(); err != nil {
		return err
	}
	uses, err := s.uses()
	if err != nil {
		return err
	}
	seen := 0
	err = s.eachRecord(ctx, func(id cid.Cid, rec record) error {
		giveWay(seen)
		seen++
		if rec.Class == Owned {
			if rec.Kind == Directory {
				roots = append(roots, id)
			}
			return nil
		}
		single := rec.Kind != File && rec.External == nil
		c.queue = append(c.queue, candidate{cid: id, rank: unknown, use: uses.of(id), bytes: rec.charge(),
			keys: 4 + rec.blocks() + 2*rec.Nodes, inline: single && rec.Inline, filed: single && !rec.Inline})
		return nil
	})
	if err = errors.Join(err, uses.it.Close()); err != nil {
		return err
	}
	for _, r := range roots {
		if err := s.mark(ctx, r, c.kept); err != nil {
			return err
		}
	}
	err = s.eachPartial(ctx, func(id cid.Cid, rec partialRecord) error {
		if !s.isActive(id) && rec.Class != Owned {
			c.queue = append(c.queue, candidate{cid: id, rank: abandoned, bytes: rec.Charge, keys: 1, partial: true})
		}
		return nil
	})
	c.queue = slices.DeleteFunc(c.queue, func(x candidate) bool { return c.kept[x.cid] })
	return err
}

// rank puts what the orders know into candidates.
func (s *Store) rank(queue []candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.orders) == 0 {
		return
	}
	for i := range queue {
		x := &queue[i]
		d, known := s.nextUse(x.cid)
		switch {
		case !known || x.partial:
		case d == never:
			x.rank = useless
		default:
			x.rank, x.use = expected, uint64(d)
		}
	}
}

// uses walks the LRU clock in the order of the CIDs.
type uses struct{ it *pebble.Iterator }

func (s *Store) uses() (uses, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyUse}, UpperBound: []byte{keyUse + 1}})
	if err != nil {
		return uses{}, fmt.Errorf("storage: index: %w", err)
	}
	it.First()
	return uses{it}, nil
}

// of returns when an object was last used, 0 if nobody knows. Each call must name a greater CID than the one before.
func (u uses) of(c cid.Cid) uint64 {
	key := c.KeyString()
	for u.it.Valid() && string(u.it.Key()[1:]) < key {
		u.it.Next()
	}
	if u.it.Valid() && string(u.it.Key()[1:]) == key && len(u.it.Value()) == 8 {
		return binary.BigEndian.Uint64(u.it.Value())
	}
	return 0
}

// mark adds an object and, for folders, everything below it to the set. A folder that cannot be read is an error: nobody knows
// what it protects.
func (s *Store) mark(ctx context.Context, c cid.Cid, set map[cid.Cid]bool) error {
	for todo := []cid.Cid{c}; len(todo) > 0; {
		c, todo = todo[len(todo)-1], todo[:len(todo)-1]
		if set[c] {
			continue
		}
		set[c] = true
		if c.Type() != cid.DagProtobuf {
			continue
		}
		rec, err := s.record(c)
		if errors.Is(err, ErrNotFound) || (err == nil && rec.Kind != Directory) {
			continue
		}
		if err != nil {
			return err
		}
		node, err := s.directory(ctx, c)
		if errors.Is(err, ErrCorrupt) {
			return fmt.Errorf("storage: what the folder %s protects is not known, so nothing can be removed: "+
				"fetch it again, or unpin and delete it: %w", c, err)
		}
		if err != nil {
			return err
		}
		for _, l := range node.Links {
			todo = append(todo, l.CID)
		}
	}
	return nil
}

// directory reads and decodes a folder node.
func (s *Store) directory(ctx context.Context, c cid.Cid) (unixfs.Node, error) {
	rec, err := s.record(c)
	if err != nil {
		return unixfs.Node{}, err
	}
	if rec.Kind != Directory {
		return unixfs.Node{}, fmt.Errorf("storage: %s is no folder: %w", c, ErrWrongKind)
	}
	r, err := s.openRecord(ctx, c, rec)
	if err != nil {
		return unixfs.Node{}, err
	}
	defer r.Close()
	block, err := r.Block(0, make([]byte, r.Size()))
	if err != nil {
		return unixfs.Node{}, err
	}
	return unixfs.Decode(block)
}
