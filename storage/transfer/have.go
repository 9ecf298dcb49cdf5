package transfer

import (
	"encoding/binary"
	"fmt"

	"github.com/capacloud/capanode/storage/unixfs"
)

// maxHave is the largest payload of a have answer in bytes. What does not fit is left out: a have promises what it names and
// says nothing about the rest.
const maxHave = 64 << 10

const (
	haveHead = 13 // flags, epoch, count

	haveDelta    = 1 // the blocks add to what was said before
	haveComplete = 2 // every block is here
)

// have says which blocks of a file a source holds.
type have struct {
	delta    bool
	complete bool
	epoch    uint64 // of the source's count: a count of another epoch means nothing
	count    uint32 // how many arrivals the asker knows of after this answer
	blocks   bits
}

// encode returns the payload: flags, epoch and count, then for each run of blocks how many lie before it and how long it is.
func (h have) encode() []byte {
	b := make([]byte, haveHead, haveHead+256)
	if h.delta {
		b[0] |= haveDelta
	}
	if h.complete {
		b[0] |= haveComplete
	}
	binary.BigEndian.PutUint64(b[1:], h.epoch)
	binary.BigEndian.PutUint32(b[9:], h.count)
	end := 0
	for first := h.blocks.next(nil, 0); first >= 0 && len(b) <= maxHave-2*binary.MaxVarintLen32; first = h.blocks.next(nil, end) {
		b = binary.AppendUvarint(b, uint64(first-end))
		for end = first; h.blocks.has(end); end++ {
		}
		b = binary.AppendUvarint(b, uint64(end-first))
	}
	return b
}

// parseHave reads a hostile payload. It allocates as much as the largest file has blocks, one bit each.
func parseHave(b []byte) (have, error) {
	if len(b) < haveHead || len(b) > maxHave || b[0] > haveDelta|haveComplete {
		return have{}, fmt.Errorf("transfer: have of %d bytes: %w", len(b), ErrProtocol)
	}
	h := have{
		delta: b[0]&haveDelta != 0, complete: b[0]&haveComplete != 0,
		epoch: binary.BigEndian.Uint64(b[1:]), count: binary.BigEndian.Uint32(b[9:]), blocks: newBits(unixfs.MaxLeaves),
	}
	at := uint64(0)
	for rest := b[haveHead:]; len(rest) > 0; {
		gap, n := binary.Uvarint(rest)
		if n <= 0 || gap == 0 && at > 0 || gap > unixfs.MaxLeaves {
			return have{}, fmt.Errorf("transfer: have: gap at block %d: %w", at, ErrProtocol)
		}
		run, m := binary.Uvarint(rest[n:])
		if m <= 0 || run == 0 || run > unixfs.MaxLeaves || at+gap+run > unixfs.MaxLeaves {
			return have{}, fmt.Errorf("transfer: have: run at block %d: %w", at+gap, ErrProtocol)
		}
		h.blocks.setRun(int(at+gap), int(run))
		at += gap + run
		rest = rest[n+m:]
	}
	return h, nil
}
