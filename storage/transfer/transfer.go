// Package transfer owns the protocol /capanode/blob/1.0.0 that moves objects between nodes: a server that answers from a
// store, and a fetcher that pulls one object, file, folder or record, from several sources at once. It refuses to decide
// what is worth fetching, keeping or announcing. The protocol is docs/protocol/blob.md.
//
// Every block is hashed by the server before it leaves, once per start of the program and again when its file has changed, and
// by the fetcher when it arrives: a source that sends one bad block is out of the fetch, and after three for a day.
package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Protocol is the stream protocol.
const Protocol = "/capanode/blob/1.0.0"

const (
	// MaxRequest is the largest request frame in bytes.
	MaxRequest = 4 << 10
	// MaxRanges is the largest number of ranges in one request.
	MaxRanges = 64
	// MaxBlocks is the largest number of blocks that one request may name.
	MaxBlocks = 1024

	headerSize = 14
)

// segment is how much of a block is read or written under one deadline, in bytes: a source that needs Options.Stall for as
// much has stalled. With the header of the multiplexer it fills one of its frames.
const segment = 63 << 10

var (
	// ErrNoProviders reports that no source delivers the object. The text lists who was asked and what happened.
	ErrNoProviders = errors.New("no provider delivers the object")
	// ErrProtocol reports a peer that breaks the protocol.
	ErrProtocol = errors.New("blob protocol violation")
)

// limits bounds the serving side. A fetcher needs one stream per source; a few more cover its fetches in parallel.
var limits = p2p.Limits{Streams: 128, StreamsPerPeer: 8, Idle: idleTimeout}

const (
	idleTimeout  = 60 * time.Second // a client may think this long between requests
	writeTimeout = 30 * time.Second // a client must take a block within this
)

// Range is a run of block numbers.
type Range struct {
	First uint32 `cbor:"first"`
	Count uint32 `cbor:"count"`
}

// Request asks for blocks of an object by number, or, without ranges, for the block that the CID itself names, or for what the
// server has of it.
type Request struct {
	CID    wire.Link `cbor:"cid"`
	Ranges []Range   `cbor:"ranges"`
	Have   bool      `cbor:"have,omitempty"`  // which blocks are there? Without ranges
	Epoch  uint64    `cbor:"epoch,omitempty"` // of the last answer to such a question
	Since  uint32    `cbor:"since,omitempty"` // count of that answer: only what came after it is of interest

	Encodings encode.Set `cbor:"encodings,omitempty"` // that the client takes beside raw, for blocks by number
}

// check holds the rules of a request.
func (r Request) check() error {
	if _, err := unixfs.DigestOf(r.CID.Cid); err != nil {
		return fmt.Errorf("transfer: request: %w: %w", ErrProtocol, err)
	}
	if r.Have && len(r.Ranges) > 0 {
		return fmt.Errorf("transfer: request for blocks and for what is there at once: %w", ErrProtocol)
	}
	if len(r.Ranges) == 0 && r.Encodings != 0 {
		return fmt.Errorf("transfer: request for encodings of what travels raw: %w", ErrProtocol)
	}
	if len(r.Ranges) > MaxRanges {
		return fmt.Errorf("transfer: request with %d ranges, limit %d: %w", len(r.Ranges), MaxRanges, ErrProtocol)
	}
	total := uint64(0)
	for _, run := range r.Ranges {
		total += uint64(run.Count)
		if run.Count == 0 || uint64(run.First)+uint64(run.Count) > unixfs.MaxLeaves {
			return fmt.Errorf("transfer: request for blocks %d and %d more: %w", run.First, run.Count, ErrProtocol)
		}
	}
	if total > MaxBlocks {
		return fmt.Errorf("transfer: request for %d blocks, limit %d: %w", total, MaxBlocks, ErrProtocol)
	}
	return nil
}

// readRequest reads one hostile request.
func readRequest(r io.Reader) (Request, error) {
	var req Request
	if err := wire.ReadRecord(r, MaxRequest, &req); err != nil {
		return req, err
	}
	return req, req.check()
}

// oneRequest returns how many of the blocks fit one request.
func oneRequest(blocks []int) int {
	runs := 0
	for i := range blocks {
		if i == 0 || blocks[i] != blocks[i-1]+1 {
			runs++
		}
		if runs > MaxRanges || i == MaxBlocks {
			return i
		}
	}
	return len(blocks)
}

// rangesOf packs ascending block numbers into runs.
func rangesOf(blocks []int) []Range {
	var out []Range
	for _, b := range blocks {
		if n := len(out); n > 0 && out[n-1].First+out[n-1].Count == uint32(b) {
			out[n-1].Count++
			continue
		}
		out = append(out, Range{uint32(b), 1})
	}
	return out
}

// status says what an answer is. Anything but statusBlock ends the request it answers.
type status byte

const (
	statusBlock       status = 0 // the block follows
	statusNotFound    status = 1 // the object or block is not here
	statusUnavailable status = 2 // it is here but cannot be read now
	statusHave        status = 3 // what is there follows
)

// header precedes each block: status, block number, how the block is encoded, bytes that follow, bytes of the block,
// big-endian. The block follows outside any frame, so that neither side copies it.
type header struct {
	status   status
	block    uint32
	encoding encode.Encoding
	length   uint32 // bytes that follow
	size     uint32 // bytes that they decode to
}

// plain is the header of a payload that is not encoded.
func plain(s status, block uint32, length int) header {
	return header{s, block, encode.Raw, uint32(length), uint32(length)}
}

func (h header) put(b []byte) {
	b[0] = byte(h.status)
	binary.BigEndian.PutUint32(b[1:], h.block)
	b[5] = byte(h.encoding)
	binary.BigEndian.PutUint32(b[6:], h.length)
	binary.BigEndian.PutUint32(b[10:], h.size)
}

// parseHeader reads a hostile header that must answer for the given block in an encoding of the set, or, with have, say what is
// there.
func parseHeader(b []byte, want uint32, have bool, from encode.Set) (header, error) {
	if len(b) != headerSize {
		return header{}, fmt.Errorf("transfer: header of %d bytes: %w", len(b), ErrProtocol)
	}
	h := header{status(b[0]), binary.BigEndian.Uint32(b[1:]), encode.Encoding(b[5]), binary.BigEndian.Uint32(b[6:]), binary.BigEndian.Uint32(b[10:])}
	payload, most := statusBlock, uint32(unixfs.MaxBlock)
	if have {
		payload, most = statusHave, maxHave
	}
	switch {
	case h.status != payload && h.status != statusNotFound && h.status != statusUnavailable:
		return h, fmt.Errorf("transfer: answer with status %d: %w", h.status, ErrProtocol)
	case h.block != want:
		return h, fmt.Errorf("transfer: answer for block %d, asked for %d: %w", h.block, want, ErrProtocol)
	case h.length > most || h.size > most || (h.status != payload && h.size != 0):
		return h, fmt.Errorf("transfer: answer of %d bytes for %d with status %d: %w", h.length, h.size, h.status, ErrProtocol)
	case !from.Has(h.encoding) || h.encoding == encode.Raw && h.length != h.size || h.encoding != encode.Raw && h.length >= h.size:
		return h, fmt.Errorf("transfer: answer of %d bytes for %d as %s: %w", h.length, h.size, h.encoding, ErrProtocol)
	}
	return h, nil
}
