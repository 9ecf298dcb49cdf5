package corpus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	maxFooter = 64 << 20  // bytes of a Parquet file's metadata
	maxPage   = 128 << 20 // bytes of one page, unpacked: what a value of the longest record needs, with room
)

// parquet reads one text column of a Parquet file, row group by row group and page by page. The reader is ours because it is
// small, and because memory must be bounded whatever a file says of itself; docs/decisions/0005-parquet-reader.md.
func (r *reading) parquet(f io.ReaderAt, size int64) error {
	meta, err := readFooter(f, size)
	if err != nil {
		return err
	}
	leaf, err := meta.leaf(r.o.Field)
	if err != nil {
		if errors.Is(err, ErrField) {
			return r.noField(meta.texts())
		}
		return err
	}
	for _, group := range meta.groups {
		if leaf.index >= len(group) {
			return fmt.Errorf("%w: a row group lacks the column", errParquet)
		}
		c := columnReader{r: r, f: f, size: size, leaf: leaf, chunk: group[leaf.index]}
		if err := c.read(); err != nil {
			return err
		}
	}
	return nil
}

// parquetFile is the part of a file's metadata that reading a text column needs.
type parquetFile struct {
	leaves []leafColumn
	groups [][]columnChunk
}

// leafColumn is a column that holds values.
type leafColumn struct {
	name     string // path, joined with dots
	index    int
	typ      int64
	optional int // levels that may be null
	repeated bool
}

// columnChunk is where one column of one row group lies.
type columnChunk struct {
	codec            int64
	values           int64
	from, length     int64
	uncompressedSize int64
}

const byteArray = 6 // physical type of texts

func readFooter(f io.ReaderAt, size int64) (*parquetFile, error) {
	var tail [8]byte
	if size < 12 {
		return nil, fmt.Errorf("%w: %d bytes", errParquet, size)
	}
	if _, err := f.ReadAt(tail[:], size-8); err != nil {
		return nil, err
	}
	if string(tail[4:]) == "PARE" {
		return nil, fmt.Errorf("corpus: %w: encrypted Parquet", ErrFormat)
	}
	n := int64(binary.LittleEndian.Uint32(tail[:]))
	if string(tail[4:]) != "PAR1" || n > size-12 {
		return nil, fmt.Errorf("%w: it does not end like one: the file is cut", errParquet)
	}
	if n > maxFooter {
		return nil, fmt.Errorf("corpus: %w: Parquet metadata of %d bytes, limit %d", ErrFormat, n, maxFooter)
	}
	raw := make([]byte, n)
	if _, err := f.ReadAt(raw, size-8-n); err != nil {
		return nil, err
	}
	var m parquetFile
	var schema []schemaElement
	t := &thrift{b: raw}
	t.fields(func(id int64, typ byte) bool {
		switch {
		case id == 2 && typ == thriftList:
			t.list(func(byte) { schema = append(schema, readSchemaElement(t)) })
		case id == 4 && typ == thriftList:
			t.list(func(byte) { m.groups = append(m.groups, readRowGroup(t)) })
		default:
			return false
		}
		return true
	})
	if t.err != nil {
		return nil, t.err
	}
	return &m, m.flatten(schema)
}

type schemaElement struct {
	typ, repetition, children int64
	name                      string
}

func readSchemaElement(t *thrift) (e schemaElement) {
	e.typ = -1
	t.fields(func(id int64, typ byte) bool {
		switch {
		case id == 1 && typ == thriftI32:
			e.typ = t.int()
		case id == 3 && typ == thriftI32:
			e.repetition = t.int()
		case id == 4 && typ == thriftBinary:
			e.name = string(t.bytes())
		case id == 5 && typ == thriftI32:
			e.children = t.int()
		default:
			return false
		}
		return true
	})
	return e
}

func readRowGroup(t *thrift) (chunks []columnChunk) {
	t.fields(func(id int64, typ byte) bool {
		if id != 1 || typ != thriftList {
			return false
		}
		t.list(func(byte) {
			var c columnChunk
			t.fields(func(id int64, typ byte) bool {
				if id != 3 || typ != thriftStruct {
					return false
				}
				c = readColumn(t)
				return true
			})
			chunks = append(chunks, c)
		})
		return true
	})
	return chunks
}

func readColumn(t *thrift) (c columnChunk) {
	var data, dictionary int64
	t.fields(func(id int64, typ byte) bool {
		if typ != thriftI32 && typ != thriftI64 {
			return false
		}
		v := t.int()
		switch id {
		case 4:
			c.codec = v
		case 5:
			c.values = v
		case 6:
			c.uncompressedSize = v
		case 7:
			c.length = v
		case 9:
			data = v
		case 11:
			dictionary = v
		}
		return true
	})
	if c.from = data; dictionary > 0 && dictionary < data {
		c.from = dictionary
	}
	return c
}

// flatten lists the leaves of a schema, which is a tree in the order of a walk, each with its path.
func (m *parquetFile) flatten(schema []schemaElement) error {
	if len(schema) == 0 {
		return fmt.Errorf("%w: it has no schema", errParquet)
	}
	at := 1
	var walk func(children int64, prefix string, optional int, repeated bool, depth int) error
	walk = func(children int64, prefix string, optional int, repeated bool, depth int) error {
		for ; children > 0; children-- {
			if at >= len(schema) || depth > maxThriftDepth {
				return fmt.Errorf("%w: its schema does not add up", errParquet)
			}
			e := schema[at]
			at++
			o, rep := optional, repeated
			if e.repetition != 0 {
				o++
			}
			if rep = rep || e.repetition == 2; e.children > 0 {
				if err := walk(e.children, prefix+e.name+".", o, rep, depth+1); err != nil {
					return err
				}
				continue
			}
			m.leaves = append(m.leaves, leafColumn{prefix + e.name, len(m.leaves), e.typ, o, rep})
		}
		return nil
	}
	return walk(schema[0].children, "", 0, false, 0)
}

// leaf finds the text column of a name.
func (m *parquetFile) leaf(name string) (leafColumn, error) {
	for _, l := range m.leaves {
		if l.name != name {
			continue
		}
		if l.typ != byteArray || l.repeated {
			return l, fmt.Errorf("corpus: %w: column %q holds no text but numbers or lists", ErrField, name)
		}
		return l, nil
	}
	return leafColumn{}, ErrField
}

// texts lists the columns that could be read.
func (m *parquetFile) texts() []string {
	var names []string
	for _, l := range m.leaves {
		if l.typ == byteArray && !l.repeated {
			names = append(names, strings.ToValidUTF8(l.name, "?"))
		}
	}
	return names
}
