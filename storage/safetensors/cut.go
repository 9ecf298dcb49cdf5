package safetensors

import (
	"io"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Small is the size in bytes below which a tensor shares a block with its neighbours.
const Small = 64 << 10

// Cut says where the blocks of a safetensors file end, so that a tensor that two files have in common is the same blocks in
// both: the header is blocks of its own, a tensor of at least [Small] bytes begins a block and is cut every
// [unixfs.BlockSize], smaller ones are grouped with the small ones that follow until a group has Small bytes. It returns nil for
// any other file and for one that would need more than [unixfs.MaxLeaves] blocks. It has the form of storage.Cutter.
func Cut(r io.ReaderAt, size int64) []int64 {
	tensors, err := ReadHeader(r, size)
	if err != nil || len(tensors) == 0 {
		return nil
	}
	c := cutter{}
	c.upTo(tensors[0].Offset)
	for _, t := range tensors {
		end := t.Offset + t.Bytes
		if t.Bytes >= Small {
			c.upTo(t.Offset) // closes a group
		}
		if end-c.at >= Small {
			c.upTo(end)
		}
		if len(c.ends) > unixfs.MaxLeaves {
			return nil
		}
	}
	c.upTo(size)
	return c.ends
}

// cutter lists ends.
type cutter struct {
	ends []int64
	at   int64
}

// upTo cuts from where the last block ended to the given end, every full block.
func (c *cutter) upTo(end int64) {
	for c.at < end && len(c.ends) <= unixfs.MaxLeaves {
		c.at = min(end, c.at+unixfs.BlockSize)
		c.ends = append(c.ends, c.at)
	}
}
