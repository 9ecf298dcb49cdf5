package round

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
)

// Hash is a SHA-256 sum: of a state, of a header, of an optimiser's moments.
type Hash [32]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads a hash in hexadecimal.
func ParseHash(text string) (h Hash, err error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return h, fmt.Errorf("round: hash %.80q: %w", text, ErrRecord)
	}
	return h, h.UnmarshalBinary(b)
}

// Short returns the first eight hexadecimal digits, for logs.
func (h Hash) Short() string { return hex.EncodeToString(h[:4]) }

// MarshalBinary makes a hash a CBOR byte string.
func (h Hash) MarshalBinary() ([]byte, error) { return h[:], nil }

// UnmarshalBinary accepts exactly 32 bytes.
func (h *Hash) UnmarshalBinary(b []byte) error {
	if len(b) != len(h) {
		return fmt.Errorf("round: hash of %d bytes, want %d: %w", len(b), len(h), ErrRecord)
	}
	copy(h[:], b)
	return nil
}

// Compare orders hashes by their bytes.
func (h Hash) Compare(o Hash) int { return bytes.Compare(h[:], o[:]) }

// sortedSet reports whether hashes are strictly ascending: a set in canonical form.
func sortedSet(hashes []Hash) bool {
	for i := 1; i < len(hashes); i++ {
		if hashes[i-1].Compare(hashes[i]) >= 0 {
			return false
		}
	}
	return true
}

// union returns the sorted union of two sorted sets.
func union(a, b []Hash) []Hash {
	all := slices.Concat(a, b)
	slices.SortFunc(all, Hash.Compare)
	return slices.Compact(all)
}

func contains(set []Hash, h Hash) bool {
	_, ok := slices.BinarySearchFunc(set, h, Hash.Compare)
	return ok
}
