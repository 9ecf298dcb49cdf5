package unixfs

import (
	"fmt"

	"github.com/ipfs/go-cid"
)

// Block is one encoded block and its CID.
type Block struct {
	CID  cid.Cid
	Data []byte
}

// Layout is the shape of one file: which leaves, in the order of the bytes, and which nodes bind them to one CID. Every
// leaf but the last has BlockSize bytes.
type Layout struct {
	Root      cid.Cid
	Size      int64 // content bytes
	BlockSize int64 // content bytes of every leaf but the last
	Leaves    []Digest
	Nodes     []Block // children before their parents, so the root is last; empty when the file is one raw leaf
}

// LeafSize returns the content bytes of leaf i.
func (l *Layout) LeafSize(i int) int64 {
	return min(l.BlockSize, l.Size-int64(i)*l.BlockSize)
}

// Build lays a file of at least one leaf of [BlockSize] out as a balanced tree. One leaf alone is its own root.
func Build(leaves []Digest, size int64) (*Layout, error) {
	count := max(1, (size+BlockSize-1)/BlockSize)
	if size < 0 || count > MaxLeaves || int64(len(leaves)) != count {
		return nil, fmt.Errorf("unixfs: %d leaves for %d bytes, limit %d leaves: %w", len(leaves), size, MaxLeaves, ErrInvalid)
	}
	out := &Layout{Size: size, BlockSize: BlockSize, Leaves: leaves}
	level := make([]subtree, len(leaves))
	for i, d := range leaves {
		s := uint64(out.LeafSize(i))
		level[i] = subtree{link: Link{CID: d.CID(cid.Raw), Tsize: s}, size: s}
	}
	for len(level) > 1 {
		next := make([]subtree, 0, (len(level)+MaxLinks-1)/MaxLinks)
		for len(level) > 0 {
			n := min(MaxLinks, len(level))
			parent, block, err := join(level[:n])
			if err != nil {
				return nil, err
			}
			out.Nodes = append(out.Nodes, block)
			next = append(next, parent)
			level = level[n:]
		}
		level = next
	}
	out.Root = level[0].link.CID
	return out, nil
}

// subtree is a child on its way to becoming a link: what its parent must know.
type subtree struct {
	link Link
	size uint64 // content bytes
}

func join(children []subtree) (subtree, Block, error) {
	n := Node{Kind: File, BlockSizes: make([]uint64, len(children)), Links: make([]Link, len(children))}
	var below uint64
	for i, c := range children {
		n.Links[i] = c.link
		n.BlockSizes[i] = c.size
		n.FileSize += c.size
		below += c.link.Tsize
	}
	data, err := n.Encode()
	if err != nil {
		return subtree{}, Block{}, err
	}
	c := NodeCID(data)
	return subtree{Link{CID: c, Tsize: below + uint64(len(data))}, n.FileSize}, Block{c, data}, nil
}

// Resolve reads the interior nodes of a file, root first, and returns its layout. get returns the block of a CID and must
// have verified its hash; whatever else the blocks say is checked here: sizes, depth, counts, uniform leaves.
func Resolve(root cid.Cid, get func(cid.Cid) ([]byte, error)) (*Layout, error) {
	r := resolver{get: get, out: &Layout{Root: root}}
	if err := r.walk(root, 0, 1); err != nil {
		return nil, err
	}
	return r.out, nil
}

type resolver struct {
	get       func(cid.Cid) ([]byte, error)
	out       *Layout
	nodeBytes int
	ended     bool // a leaf shorter than the block size was seen: nothing may follow
}

// walk reads the node c. A want of 0 means that nobody has claimed its size yet.
func (r *resolver) walk(c cid.Cid, want uint64, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("unixfs: %s: more than %d levels: %w", r.out.Root, MaxDepth, ErrInvalid)
	}
	block, err := r.get(c)
	if err != nil {
		return err
	}
	n, err := Decode(block)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	r.nodeBytes += len(block)
	switch {
	case n.Kind != File:
		return fmt.Errorf("unixfs: %s inside file %s is no file node: %w", c, r.out.Root, ErrInvalid)
	case want != 0 && want != n.FileSize:
		return fmt.Errorf("unixfs: %s has %d bytes, its parent claims %d: %w", c, n.FileSize, want, ErrInvalid)
	case r.nodeBytes > MaxNodeBytes:
		return fmt.Errorf("unixfs: %s: more than %d bytes of nodes: %w", r.out.Root, MaxNodeBytes, ErrUnsupported)
	}
	for i, l := range n.Links {
		switch l.CID.Type() {
		case cid.Raw:
			err = r.leaf(l.CID, n.BlockSizes[i])
		case cid.DagProtobuf:
			err = r.walk(l.CID, n.BlockSizes[i], depth+1)
		default:
			err = fmt.Errorf("unixfs: %s links to codec 0x%x: %w", c, l.CID.Type(), ErrUnsupported)
		}
		if err != nil {
			return err
		}
	}
	r.out.Nodes = append(r.out.Nodes, Block{c, block})
	return nil
}

func (r *resolver) leaf(c cid.Cid, size uint64) error {
	out := r.out
	if len(out.Leaves) == 0 {
		if size > MaxBlock {
			return fmt.Errorf("unixfs: %s: leaf of %d bytes, limit %d: %w", out.Root, size, MaxBlock, ErrUnsupported)
		}
		out.BlockSize = int64(size)
	}
	if r.ended || int64(size) > out.BlockSize {
		return fmt.Errorf("unixfs: %s: leaves of mixed size: %w", out.Root, ErrUnsupported)
	}
	if len(out.Leaves) == MaxLeaves {
		return fmt.Errorf("unixfs: %s: more than %d leaves: %w", out.Root, MaxLeaves, ErrUnsupported)
	}
	r.ended = int64(size) < out.BlockSize
	d, err := DigestOf(c)
	if err != nil {
		return err
	}
	out.Leaves = append(out.Leaves, d)
	out.Size += int64(size)
	return nil
}
