package corpus

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

// The kinds of pages, and how values are written in them.
const (
	dataPage       = 0
	dictionaryPage = 2
	dataPageV2     = 3

	plain               = 0
	plainDictionary     = 2
	deltaLength         = 6
	deltaByteArray      = 7
	rleDictionary       = 8
	maxHeader           = 1 << 20 // bytes of one page's header; its statistics may hold two values
	maxDictionaryValues = 1 << 24
)

// columnReader reads the pages of one column chunk.
type columnReader struct {
	r     *reading
	f     io.ReaderAt
	size  int64
	leaf  leafColumn
	chunk columnChunk

	in         *bufio.Reader
	dictionary [][]byte
	raw, page  []byte
	inflate    *zstd.Decoder
	out        int64 // bytes of text handed over
}

type pageHeader struct {
	kind, unpacked, packed int64
	values, nulls          int64
	encoding               int64
	levels                 int64 // bytes of both kinds of levels, in a page of the second form
	definition             int64 // of them, of definition levels
	compressed             bool
}

// read hands over each value of the chunk. An error says that the rest of it cannot be read.
func (c *columnReader) read() error {
	if c.chunk.from < 4 || c.chunk.length < 0 || c.chunk.from > c.size || c.chunk.length > c.size-c.chunk.from {
		return fmt.Errorf("%w: a column outside the file", errParquet)
	}
	c.in = bufio.NewReaderSize(io.NewSectionReader(c.f, c.chunk.from, c.chunk.length), maxHeader)
	defer func() {
		if c.inflate != nil {
			c.inflate.Close()
		}
	}()
	for done := int64(0); done < c.chunk.values; {
		if err := c.r.ctx.Err(); err != nil {
			return err
		}
		h, err := c.header()
		if err == nil {
			err = c.load(h)
		}
		if err != nil {
			c.r.counts.LostRows += c.chunk.values - done
			return err
		}
		switch h.kind {
		case dictionaryPage:
			if err := c.loadDictionary(h); err != nil {
				c.r.counts.LostRows += c.chunk.values - done
				return err
			}
		case dataPage, dataPageV2:
			if h.values <= 0 || h.values > c.chunk.values-done {
				return fmt.Errorf("%w: a page of %d values", errParquet, h.values)
			}
			if err := c.data(h); err != nil {
				return err
			}
			done += h.values
		}
	}
	return nil
}

// header reads the header of the next page.
func (c *columnReader) header() (h pageHeader, err error) {
	head, err := c.in.Peek(maxHeader)
	if len(head) == 0 {
		return h, fmt.Errorf("%w: a column ends before its last page: %w", errParquet, errors.Join(err))
	}
	h.compressed = true
	var repetition int64
	t := &thrift{b: head}
	t.fields(func(id int64, typ byte) bool {
		if typ == thriftI32 && id <= 3 {
			*[]*int64{&h.kind, &h.unpacked, &h.packed}[max(id, 1)-1] = t.int()
			return true
		}
		if typ != thriftStruct || id != 5 && id != 7 && id != 8 {
			return false
		}
		t.fields(func(sub int64, typ byte) bool {
			if id == 8 && sub == 7 && (typ == thriftTrue || typ == thriftFalse) {
				h.compressed = typ == thriftTrue
				return true
			}
			if typ != thriftI32 {
				return false
			}
			v := t.int()
			switch {
			case sub == 1:
				h.values = v
			case sub == 2 && id != 8, sub == 4 && id == 8:
				h.encoding = v
			case sub == 2 && id == 8:
				h.nulls = v
			case sub == 5 && id == 8:
				h.definition = v
			case sub == 6 && id == 8:
				repetition = v
			}
			return true
		})
		return true
	})
	if t.err != nil {
		return h, t.err
	}
	h.levels = h.definition + repetition
	if h.packed < 0 || h.unpacked < 0 || h.definition < 0 || repetition < 0 || h.levels > h.unpacked || h.levels > h.packed {
		return h, fmt.Errorf("%w: a page with impossible sizes", errParquet)
	}
	if h.packed > maxPage || h.unpacked > maxPage {
		return h, fmt.Errorf("corpus: %w: a Parquet page of %d bytes, limit %d: write the file with smaller pages", ErrFormat, max(h.packed, h.unpacked), maxPage)
	}
	_, err = c.in.Discard(t.i)
	return h, err
}

// load reads and unpacks a page. What a page claims is only allocated where as many bytes are there, or compression could
// have saved them.
func (c *columnReader) load(h pageHeader) error {
	c.raw = grow(c.raw, int(min(h.packed, c.chunk.length)))
	if int64(len(c.raw)) < h.packed {
		return io.ErrUnexpectedEOF
	}
	if _, err := io.ReadFull(c.in, c.raw); err != nil {
		return err
	}
	if h.kind != dictionaryPage && h.kind != dataPage && h.kind != dataPageV2 {
		return nil
	}
	levels := 0
	if h.kind == dataPageV2 {
		levels = int(h.levels)
	}
	if c.chunk.codec == 0 || !h.compressed {
		c.page = append(c.page[:0], c.raw...)
	} else {
		body, err := c.unpack(c.raw[levels:], int(h.unpacked)-levels)
		if err != nil {
			return err
		}
		c.page = append(append(c.page[:0], c.raw[:levels]...), body...)
	}
	if int64(len(c.page)) != h.unpacked {
		return fmt.Errorf("%w: a page of %d bytes, its header says %d", errParquet, len(c.page), h.unpacked)
	}
	return nil
}

// grow returns a slice of n bytes, from b's memory where that is enough.
func grow(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	return make([]byte, n)
}

// unpack decompresses a page of at most n bytes.
func (c *columnReader) unpack(packed []byte, n int) (out []byte, err error) {
	switch c.chunk.codec {
	case 1:
		if m, err := snappy.DecodedLen(packed); err != nil || m > n {
			return nil, fmt.Errorf("%w: snappy", errParquet)
		}
		out, err = snappy.Decode(nil, packed)
	case 2:
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(packed)); err == nil {
			out, err = io.ReadAll(io.LimitReader(z, int64(n)+1))
		}
	case 6:
		if c.inflate == nil {
			c.inflate, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPage), zstd.WithDecodeAllCapLimit(true))
		}
		if err == nil {
			out, err = c.inflate.DecodeAll(packed, make([]byte, 0, n))
		}
	case 7:
		out, err = lz4Block(packed, n)
	default:
		return nil, fmt.Errorf("corpus: %w: Parquet with codec %d: write it with zstd, snappy, gzip, lz4_raw or none", ErrFormat, c.chunk.codec)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: a page does not unpack: %w", errParquet, err)
	}
	return out, nil
}

// loadDictionary keeps the values that pages refer to by number.
func (c *columnReader) loadDictionary(h pageHeader) error {
	if h.values < 0 || h.values > maxDictionaryValues || h.values > int64(len(c.page)) {
		return fmt.Errorf("%w: a dictionary of %d values in %d bytes", errParquet, h.values, len(c.page))
	}
	c.dictionary = make([][]byte, 0, h.values)
	err := eachPlain(c.page, int(h.values), func(v []byte) error {
		c.dictionary = append(c.dictionary, v)
		return nil
	})
	c.page = nil // the dictionary points into it
	return err
}

// data hands over the values of one page.
func (c *columnReader) data(h pageHeader) error {
	body := c.page
	present := int(h.values)
	if c.leaf.optional > 0 {
		levels := body
		if h.kind == dataPageV2 {
			levels, body = body[h.levels-h.definition:h.levels], body[h.levels:]
		} else {
			if len(body) < 4 || int64(binary.LittleEndian.Uint32(body)) > int64(len(body)-4) {
				return fmt.Errorf("%w: levels beyond their page", errParquet)
			}
			n := binary.LittleEndian.Uint32(body)
			levels, body = body[4:4+n], body[4+n:]
		}
		var err error
		if present, err = countLevel(levels, int(h.values), c.leaf.optional); err != nil {
			return err
		}
	} else if h.kind == dataPageV2 {
		body = body[h.levels:]
	}
	c.r.counts.Records += h.values - int64(present)
	c.r.counts.NoText += h.values - int64(present)
	before := c.r.counts.Records
	err := c.values(h.encoding, body, present)
	if err != nil {
		c.r.counts.LostRows += int64(present) - (c.r.counts.Records - before)
	}
	return err
}

// value hands over one text.
func (c *columnReader) value(v []byte) error {
	c.r.counts.Records++
	if len(v) > MaxRecord {
		c.r.counts.TooLong++
		return nil
	}
	if c.out += int64(len(v)); c.out > bombFree && c.out/bombRatio > c.chunk.length {
		return errBomb // a dictionary repeats a long text without end
	}
	return c.r.record(v)
}

// values hands over n texts.
func (c *columnReader) values(encoding int64, body []byte, n int) error {
	var all [][]byte
	var err error
	switch encoding {
	case plain:
		return eachPlain(body, n, c.value)
	case plainDictionary, rleDictionary:
		return eachOf(c.dictionary, body, n, c.value)
	case deltaLength:
		all, err = deltaLengthValues(body, n)
	case deltaByteArray:
		all, err = deltaValues(body, n)
	default:
		err = fmt.Errorf("corpus: %w: Parquet encoding %d", ErrFormat, encoding)
	}
	for _, v := range all {
		if err == nil {
			err = c.value(v)
		}
	}
	return err
}
