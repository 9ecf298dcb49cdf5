package corpus

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// maxDeltas bounds the values of a page whose lengths are written as differences: those may take no space at all.
const maxDeltas = 1 << 22

// eachPlain calls f for n texts with 32-bit lengths before them.
func eachPlain(b []byte, n int, f func([]byte) error) error {
	for range n {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
			return fmt.Errorf("%w: a text beyond its page", errParquet)
		}
		end := 4 + int(binary.LittleEndian.Uint32(b))
		if err := f(b[4:end:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}

// eachOf looks up n numbers in a dictionary; they are written as runs, behind a byte with their width in bits.
func eachOf(dictionary [][]byte, b []byte, n int, f func([]byte) error) error {
	if n == 0 {
		return nil
	}
	if len(b) == 0 || b[0] > 32 {
		return fmt.Errorf("%w: numbers of a dictionary without their width", errParquet)
	}
	return eachRun(b[1:], int(b[0]), n, func(v uint64, times int) error {
		if v >= uint64(len(dictionary)) {
			return fmt.Errorf("%w: value %d of a dictionary of %d", errParquet, v, len(dictionary))
		}
		for range times {
			if err := f(dictionary[v]); err != nil {
				return err
			}
		}
		return nil
	})
}

// countLevel counts how many of n definition levels are the highest: the values that are not null.
func countLevel(b []byte, n, highest int) (present int, err error) {
	err = eachRun(b, bits.Len(uint(highest)), n, func(v uint64, times int) error {
		if v > uint64(highest) {
			return fmt.Errorf("%w: level %d of %d", errParquet, v, highest)
		}
		if v == uint64(highest) {
			present += times
		}
		return nil
	})
	return present, err
}

// eachRun decodes n numbers of a width in bits from Parquet's hybrid of runs and packed groups of eight.
func eachRun(b []byte, width, n int, f func(v uint64, times int) error) error {
	short := fmt.Errorf("%w: fewer numbers than values", errParquet)
	for n > 0 {
		head, used := binary.Uvarint(b)
		if used <= 0 {
			return short
		}
		b = b[used:]
		if head&1 == 0 {
			size := (width + 7) / 8
			times := min(head>>1, uint64(n))
			if len(b) < size || times == 0 {
				return short
			}
			var v uint64
			for i := range size {
				v |= uint64(b[i]) << (8 * i)
			}
			if err := f(v, int(times)); err != nil {
				return err
			}
			b, n = b[size:], n-int(times)
			continue
		}
		groups := head >> 1
		if width > 0 && groups > uint64(len(b)/width) {
			groups = uint64(len(b) / width) // the last group of a page may be cut
		}
		count := int(min(groups*8, uint64(n)))
		if count == 0 {
			return short
		}
		for i := range count {
			if err := f(packed(b, i*width, width), 1); err != nil {
				return err
			}
		}
		b, n = b[min(len(b), int(groups)*width):], n-count
	}
	return nil
}

// packed reads width bits from bit at on, lowest first. The caller has seen to it that they are there.
func packed(b []byte, at, width int) (v uint64) {
	for got := 0; got < width; {
		i := at + got
		take := min(8-i%8, width-got)
		v |= uint64(b[i/8]>>(i%8)&(0xff>>(8-take))) << got
		got += take
	}
	return v
}

// deltas decodes n numbers in DELTA_BINARY_PACKED and returns what follows them.
func deltas(b []byte, n int) (out []int64, rest []byte, err error) {
	bad := fmt.Errorf("%w: broken differences", errParquet)
	number := func() uint64 {
		v, used := binary.Uvarint(b)
		if used <= 0 {
			b, err = nil, bad
			return 0
		}
		b = b[used:]
		return v
	}
	signed := func() int64 { v := number(); return int64(v>>1) ^ -int64(v&1) }
	block, minis, count, value := number(), number(), number(), signed()
	if err != nil || n > maxDeltas || minis == 0 || minis > 512 || block == 0 || block > 1<<16 || block%minis != 0 || block/minis%8 != 0 || count != uint64(n) {
		return nil, nil, bad
	}
	per := int(block / minis)
	for out = append(out, value); len(out) < n; {
		least := signed()
		if err != nil || uint64(len(b)) < minis {
			return nil, nil, bad
		}
		widths := b[:minis]
		b = b[minis:]
		for _, w := range widths {
			if len(out) == n {
				break
			}
			size := per / 8 * int(w)
			if w > 64 || len(b) < size {
				return nil, nil, bad
			}
			for i := range min(per, n-len(out)) {
				value += least + int64(packed(b, i*int(w), int(w)))
				out = append(out, value)
			}
			b = b[size:]
		}
	}
	return out, b, nil
}

// deltaLengthValues decodes DELTA_LENGTH_BYTE_ARRAY: all lengths, then all texts.
func deltaLengthValues(b []byte, n int) ([][]byte, error) {
	if n == 0 {
		return nil, nil
	}
	lengths, rest, err := deltas(b, n)
	if err != nil {
		return nil, err
	}
	values := make([][]byte, n)
	for i, l := range lengths {
		if l < 0 || l > int64(len(rest)) {
			return nil, fmt.Errorf("%w: a text beyond its page", errParquet)
		}
		values[i], rest = rest[:l:l], rest[l:]
	}
	return values, nil
}

// deltaValues decodes DELTA_BYTE_ARRAY: lengths of what each text shares with the one before it, then the rests.
func deltaValues(b []byte, n int) ([][]byte, error) {
	if n == 0 {
		return nil, nil
	}
	shared, rest, err := deltas(b, n)
	if err != nil {
		return nil, err
	}
	values, err := deltaLengthValues(rest, n)
	if err != nil {
		return nil, err
	}
	total := 0
	for i, s := range shared {
		var before []byte
		if i > 0 {
			before = values[i-1]
		}
		if s < 0 || s > int64(len(before)) {
			return nil, fmt.Errorf("%w: a text shares more than there is", errParquet)
		}
		if total += int(s); total > maxPage { // sharing multiplies: the only place where a page grows
			return nil, fmt.Errorf("%w: texts of more than %d bytes in a page", errParquet, maxPage)
		}
		values[i] = append(append(make([]byte, 0, int(s)+len(values[i])), before[:s]...), values[i]...)
	}
	return values, nil
}

// lz4Block decodes a bare LZ4 block of exactly n bytes.
func lz4Block(b []byte, n int) ([]byte, error) {
	out := make([]byte, 0, n)
	length := func(v int) (int, bool) {
		if v != 15 {
			return v, true
		}
		for len(b) > 0 {
			c := b[0]
			b, v = b[1:], v+int(c)
			if v > n {
				return 0, false
			}
			if c != 255 {
				return v, true
			}
		}
		return 0, false
	}
	for len(b) > 0 {
		token := b[0]
		b = b[1:]
		literals, ok := length(int(token >> 4))
		if !ok || literals > len(b) || len(out)+literals > n {
			return nil, io.ErrUnexpectedEOF
		}
		out, b = append(out, b[:literals]...), b[literals:]
		if len(b) == 0 {
			break
		}
		if len(b) < 2 {
			return nil, io.ErrUnexpectedEOF
		}
		back := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		match, ok := length(int(token & 15))
		if match += 4; !ok || back == 0 || back > len(out) || len(out)+match > n {
			return nil, io.ErrUnexpectedEOF
		}
		for range match {
			out = append(out, out[len(out)-back])
		}
	}
	if len(out) != n {
		return nil, io.ErrUnexpectedEOF
	}
	return out, nil
}
