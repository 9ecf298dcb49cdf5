package corpus

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// tokenHeader is the header of llm.c token files: 256 little-endian 32-bit numbers, of which magic, version and count are used.
	tokenHeader = 1024
	// pieceTokens is how many ready tokens a piece holds.
	pieceTokens = PieceBytes / 4
)

// tokens reads a file of token numbers: with the header of llm.c, or bare as nanoGPT writes it. The numbers are not looked at
// here; who uses them compares each with the vocabulary. The whole file is one document: its ends of text are among them.
func (r *reading) tokens(in *bufio.Reader, size int64) error {
	width := r.o.Width
	left := int64(-1) // tokens that the header promises
	if head, err := in.Peek(tokenHeader); err == nil && tokenMagic(head) != 0 {
		width = tokenMagic(head)
		left = int64(binary.LittleEndian.Uint32(head[8:]))
		if _, err := in.Discard(tokenHeader); err != nil {
			return err
		}
	}
	r.counts.Records++
	buf := make([]byte, pieceTokens*width)
	var held *Piece
	for first := true; ; {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		want := len(buf)
		if left >= 0 {
			want = int(min(int64(want), left*int64(width)))
		}
		n, err := io.ReadFull(in, buf[:want])
		if n/width > 0 {
			if held != nil {
				if err := r.emit(*held); err != nil {
					return err
				}
			}
			held, first = &Piece{First: first, Tokens: numbersOf(buf[:n/width*width], width)}, false
			if left >= 0 {
				left -= int64(n / width)
			}
		}
		if end := err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !end {
			return err
		} else if !end && left != 0 {
			continue
		}
		if held != nil {
			held.Last = true
			if err := r.emit(*held); err != nil {
				return err
			}
		}
		return ended(in, left, n%width)
	}
}

// ended says whether a token file has as many tokens as it should.
func ended(in *bufio.Reader, left int64, odd int) error {
	switch _, err := in.Peek(1); {
	case left > 0:
		return fmt.Errorf("%w: %d tokens fewer than its header says", errDamaged, left)
	case odd != 0:
		return fmt.Errorf("%w: it ends within a token", errDamaged)
	case left == 0 && err == nil:
		return fmt.Errorf("%w: it goes on after the tokens of its header", errDamaged)
	}
	return nil
}

// numbersOf decodes little-endian tokens. One above 2³¹−1 is -1, which no vocabulary has.
func numbersOf(b []byte, width int) []int32 {
	out := make([]int32, len(b)/width)
	for i := range out {
		if width == 2 {
			out[i] = int32(binary.LittleEndian.Uint16(b[2*i:]))
		} else {
			out[i] = max(int32(binary.LittleEndian.Uint32(b[4*i:])), -1)
		}
	}
	return out
}
