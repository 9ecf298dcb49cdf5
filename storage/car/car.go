// Package car owns the archive format CARv1: objects of the store become one file that any IPFS tool reads, and such a file
// becomes objects again. It refuses to fetch anything and to keep half of an archive.
//
// Format: https://ipld.io/specs/transport/car/carv1/. What is written is deterministic: one root, blocks in the order of a
// depth-first walk, each once, as `ipfs dag export` writes them.
package car

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// MaxHeader is the largest header in bytes.
	MaxHeader = 4 << 10
	// MaxRoots is the largest number of roots of an archive that is read.
	MaxRoots = 64
	// MaxBlocks is the largest number of blocks of an archive that is read. The place of each is held in memory.
	MaxBlocks = 1 << 20

	version  = 1
	cidBytes = 36 // of a CIDv1 with sha2-256 and a codec below 0x80
)

var (
	// ErrInvalid reports an archive that breaks the format.
	ErrInvalid = errors.New("invalid CAR")
	// ErrTruncated reports an archive that ends too early.
	ErrTruncated = errors.New("truncated CAR")
	// ErrUnsupported reports a valid archive that this node does not read: CARv2, other hashes, blocks above 1 MiB.
	ErrUnsupported = errors.New("unsupported CAR")
	// ErrIncomplete reports an archive without a block that its roots need.
	ErrIncomplete = errors.New("block is missing from the CAR")
)

// An Error says where in an archive reading failed.
type Error struct {
	Offset int64 // of the header or the section in question, in bytes from the start
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("car: at byte %d: %v", e.Offset, e.Err) }

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// version2 is how CARv2 begins: a header without roots, so that readers of version 1 stop there.
var version2 = []byte("\xa1\x67version\x02")

// header is the first section.
type header struct {
	Roots   []wire.Link `cbor:"roots"`
	Version uint64      `cbor:"version"`
}

// writer writes an archive.
type writer struct {
	w      io.Writer
	prefix []byte
	bytes  int64
}

func newWriter(w io.Writer, root cid.Cid) (*writer, error) {
	head, err := wire.Marshal(header{Roots: []wire.Link{{Cid: root}}, Version: version})
	if err != nil {
		return nil, fmt.Errorf("car: header: %w", err)
	}
	out := &writer{w: w}
	return out, out.section(head, nil)
}

// section writes a length and two runs of bytes.
func (w *writer) section(a, b []byte) error {
	w.prefix = binary.AppendUvarint(w.prefix[:0], uint64(len(a)+len(b)))
	w.prefix = append(w.prefix, a...)
	for _, part := range [][]byte{w.prefix, b} {
		n, err := w.w.Write(part)
		w.bytes += int64(n)
		if err != nil {
			return fmt.Errorf("car: write: %w", err)
		}
	}
	return nil
}

// block writes one block.
func (w *writer) block(c cid.Cid, data []byte) error { return w.section(c.Bytes(), data) }

// reader reads a hostile archive from start to end.
type reader struct {
	r     *bufio.Reader
	at    int64 // bytes read
	start int64 // of the section being read
	buf   []byte
}

// newReader reads the header and returns the roots.
func newReader(r io.Reader) (*reader, []cid.Cid, error) {
	out := &reader{r: bufio.NewReaderSize(r, 1<<20)}
	size, err := out.length()
	if err == io.EOF {
		return nil, nil, out.fail(fmt.Errorf("no header: %w", ErrTruncated))
	}
	if err != nil {
		return nil, nil, err
	}
	if size == 0 || size > MaxHeader {
		return nil, nil, out.fail(fmt.Errorf("header of %d bytes, limit %d: %w", size, MaxHeader, ErrInvalid))
	}
	b, err := out.take(int(size))
	if err != nil {
		return nil, nil, err
	}
	roots, err := parseHeader(b)
	if err != nil {
		return nil, nil, out.fail(err)
	}
	return out, roots, nil
}

// parseHeader reads the header's record.
func parseHeader(b []byte) ([]cid.Cid, error) {
	if bytes.Equal(b, version2) {
		return nil, fmt.Errorf("version 2, this program reads version %d: %w", version, ErrUnsupported)
	}
	var h header
	if err := wire.Unmarshal(b, &h); err != nil {
		return nil, fmt.Errorf("header: %w: %w", ErrInvalid, err)
	}
	if h.Version != version {
		return nil, fmt.Errorf("version %d, this program reads version %d: %w", h.Version, version, ErrUnsupported)
	}
	if len(h.Roots) == 0 || len(h.Roots) > MaxRoots {
		return nil, fmt.Errorf("%d roots, want 1 to %d: %w", len(h.Roots), MaxRoots, ErrInvalid)
	}
	roots := make([]cid.Cid, len(h.Roots))
	for i, l := range h.Roots {
		roots[i] = l.Cid
		if _, err := unixfs.DigestOf(l.Cid); err != nil {
			return nil, fmt.Errorf("root %d: %w: %w", i, ErrUnsupported, err)
		}
	}
	return roots, nil
}

// section is one block and where its bytes are.
type section struct {
	cid    cid.Cid
	digest unixfs.Digest
	offset int64
	data   []byte // valid until the next call
}

// next returns the next block, verified, or [io.EOF] at the end.
func (r *reader) next() (section, error) {
	r.start = r.at
	size, err := r.length()
	if err != nil {
		return section{}, err
	}
	if size > cidBytes+unixfs.MaxBlock {
		return section{}, r.fail(fmt.Errorf("section of %d bytes, limit %d: %w", size, cidBytes+unixfs.MaxBlock, ErrUnsupported))
	}
	b, err := r.take(int(size))
	if err != nil {
		return section{}, err
	}
	n, c, err := cid.CidFromBytes(b)
	if err != nil {
		return section{}, r.fail(fmt.Errorf("section of %d bytes without a CID: %w: %w", size, ErrInvalid, err))
	}
	s := section{cid: c, offset: r.at - int64(len(b)-n), data: b[n:]}
	if s.digest, err = unixfs.DigestOf(c); err != nil {
		return section{}, r.fail(fmt.Errorf("%w: %w", ErrUnsupported, err))
	}
	if unixfs.Sum(s.data) != s.digest {
		return section{}, r.fail(fmt.Errorf("block %s of %d bytes: %w", c, len(s.data), storage.ErrCorrupt))
	}
	return s, nil
}

// length reads the length of a section. [io.EOF] means that the archive ends before it.
func (r *reader) length() (uint64, error) {
	var v uint64
	for shift := 0; ; shift += 7 {
		b, err := r.r.ReadByte()
		if err == io.EOF && shift > 0 {
			return 0, r.fail(fmt.Errorf("it ends inside a length: %w", ErrTruncated))
		}
		if err == io.EOF {
			return 0, err
		}
		if err != nil {
			return 0, r.fail(err)
		}
		r.at++
		v |= uint64(b&0x7f) << shift
		switch {
		case shift > 0 && b == 0:
			return 0, r.fail(fmt.Errorf("length with bytes to spare: %w", ErrInvalid))
		case b < 0x80:
			return v, nil
		case shift == 7*8: // the ninth byte may not go on
			return 0, r.fail(fmt.Errorf("length of more than 9 bytes: %w", ErrInvalid))
		}
	}
}

// take reads the body of a section, whose length was checked.
func (r *reader) take(n int) ([]byte, error) {
	if cap(r.buf) < n {
		r.buf = make([]byte, n, max(n, 64<<10))
	}
	r.buf = r.buf[:n]
	m, err := io.ReadFull(r.r, r.buf)
	r.at += int64(m)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, r.fail(fmt.Errorf("it ends after %d of %d bytes of a section: %w", m, n, ErrTruncated))
	}
	if err != nil {
		return nil, r.fail(err)
	}
	return r.buf, nil
}

func (r *reader) fail(err error) error { return &Error{Offset: r.start, Err: err} }
