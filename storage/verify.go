package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Report is the result of reading and hashing objects from end to end.
type Report struct {
	Objects int // objects read
	Blocks  int // leaves that match
	Bytes   int64
	Faults  []Fault
}

// Fault is one object that does not match its CID.
type Fault struct {
	CID   cid.Cid
	Block int // first bad leaf, -1 when the fault is in the index
	Err   error
}

// Verify rehashes the given objects, or all of them when none is given: every leaf against the leaf table, and the table
// against the CID. Damaged objects are marked, and the mark is taken off those that turn out whole; a file in place that was
// written or moved and has the same bytes is fine again. What a pin, a lease or an owned folder reaches and is not here as a
// whole, because it was damaged and its repair has not ended, is a fault as well. The error is about the check itself, never
// about a fault found.
func (s *Store) Verify(ctx context.Context, cids ...cid.Cid) (Report, error) {
	lost, err := s.lost(ctx)
	if err != nil {
		return Report{}, err
	}
	if len(cids) == 0 {
		list, err := s.List(ctx)
		if err != nil {
			return Report{}, err
		}
		for _, info := range list {
			cids = append(cids, info.CID)
		}
		for c := range lost {
			cids = append(cids, c)
		}
	}
	var rep Report
	for _, c := range cids {
		rec, err := s.record(c)
		if fault, ok := lost[c]; ok && errors.Is(err, ErrNotFound) {
			rep.Objects++
			rep.Faults = append(rep.Faults, Fault{c, -1, fault})
			continue
		}
		if errors.Is(err, ErrNotFound) && len(cids) > 1 {
			continue // removed since it was listed
		}
		if err != nil {
			return rep, err
		}
		if _, err := s.inspect(ctx, c, rec, &rep); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

// inspection says which part of an object to verify, and how fast.
type inspection struct {
	from  int                 // first leaf
	pause func(n int64) error // called before each block is read; nil does not wait
}

// inspect verifies one object, adds it to the report, and changes its mark if need be. It returns the fault, nil for none. The
// error is about the check itself.
func (s *Store) inspect(ctx context.Context, c cid.Cid, rec record, rep *Report) (*Fault, error) {
	return s.inspectFrom(ctx, c, rec, rep, inspection{})
}

// inspectFrom is inspect for the leaves from one on. A mark is only taken off when all were seen.
func (s *Store) inspectFrom(ctx context.Context, c cid.Cid, rec record, rep *Report, how inspection) (*Fault, error) {
	var st fs.FileInfo
	if rec.External != nil {
		if now, err := s.fs.Stat(string(rec.External.Path)); err == nil { // what the bytes that follow belong to
			st = now
		}
	}
	block, err := s.verifyObject(ctx, c, rec, rep, how)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	rep.Objects++
	var fault *Fault
	if err != nil {
		rep.Faults = append(rep.Faults, Fault{c, block, err})
		fault = &rep.Faults[len(rep.Faults)-1]
		if !errors.Is(err, ErrCorrupt) || rec.External != nil && st == nil {
			return fault, nil // could not be read now, which says nothing about its bytes
		}
	}
	if err == nil && how.from > 0 {
		return nil, nil
	}
	return fault, ignoreMissing(s.amend(c, func(now *record) {
		now.Damaged = err != nil
		if x := now.External; err == nil && x != nil && st != nil && string(x.Path) == string(rec.External.Path) {
			x.MTime, x.Inode = st.ModTime().UnixNano(), inodeOf(st)
		}
	}))
}

// lost lists the objects that a pin or an owned folder reaches and that are not here as a whole.
func (s *Store) lost(ctx context.Context) (map[cid.Cid]error, error) {
	pins, err := s.Pins(ctx)
	if err != nil {
		return nil, err
	}
	reached, lost := map[cid.Cid]bool{}, map[cid.Cid]error{}
	find := func(root cid.Cid, why string) error {
		below := map[cid.Cid]bool{}
		err := s.mark(ctx, root, below)
		if errors.Is(err, ErrCorrupt) {
			err = nil // the damaged folder is a fault of its own
		}
		for c := range below {
			if reached[c] || err != nil {
				continue
			}
			reached[c] = true
			if _, gone := s.record(c); errors.Is(gone, ErrNotFound) {
				lost[c] = fmt.Errorf("storage: %s: %s, damaged or never complete, and not repaired yet: %w", c, why, ErrCorrupt)
			} else if gone != nil {
				err = gone
			}
		}
		return err
	}
	for _, p := range pins {
		if err := find(p.CID, fmt.Sprintf("pinned as %q", p.Name)); err != nil {
			return nil, err
		}
	}
	err = s.eachRecord(ctx, func(c cid.Cid, rec record) error {
		if rec.Class == Owned && rec.Kind == Directory {
			return find(c, fmt.Sprintf("part of the folder %s", c))
		}
		return nil
	})
	return lost, err
}

// verifyObject returns the first fault and the leaf that has it.
func (s *Store) verifyObject(ctx context.Context, c cid.Cid, rec record, rep *Report, how inspection) (int, error) {
	if rec.Kind == File {
		if err := s.verifyTree(c, rec); err != nil {
			return -1, err
		}
	}
	rec.Damaged = false // look at the bytes, not at the mark
	r, err := s.openRecord(ctx, c, rec)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := s.buffer()
	defer s.recycle(buf)
	for i := how.from; i < r.Blocks(); i++ {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		if how.pause != nil {
			if err := how.pause(r.BlockSize(i)); err != nil {
				return i, err
			}
		}
		block, err := r.block(i, buf[:])
		if err != nil {
			return i, err
		}
		rep.Blocks++
		rep.Bytes += int64(len(block))
	}
	return 0, nil
}

// verifyTree checks that the interior nodes lead from the CID to exactly the leaf table.
func (s *Store) verifyTree(c cid.Cid, rec record) error {
	nodes := map[cid.Cid][]byte{}
	for i := range rec.Nodes {
		b, err := s.get(numberedKey(keyNode, c, i))
		if err != nil {
			return fmt.Errorf("storage: %s: node %d: %w: %w", c, i, ErrCorrupt, err)
		}
		nodes[unixfs.NodeCID(b)] = b
	}
	layout, err := unixfs.Resolve(c, func(n cid.Cid) ([]byte, error) {
		b, ok := nodes[n]
		if !ok {
			return nil, fmt.Errorf("storage: %s: node %s: %w", c, n, ErrCorrupt)
		}
		return b, nil
	})
	if err != nil {
		return fmt.Errorf("storage: %s: %w: %w", c, ErrCorrupt, err)
	}
	cuts, err := s.cuts(c, rec)
	if err != nil {
		return err
	}
	if layout.Size != rec.Size || layout.BlockSize != rec.BlockSize || !slices.Equal(layout.Ends, cuts.Ends) {
		return fmt.Errorf("storage: %s: index says %d bytes, its nodes %d: %w", c, rec.Size, layout.Size, ErrCorrupt)
	}
	for i := 0; i < len(layout.Leaves); i += leafChunk {
		table, err := s.leafChunkOf(c, i/leafChunk)
		if err != nil {
			return err
		}
		want := layout.Leaves[i:min(i+leafChunk, len(layout.Leaves))]
		if len(table) != len(want) {
			return fmt.Errorf("storage: %s: leaf table %d has %d entries: %w", c, i/leafChunk, len(table), ErrCorrupt)
		}
		for j := range want {
			if table[j] != want[j] {
				return fmt.Errorf("storage: %s: leaf table entry %d: %w", c, i+j, ErrCorrupt)
			}
		}
	}
	return nil
}
