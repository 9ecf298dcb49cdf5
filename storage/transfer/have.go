package transfer

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/capacloud/capanode/storage/unixfs"
)

// maxHave is the largest payload of a have answer in bytes. What does not fit is left out: a have promises what it names and
// says nothing about the rest.
const maxHave = 64 << 10

const (
	haveHead = 13 // flags, epoch, count

	haveDelta    = 1 // the runs add to what was said before
	haveComplete = 2 // every block is here
)

// have says which blocks of a file a source holds.
type have struct {
	delta    bool
	complete bool
	epoch    uint64  // of the source's count: a count of another epoch means nothing
	count    uint32  // how many arrivals the asker knows of after this answer
	runs     []Range // ascending, apart from each other
}

// encode returns the payload: flags, epoch and count, then for each run how many blocks lie before it and how long it is.
func (h have) encode() []byte {
	b := make([]byte, haveHead, haveHead+4*len(h.runs))
	if h.delta {
		b[0] |= haveDelta
	}
	if h.complete {
		b[0] |= haveComplete
	}
	binary.BigEndian.PutUint64(b[1:], h.epoch)
	binary.BigEndian.PutUint32(b[9:], h.count)
	at := uint32(0)
	for _, r := range h.runs {
		if len(b) > maxHave-2*binary.MaxVarintLen32 {
			break
		}
		b = binary.AppendUvarint(b, uint64(r.First-at))
		b = binary.AppendUvarint(b, uint64(r.Count))
		at = r.First + r.Count
	}
	return b
}

// parseHave reads a hostile payload.
func parseHave(b []byte) (have, error) {
	if len(b) < haveHead || len(b) > maxHave || b[0] > haveDelta|haveComplete {
		return have{}, fmt.Errorf("transfer: have of %d bytes: %w", len(b), ErrProtocol)
	}
	h := have{
		delta: b[0]&haveDelta != 0, complete: b[0]&haveComplete != 0,
		epoch: binary.BigEndian.Uint64(b[1:]), count: binary.BigEndian.Uint32(b[9:]),
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
		h.runs = append(h.runs, Range{uint32(at + gap), uint32(run)})
		at += gap + run
		rest = rest[n+m:]
	}
	return h, nil
}

// runsOf packs block numbers into runs. It sorts the numbers.
func runsOf(blocks []uint32) []Range {
	slices.Sort(blocks)
	var out []Range
	for _, b := range blocks {
		n := len(out)
		switch {
		case n > 0 && out[n-1].First+out[n-1].Count == b:
			out[n-1].Count++
		case n == 0 || out[n-1].First+out[n-1].Count < b:
			out = append(out, Range{b, 1})
		}
	}
	return out
}
