package car

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/assemble"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Options says how to import.
type Options struct {
	// Pin names the pin of a root; nil means that the objects may be evicted at any time.
	Pin func(root cid.Cid) string
	// Dir is where an archive that can be read only once, as from a pipe, is kept while it is imported. Empty means the folder
	// for temporary files.
	Dir string
}

// Import stores what an archive holds. The archive is read to its end and every block hashed before anything is stored, so that
// an archive which is truncated, hostile or incomplete changes nothing; its error is an [Error] that names the offset, or
// [ErrIncomplete]. When storing fails, for want of space, what was added is removed again. Blocks that no root reaches are left
// out. Memory grows with the number of blocks, not with their size: about 150 bytes each.
func Import(ctx context.Context, store *storage.Store, r io.Reader, o Options) (s Summary, err error) {
	at, keep, err := archive(r, o.Dir)
	if err != nil {
		return s, err
	}
	if keep != nil {
		defer func() { err = errors.Join(err, keep.Close()) }()
	}
	x, err := scan(ctx, r, keep)
	if err != nil {
		return s, err
	}
	x.archive = at
	s = Summary{Roots: x.roots, Blocks: len(x.places), Bytes: x.bytes}
	for _, root := range x.roots {
		if err := x.covers(ctx, store, root); err != nil {
			return s, err
		}
	}
	s.Unused = s.Blocks - len(x.reached)
	if err := assemble.Objects(ctx, store, x.roots, x, assemble.Options{Undo: true, Pin: o.Pin}); err != nil {
		return s, fmt.Errorf("car: import: %w", err)
	}
	return s, nil
}

// archive returns how to read an archive a second time: from the file that it is, or from a nameless copy, which is the second
// result then.
func archive(r io.Reader, dir string) (io.ReaderAt, *os.File, error) {
	if f, ok := r.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil {
				return io.NewSectionReader(f, at, 1<<62), nil, nil
			}
		}
	}
	f, err := os.CreateTemp(dir, "capanode-car-*")
	if err != nil {
		return nil, nil, fmt.Errorf("car: keep the archive while it is read: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil { // gone with the process, however that ends
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, f, nil
}

// place is where the bytes of a block are.
type place struct {
	offset int64
	length int32
}

// index is an archive that was read to its end. It is a source of its blocks.
type index struct {
	archive io.ReaderAt
	roots   []cid.Cid
	places  map[cid.Cid]place
	bytes   int64
	reached map[cid.Cid]bool
}

// scan reads an archive to its end, copies it if asked to, and remembers where each block is.
func scan(ctx context.Context, r io.Reader, keep *os.File) (*index, error) {
	if keep != nil {
		r = io.TeeReader(r, keep)
	}
	in, roots, err := newReader(r)
	if err != nil {
		return nil, err
	}
	x := &index{roots: roots, places: map[cid.Cid]place{}, reached: map[cid.Cid]bool{}}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, err := in.next()
		if err == io.EOF {
			x.bytes = in.at
			return x, nil
		}
		if err != nil {
			return nil, err
		}
		if _, known := x.places[s.cid]; !known {
			if len(x.places) == MaxBlocks {
				return nil, in.fail(fmt.Errorf("more than %d blocks: %w", MaxBlocks, ErrUnsupported))
			}
			x.places[s.cid] = place{s.offset, int32(len(s.data))}
		}
	}
}

// Blocks implements [assemble.Source]: all cores read and hash.
func (x *index) Blocks(ctx context.Context, list []cid.Cid, have func(i int, block []byte) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(list)) {
		workers.Go(func() {
			var buf []byte
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(list) {
					return
				}
				var err error
				if buf, err = x.read(list[i], buf); err == nil {
					err = have(i, buf)
				}
				if err != nil {
					stop(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// read reads one block again. What is not as it was when it was hashed is refused by the store.
func (x *index) read(c cid.Cid, buf []byte) ([]byte, error) {
	p, ok := x.places[c]
	if !ok {
		return buf, fmt.Errorf("car: block %s: %w", c, ErrIncomplete)
	}
	if cap(buf) < int(p.length) {
		buf = make([]byte, p.length)
	}
	buf = buf[:p.length]
	if _, err := x.archive.ReadAt(buf, p.offset); err != nil {
		return buf, &Error{Offset: p.offset, Err: fmt.Errorf("block %s: %w", c, err)}
	}
	return buf, nil
}

// covers checks that the archive and the store together hold everything that a root reaches, and notes which blocks are needed.
func (x *index) covers(ctx context.Context, store *storage.Store, root cid.Cid) error {
	list := []cid.Cid{root}
	for len(list) > 0 {
		c := list[len(list)-1]
		list = list[:len(list)-1]
		if x.reached[c] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, ok := x.places[c]; !ok {
			if has, err := store.Has(ctx, c); err != nil {
				return err
			} else if has {
				continue // the store has the rest of it, or says so when it is assembled
			}
			if _, err := store.BlockSize(ctx, c); err == nil && c.Type() == cid.Raw {
				continue // a leaf that another file has, too
			}
			return fmt.Errorf("car: root %s: block %s: %w", root, c, ErrIncomplete)
		}
		x.reached[c] = true
		if c.Type() != cid.DagProtobuf {
			continue
		}
		block, err := x.read(c, nil)
		if err != nil {
			return err
		}
		n, err := unixfs.Decode(block)
		if err != nil {
			return &Error{Offset: x.places[c].offset, Err: fmt.Errorf("block %s: %w", c, err)}
		}
		for _, l := range n.Links {
			list = append(list, l.CID)
		}
	}
	return nil
}
