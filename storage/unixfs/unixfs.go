// Package unixfs owns the two IPFS formats that give files and folders their CIDs: dag-pb nodes and the UnixFS message
// inside them, in the profile unixfs-v1-2025 (CIDv1, sha2-256, raw leaves of 1 MiB, at most 1024 links, balanced tree).
// It refuses to store or fetch anything: it turns values into bytes and hostile bytes into checked values.
//
// Formats: https://ipld.io/specs/codecs/dag-pb/spec/ and https://specs.ipfs.tech/unixfs/.
package unixfs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

const (
	// BlockSize is the size in bytes of every leaf of a file that this package lays out, except its last.
	BlockSize = 1 << 20
	// MaxLinks is the largest number of children of a file node.
	MaxLinks = 1024
	// MaxBlock is the largest block in bytes, leaf or node, that is accepted.
	MaxBlock = 1 << 20
	// MaxDepth is the largest number of node levels above the leaves of a file.
	MaxDepth = 4
	// MaxLeaves bounds the leaves of one file: 256 GiB of 1 MiB leaves.
	MaxLeaves = 1 << 18
	// MaxNodeBytes bounds the bytes of all interior nodes of one file, which are held in memory while it is resolved.
	MaxNodeBytes = 32 << 20
	// MaxName is the longest name in bytes of a directory entry.
	MaxName = 255
)

var (
	// ErrInvalid reports bytes that break the format, or values that the format cannot carry.
	ErrInvalid = errors.New("invalid UnixFS node")
	// ErrUnsupported reports valid UnixFS that this node does not read: symlinks, sharded directories, large leaves.
	ErrUnsupported = errors.New("unsupported UnixFS node")
)

// Digest is a sha2-256 hash, the only one accepted in a CID.
type Digest [sha256.Size]byte

// Sum hashes a block.
func Sum(block []byte) Digest { return sha256.Sum256(block) }

// DigestOf returns the digest inside a CID. Anything but CIDv1 with a full sha2-256 is an error.
func DigestOf(c cid.Cid) (Digest, error) {
	var d Digest
	if !c.Defined() || c.Version() != 1 {
		return d, fmt.Errorf("unixfs: %s is not a CIDv1: %w", c, ErrUnsupported)
	}
	mh, err := multihash.Decode(c.Hash())
	if err != nil {
		return d, fmt.Errorf("unixfs: %s: %w: %w", c, ErrInvalid, err)
	}
	if mh.Code != multihash.SHA2_256 || len(mh.Digest) != len(d) {
		return d, fmt.Errorf("unixfs: %s is not a sha2-256 CID: %w", c, ErrUnsupported)
	}
	copy(d[:], mh.Digest)
	return d, nil
}

// CID returns the CIDv1 of a digest under a codec such as [cid.Raw].
func (d Digest) CID(codec uint64) cid.Cid {
	mh := make([]byte, 0, 2+len(d))
	mh = append(mh, multihash.SHA2_256, byte(len(d)))
	return cid.NewCidV1(codec, append(mh, d[:]...))
}

// RawCID returns the CID of bytes as one raw leaf.
func RawCID(block []byte) cid.Cid { return Sum(block).CID(cid.Raw) }

// NodeCID returns the CID of an encoded dag-pb node.
func NodeCID(block []byte) cid.Cid { return Sum(block).CID(cid.DagProtobuf) }

// CheckName refuses directory entry names that could leave the folder they are written to, or that file systems refuse.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("unixfs: entry name %q is reserved: %w", name, ErrInvalid)
	case len(name) > MaxName:
		return fmt.Errorf("unixfs: entry name of %d bytes, limit %d: %w", len(name), MaxName, ErrInvalid)
	case strings.ContainsAny(name, "/\\\x00"):
		return fmt.Errorf("unixfs: entry name %q holds a separator: %w", name, ErrInvalid)
	}
	return nil
}
