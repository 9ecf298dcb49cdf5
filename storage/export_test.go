package storage

import (
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
)

// FlipIndexBit turns over one bit of an inline value, or of the leaf table or the root node of a file.
func FlipIndexBit(s *Store, c cid.Cid, rng *rand.Rand) (undo func(), err error) {
	key := cidKey(keyValue, c)
	if c.Type() == cid.DagProtobuf {
		key = numberedKey([]byte{keyLeaves, keyNode}[rng.IntN(2)], c, 0)
	}
	b, err := s.get(key)
	if err != nil {
		return nil, err
	}
	bad := append([]byte(nil), b...)
	bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
	return func() { _ = s.db.Set(key, b, pebble.NoSync) }, s.db.Set(key, bad, pebble.NoSync)
}

// GarbleRecord overwrites the index entry of an object.
func GarbleRecord(s *Store, c cid.Cid, with []byte) error {
	return s.db.Set(cidKey(keyObject, c), with, pebble.Sync)
}

// Checkpointed waits until what a fetch saves in the background is saved.
func Checkpointed(p *Partial) { p.work.Wait() }
