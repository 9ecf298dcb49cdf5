package corpus

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// errParquet reports a Parquet file that breaks its format.
var errParquet = errors.New("not valid Parquet")

// Types of the compact protocol of Apache Thrift, in which Parquet writes its metadata.
const (
	thriftTrue   = 1
	thriftFalse  = 2
	thriftI8     = 3
	thriftI16    = 4
	thriftI32    = 5
	thriftI64    = 6
	thriftDouble = 7
	thriftBinary = 8
	thriftList   = 9
	thriftSet    = 10
	thriftMap    = 11
	thriftStruct = 12

	maxThriftDepth = 32
)

// thrift reads hostile bytes in the compact protocol. The first error stays; reads after it give zeros.
type thrift struct {
	b     []byte
	i     int
	depth int
	err   error
}

func (t *thrift) fail(what string) {
	if t.err == nil {
		t.err = fmt.Errorf("%w: metadata: %s at byte %d", errParquet, what, t.i)
	}
	t.i = len(t.b)
}

func (t *thrift) byte() byte {
	if t.i >= len(t.b) {
		t.fail("it ends early")
		return 0
	}
	t.i++
	return t.b[t.i-1]
}

func (t *thrift) uvarint() uint64 {
	v, n := binary.Uvarint(t.b[min(t.i, len(t.b)):])
	if n <= 0 {
		t.fail("no number")
		return 0
	}
	t.i += n
	return v
}

// int reads an integer of any width.
func (t *thrift) int() int64 {
	v := t.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (t *thrift) bytes() []byte {
	n := t.uvarint()
	if n > uint64(len(t.b)-t.i) {
		t.fail("a text beyond the end")
		return nil
	}
	t.i += int(n)
	return t.b[t.i-int(n) : t.i]
}

// list reads a list's head and calls f for each element.
func (t *thrift) list(f func(typ byte)) {
	head := t.byte()
	n, typ := uint64(head>>4), head&15
	if n == 15 {
		n = t.uvarint()
	}
	if n > uint64(len(t.b)-t.i) { // an element takes a byte at least
		t.fail("a list beyond the end")
		return
	}
	for ; n > 0 && t.err == nil; n-- {
		f(typ)
	}
}

// fields reads a struct and calls f for each field; f reads the value or returns false to have it skipped.
func (t *thrift) fields(f func(id int64, typ byte) bool) {
	if t.depth++; t.depth > maxThriftDepth {
		t.fail("structures too deep")
		return
	}
	defer func() { t.depth-- }()
	for id := int64(0); t.err == nil; {
		head := t.byte()
		if head == 0 {
			return
		}
		if delta := head >> 4; delta != 0 {
			id += int64(delta)
		} else {
			id = t.int()
		}
		if typ := head & 15; !f(id, typ) {
			t.skip(typ)
		}
	}
}

func (t *thrift) skip(typ byte) {
	switch typ {
	case thriftTrue, thriftFalse: // the value is the type
	case thriftI8:
		t.byte()
	case thriftI16, thriftI32, thriftI64:
		t.uvarint()
	case thriftDouble:
		for range 8 {
			t.byte()
		}
	case thriftBinary:
		t.bytes()
	case thriftList, thriftSet:
		t.list(t.element)
	case thriftMap:
		if n := t.uvarint(); n > 0 {
			kinds := t.byte()
			for ; n > 0 && t.err == nil; n-- {
				t.element(kinds >> 4)
				t.element(kinds & 15)
			}
		}
	case thriftStruct:
		t.fields(func(int64, byte) bool { return false })
	default:
		t.fail("an unknown type")
	}
}

// element skips what a list or map holds, where a truth value takes a byte.
func (t *thrift) element(typ byte) {
	if t.depth++; t.depth > maxThriftDepth {
		t.fail("structures too deep")
	}
	if typ == thriftTrue || typ == thriftFalse {
		t.byte()
	} else {
		t.skip(typ)
	}
	t.depth--
}
