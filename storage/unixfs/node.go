package unixfs

import (
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/encoding/protowire"
)

// Kind is the UnixFS data type of a node, with the numbers of the UnixFS protobuf.
type Kind int

const (
	// Directory is a folder: links sorted by name.
	Directory Kind = 1
	// File is an interior node of a file: links in the order of the bytes.
	File Kind = 2
)

// Link is one child of a node.
type Link struct {
	CID   cid.Cid
	Name  string // entry name in a directory, empty in a file
	Tsize uint64 // bytes of the child's block and of everything below it, as claimed by the parent
}

// Node is one decoded dag-pb block that holds UnixFS.
type Node struct {
	Kind       Kind
	FileSize   uint64   // content bytes below a file node
	BlockSizes []uint64 // content bytes below each link of a file node
	Links      []Link
}

// Protobuf field numbers of dag-pb and UnixFS.
const (
	pbNodeData  protowire.Number = 1
	pbNodeLinks protowire.Number = 2

	pbLinkHash  protowire.Number = 1
	pbLinkName  protowire.Number = 2
	pbLinkTsize protowire.Number = 3

	ufType       protowire.Number = 1
	ufFileSize   protowire.Number = 3
	ufBlockSizes protowire.Number = 4
	ufMode       protowire.Number = 7
	ufMtime      protowire.Number = 8
)

// Encode returns the canonical bytes of a valid node: links before data, fields in ascending order.
func (n Node) Encode() ([]byte, error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	var block, link []byte
	for _, l := range n.Links {
		link = protowire.AppendTag(link[:0], pbLinkHash, protowire.BytesType)
		link = protowire.AppendBytes(link, l.CID.Bytes())
		link = protowire.AppendTag(link, pbLinkName, protowire.BytesType)
		link = protowire.AppendString(link, l.Name)
		link = protowire.AppendTag(link, pbLinkTsize, protowire.VarintType)
		link = protowire.AppendVarint(link, l.Tsize)
		block = protowire.AppendTag(block, pbNodeLinks, protowire.BytesType)
		block = protowire.AppendBytes(block, link)
	}
	data := protowire.AppendTag(nil, ufType, protowire.VarintType)
	data = protowire.AppendVarint(data, uint64(n.Kind))
	if n.Kind == File {
		data = protowire.AppendTag(data, ufFileSize, protowire.VarintType)
		data = protowire.AppendVarint(data, n.FileSize)
		for _, s := range n.BlockSizes {
			data = protowire.AppendTag(data, ufBlockSizes, protowire.VarintType)
			data = protowire.AppendVarint(data, s)
		}
	}
	block = protowire.AppendTag(block, pbNodeData, protowire.BytesType)
	block = protowire.AppendBytes(block, data)
	if len(block) > MaxBlock {
		return nil, fmt.Errorf("unixfs: node of %d bytes, limit %d: too many or too long entries: %w",
			len(block), MaxBlock, ErrUnsupported)
	}
	return block, nil
}

// Decode reads one hostile dag-pb block. What it returns satisfies every rule that Encode asks for.
func Decode(block []byte) (Node, error) {
	var n Node
	if len(block) > MaxBlock {
		return n, fmt.Errorf("unixfs: node of %d bytes, limit %d: %w", len(block), MaxBlock, ErrInvalid)
	}
	var data []byte
	for rest := block; len(rest) > 0; {
		num, value, used, err := bytesField(rest)
		if err != nil {
			return Node{}, err
		}
		rest = rest[used:]
		switch {
		case data != nil:
			return Node{}, fmt.Errorf("unixfs: field %d after the data: %w", num, ErrInvalid)
		case num == pbNodeLinks:
			l, err := decodeLink(value)
			if err != nil {
				return Node{}, err
			}
			n.Links = append(n.Links, l)
		case num == pbNodeData:
			data = value[:len(value):len(value)]
			if data == nil {
				data = []byte{}
			}
		default:
			return Node{}, fmt.Errorf("unixfs: unknown dag-pb field %d: %w", num, ErrInvalid)
		}
	}
	if err := n.decodeData(data); err != nil {
		return Node{}, err
	}
	if err := n.check(); err != nil {
		return Node{}, err
	}
	return n, nil
}

// bytesField consumes one length-delimited field.
func bytesField(b []byte) (protowire.Number, []byte, int, error) {
	num, typ, tag := protowire.ConsumeTag(b)
	if tag < 0 || typ != protowire.BytesType {
		return 0, nil, 0, fmt.Errorf("unixfs: broken protobuf tag: %w", ErrInvalid)
	}
	value, n := protowire.ConsumeBytes(b[tag:])
	if n < 0 {
		return 0, nil, 0, fmt.Errorf("unixfs: truncated protobuf field %d: %w", num, ErrInvalid)
	}
	return num, value, tag + n, nil
}

func decodeLink(b []byte) (Link, error) {
	var l Link
	last := protowire.Number(0)
	for len(b) > 0 {
		num, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 || num <= last {
			return l, fmt.Errorf("unixfs: link fields broken or out of order: %w", ErrInvalid)
		}
		last = num
		b = b[tag:]
		n := -1
		switch {
		case num == pbLinkHash && typ == protowire.BytesType:
			var raw []byte
			if raw, n = protowire.ConsumeBytes(b); n >= 0 {
				c, err := cid.Cast(raw)
				if err != nil {
					return l, fmt.Errorf("unixfs: link: %w: %w", ErrInvalid, err)
				}
				l.CID = c
			}
		case num == pbLinkName && typ == protowire.BytesType:
			l.Name, n = protowire.ConsumeString(b)
		case num == pbLinkTsize && typ == protowire.VarintType:
			l.Tsize, n = protowire.ConsumeVarint(b)
		}
		if n < 0 {
			return l, fmt.Errorf("unixfs: link field %d is broken: %w", num, ErrInvalid)
		}
		b = b[n:]
	}
	if !l.CID.Defined() {
		return l, fmt.Errorf("unixfs: link without a hash: %w", ErrInvalid)
	}
	return l, nil
}

func (n *Node) decodeData(b []byte) error {
	var seen [ufMtime + 1]bool
	for len(b) > 0 {
		num, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 || num > ufMtime || (seen[num] && num != ufBlockSizes) {
			return fmt.Errorf("unixfs: data fields broken, unknown or repeated: %w", ErrInvalid)
		}
		seen[num] = true
		b = b[tag:]
		var v uint64
		used := -1
		if typ == protowire.VarintType {
			v, used = protowire.ConsumeVarint(b)
		} else if num == ufMtime {
			used = protowire.ConsumeFieldValue(num, typ, b)
		}
		if used < 0 {
			return fmt.Errorf("unixfs: data field %d is broken or not readable here: %w", num, ErrUnsupported)
		}
		b = b[used:]
		switch num {
		case ufType:
			if v > math.MaxInt32 {
				return fmt.Errorf("unixfs: node type %d: %w", v, ErrInvalid)
			}
			n.Kind = Kind(v)
		case ufFileSize:
			n.FileSize = v
		case ufBlockSizes:
			n.BlockSizes = append(n.BlockSizes, v)
		case ufMode, ufMtime:
		default:
			return fmt.Errorf("unixfs: data field %d: %w", num, ErrUnsupported)
		}
	}
	return nil
}

// check holds the rules that both directions share.
func (n Node) check() error {
	for _, l := range n.Links {
		if _, err := DigestOf(l.CID); err != nil {
			return err
		}
	}
	switch n.Kind {
	case File:
		return n.checkFile()
	case Directory:
		return n.checkDirectory()
	}
	return fmt.Errorf("unixfs: node type %d: %w", n.Kind, ErrUnsupported)
}

func (n Node) checkFile() error {
	if len(n.Links) == 0 || len(n.Links) > MaxLinks || len(n.BlockSizes) != len(n.Links) {
		return fmt.Errorf("unixfs: file node with %d links and %d block sizes: %w", len(n.Links), len(n.BlockSizes), ErrInvalid)
	}
	var sum uint64
	for i, s := range n.BlockSizes {
		// Empty children would let a small node promise endless work.
		if s == 0 || s > math.MaxInt64-sum {
			return fmt.Errorf("unixfs: file node: child %d claims %d bytes: %w", i, s, ErrInvalid)
		}
		sum += s
		if n.Links[i].Name != "" {
			return fmt.Errorf("unixfs: file node: child %d has a name: %w", i, ErrInvalid)
		}
	}
	if sum != n.FileSize {
		return fmt.Errorf("unixfs: file node claims %d bytes, its children %d: %w", n.FileSize, sum, ErrInvalid)
	}
	return nil
}

func (n Node) checkDirectory() error {
	if n.FileSize != 0 || len(n.BlockSizes) != 0 {
		return fmt.Errorf("unixfs: directory with file sizes: %w", ErrInvalid)
	}
	for i, l := range n.Links {
		if err := CheckName(l.Name); err != nil {
			return err
		}
		if !utf8.ValidString(l.Name) {
			return fmt.Errorf("unixfs: entry name %q is not UTF-8: %w", l.Name, ErrInvalid)
		}
		if i > 0 && n.Links[i-1].Name >= l.Name {
			return fmt.Errorf("unixfs: entry %q is out of order or repeated: %w", l.Name, ErrInvalid)
		}
	}
	return nil
}
