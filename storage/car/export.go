package car

import (
	"context"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/assemble"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Summary is what an archive holds.
type Summary struct {
	Roots  []cid.Cid
	Blocks int
	Bytes  int64 // of the archive
	Unused int   // blocks of an imported archive that its roots do not reach
}

// Export writes an object, with everything below it if it is a folder, as an archive. Links inside records are not followed.
// Every block is verified before it is written; an object or a part of it that is not here is [storage.ErrNotFound]. After an
// error w holds the beginning of an archive.
func Export(ctx context.Context, store *storage.Store, root cid.Cid, w io.Writer) (Summary, error) {
	defer store.Hold(root)()
	out, err := newWriter(w, root)
	if err != nil {
		return Summary{}, err
	}
	x := &exporter{store: store, out: out, seen: map[cid.Cid]bool{}, buf: make([]byte, unixfs.MaxBlock)}
	if err := x.write(ctx, root, 0); err != nil {
		return Summary{}, fmt.Errorf("car: export %s: %w", root, err)
	}
	return Summary{Roots: []cid.Cid{root}, Blocks: len(x.seen), Bytes: out.bytes}, nil
}

type exporter struct {
	store   *storage.Store
	out     *writer
	seen    map[cid.Cid]bool
	objects int
	buf     []byte
}

// write writes one object unless it was written before.
func (x *exporter) write(ctx context.Context, c cid.Cid, depth int) error {
	if x.seen[c] {
		return nil
	}
	if x.objects++; x.objects > assemble.MaxEntries || depth > assemble.MaxDepth {
		return fmt.Errorf("more than %d entries or %d levels: %w", assemble.MaxEntries, assemble.MaxDepth, storage.ErrTooLarge)
	}
	info, err := x.store.Stat(ctx, c)
	if err != nil {
		return err
	}
	switch info.Kind {
	case storage.File:
		return x.file(ctx, c)
	case storage.Directory:
		return x.folder(ctx, c, depth)
	}
	return x.block(ctx, c)
}

// block writes a block by its own CID.
func (x *exporter) block(ctx context.Context, c cid.Cid) error {
	data, err := x.store.GetBlock(ctx, c, x.buf)
	if err != nil {
		return err
	}
	return x.emit(c, data)
}

func (x *exporter) emit(c cid.Cid, data []byte) error {
	if x.seen[c] {
		return nil
	}
	x.seen[c] = true
	return x.out.block(c, data)
}

func (x *exporter) folder(ctx context.Context, c cid.Cid, depth int) error {
	if err := x.block(ctx, c); err != nil {
		return err
	}
	entries, err := x.store.Entries(ctx, c)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := x.write(ctx, e.CID, depth+1); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

// file writes the nodes and the leaves of a file in the order of a walk, the leaves by number out of one open file.
func (x *exporter) file(ctx context.Context, c cid.Cid) error {
	r, err := x.store.Open(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	leaf := 0
	var walk func(c cid.Cid, depth int) error
	walk = func(c cid.Cid, depth int) error {
		if depth > unixfs.MaxDepth {
			return fmt.Errorf("%s: more than %d levels: %w", c, unixfs.MaxDepth, storage.ErrCorrupt)
		}
		data, err := x.store.GetBlock(ctx, c, nil)
		if err != nil {
			return err
		}
		n, err := unixfs.Decode(data)
		if err != nil {
			return err
		}
		if err := x.emit(c, data); err != nil {
			return err
		}
		for _, l := range n.Links {
			if l.CID.Type() != cid.Raw {
				if err := walk(l.CID, depth+1); err != nil {
					return err
				}
				continue
			}
			if err := x.leaf(ctx, r, leaf, l.CID); err != nil {
				return err
			}
			leaf++
		}
		return nil
	}
	return walk(c, 1)
}

func (x *exporter) leaf(ctx context.Context, r *storage.Reader, i int, c cid.Cid) error {
	if x.seen[c] || ctx.Err() != nil {
		return ctx.Err()
	}
	data, err := r.Block(i, x.buf)
	if err != nil {
		return err
	}
	return x.emit(c, data)
}
