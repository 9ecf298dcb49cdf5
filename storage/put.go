package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Put stores a stream of bytes as one object in one pass and returns its CID: a raw block up to 1 MiB, a UnixFS file
// above. Memory does not grow with the stream.
func (s *Store) Put(ctx context.Context, r io.Reader, opts PutOptions) (Info, error) {
	if err := checkPut(opts); err != nil {
		return Info{}, err
	}
	buf := s.buffer()
	defer s.recycle(buf)
	n, err := fill(r, buf[:])
	// One byte more decides between a full raw block and a file.
	var next [1]byte
	more := 0
	if err == nil && n == len(buf) {
		more, err = fill(r, next[:])
	}
	if err != nil {
		return Info{}, fmt.Errorf("storage: put: %w", err)
	}
	if more == 0 {
		return s.putBlock(ctx, unixfs.RawCID(buf[:n]), buf[:n], opts)
	}
	return s.putFile(ctx, &importer{r: io.MultiReader(bytes.NewReader(buf[:]), bytes.NewReader(next[:]), r)}, opts)
}

// PutBytes stores b as [Store.Put] does.
func (s *Store) PutBytes(ctx context.Context, b []byte, opts PutOptions) (cid.Cid, error) {
	opts.Size = int64(len(b))
	info, err := s.Put(ctx, bytes.NewReader(b), opts)
	return info.CID, err
}

// PutRecord stores one encoded dag-cbor record of at most [wire.MaxRecord] bytes.
func (s *Store) PutRecord(ctx context.Context, record []byte, opts PutOptions) (cid.Cid, error) {
	info, err := s.PutBlock(ctx, wire.RecordCID(record), record, opts)
	return info.CID, err
}

// PutBlock stores the bytes of an object that is a single block: a raw leaf, a record or a directory node. Bytes that do
// not match the CID are [ErrCorrupt] and nothing is stored. It repairs a damaged object.
func (s *Store) PutBlock(ctx context.Context, c cid.Cid, block []byte, opts PutOptions) (Info, error) {
	if err := checkPut(opts); err != nil {
		return Info{}, err
	}
	if err := verifyBlock(c, block); err != nil {
		return Info{}, err
	}
	return s.putBlock(ctx, c, block, opts)
}

// verifyBlock checks a block's size, hash and, for folders, its form.
func verifyBlock(c cid.Cid, block []byte) error {
	if err := checkCID(c); err != nil {
		return err
	}
	if len(block) > unixfs.MaxBlock {
		return fmt.Errorf("storage: %s: block of %d bytes, limit %d: %w", c, len(block), unixfs.MaxBlock, ErrTooLarge)
	}
	want, err := unixfs.DigestOf(c)
	if err != nil {
		return err
	}
	if unixfs.Sum(block) != want {
		return fmt.Errorf("storage: %s: block of %d bytes: %w", c, len(block), ErrCorrupt)
	}
	if c.Type() == cid.DagProtobuf {
		n, err := unixfs.Decode(block)
		if err != nil {
			return fmt.Errorf("storage: %s: %w", c, err)
		}
		if n.Kind != unixfs.Directory {
			return fmt.Errorf("storage: %s is a file of several blocks: %w", c, ErrWrongKind)
		}
	}
	return nil
}

// putBlock stores a verified block.
func (s *Store) putBlock(ctx context.Context, c cid.Cid, block []byte, opts PutOptions) (Info, error) {
	err := ctx.Err()
	if err == nil && opts.whole != nil {
		err = opts.whole()
	}
	if err != nil {
		return Info{}, err
	}
	size := int64(len(block))
	o := &newObject{cid: c, opts: opts, rec: record{
		Class: opts.Class, Inline: size <= InlineLimit, Size: size, BlockSize: size, Created: s.now().Unix(),
	}}
	switch c.Type() {
	case cid.DagCBOR:
		o.rec.Kind = Record
	case cid.DagProtobuf:
		o.rec.Kind = Directory
	}
	if err := s.reserve(ctx, size); err != nil {
		return Info{}, err
	}
	if o.rec.Inline {
		o.inline = block
		return s.commit(o)
	}
	f, name, err := s.tempFile()
	if err == nil {
		_, err = f.WriteAt(block, 0)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		s.discard(name)
		s.settle(0, -size)
		return Info{}, fmt.Errorf("storage: put %s: %w", c, s.diskError(err))
	}
	o.temp = name
	return s.commit(o)
}

// putFile streams a file of at least two leaves into a temporary file and commits it.
func (s *Store) putFile(ctx context.Context, im *importer, opts PutOptions) (Info, error) {
	f, name, err := s.tempFile()
	if err != nil {
		return Info{}, fmt.Errorf("storage: put: %w", s.diskError(err))
	}
	im.s, im.f = s, f
	err = im.reserve(ctx, opts.Size)
	if err == nil {
		err = im.run(ctx)
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if opts.whole != nil && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = errors.Join(opts.whole(), err)
	}
	var layout *unixfs.Layout
	if err == nil {
		layout, err = unixfs.Build(im.leaves, im.size)
	}
	rec := record{Kind: File, Class: opts.Class, Size: im.size, BlockSize: unixfs.BlockSize, Created: s.now().Unix()}
	if err == nil {
		rec.Nodes = len(layout.Nodes)
		for _, n := range layout.Nodes {
			rec.NodeBytes += int64(len(n.Data))
		}
		err = im.reserve(ctx, rec.charge())
	}
	if err != nil {
		s.discard(name)
		s.settle(0, -im.reserved)
		return Info{}, fmt.Errorf("storage: put: %w", s.diskError(err))
	}
	s.settle(0, rec.charge()-im.reserved) // an expected size that was too large
	return s.commitHashed(&newObject{cid: layout.Root, rec: rec, temp: name, layout: layout, opts: opts})
}

// fill reads until b is full or the stream ends. Unlike [io.ReadFull] it never takes a reader's own
// [io.ErrUnexpectedEOF], which means truncated input, for an end.
func fill(r io.Reader, b []byte) (int, error) {
	for n := 0; ; {
		if n == len(b) {
			return n, nil
		}
		m, err := r.Read(b[n:])
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("read: %w", err)
		}
	}
}
