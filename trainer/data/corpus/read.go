package corpus

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxWindow bounds the memory that a zstd file may ask of the decoder: 128 MiB, what `zstd --long=27` writes.
	maxWindow = 128 << 20
	// Text that unpacks to more than bombRatio times its size is no text; the first bombFree bytes are not judged.
	bombRatio = 250
	bombFree  = 16 << 20
	// headBytes is what the format of a file is told from.
	headBytes = 64 << 10
)

var (
	errBinary  = errors.New("binary")
	errBomb    = fmt.Errorf("unpacks to more than %d times its size", bombRatio)
	errDamaged = errors.New("damaged") // a format's own complaint; its text follows
)

// read reads one file. An error ends the whole reading; what is wrong with the file alone is counted.
func (r *reading) read() error {
	c := &r.counts
	c.Files++
	f, err := os.OpenFile(r.file.path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe put in the file's place must not block
	if err != nil {
		c.Unreadable++
		c.problem(r.file.path, "%v", reason(err))
		return nil
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil || !before.Mode().IsRegular() {
		c.Special++
		return nil
	}
	err = r.content(f, before.Size())
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrField), errors.Is(err, ErrOptions):
		return err
	case errors.Is(err, errBinary):
		c.Binary++
	case errors.Is(err, errBomb):
		c.Bombs++
		c.problem(r.file.path, "%v", err)
	case errors.Is(err, ErrFormat):
		c.Unsupported++
		c.problem(r.file.path, "%v", err)
	case isDisk(err):
		c.Unreadable++
		c.problem(r.file.path, "%v", reason(err))
	default:
		c.Damaged++
		c.problem(r.file.path, "%v", reason(err))
	}
	if after, err := os.Stat(r.file.path); err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		c.Changed++
		c.problem(r.file.path, "changed while it was read")
	}
	return nil
}

// isDisk tells an error of the system from one of the content.
func isDisk(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path)
}

// reason drops the path that an error of the system repeats.
func reason(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends in the middle")
	}
	return err
}

// content finds out what a file is and reads it.
func (r *reading) content(f *os.File, size int64) error {
	if size == 0 {
		r.counts.Empty++
		return nil
	}
	in := bufio.NewReaderSize(f, headBytes)
	head, err := in.Peek(headBytes)
	if err != nil && err != io.EOF {
		return err
	}
	format := r.o.Format
	if format == Auto {
		format = detect(r.file.path, head)
	}
	if format == Parquet {
		return r.parquet(f, size)
	}
	stream, err := unpack(in, head)
	if err != nil {
		return err
	}
	defer stream.close()
	if stream.packed {
		in = bufio.NewReaderSize(stream, headBytes)
		if head, err = in.Peek(headBytes); err != nil && err != io.EOF {
			if len(head) == 0 {
				return err
			}
		}
		if r.o.Format == Auto {
			format = detect(plainName(r.file.path), head)
		}
	}
	return r.stream(format, in, head, size)
}

// stream reads what unpacking left, in its format.
func (r *reading) stream(format Format, in *bufio.Reader, head []byte, size int64) error {
	if len(head) == 0 {
		r.counts.Empty++
		return nil
	}
	switch format {
	case Text:
		return r.text(in)
	case JSONL:
		return r.jsonl(in)
	case CSV:
		return r.csv(in)
	case WebDataset:
		return r.tar(in)
	case Tokens:
		return r.tokens(in, size)
	case Parquet:
		return fmt.Errorf("corpus: %w: Parquet inside compression: unpack the file first", ErrFormat)
	}
	return format.refuse()
}

// unpacked is a stream that may be decompressed on the way.
type unpacked struct {
	io.Reader
	packed bool
	close  func()
}

// unpack decompresses what begins like gzip or Zstandard, whatever its name.
func unpack(in *bufio.Reader, head []byte) (unpacked, error) {
	u := unpacked{Reader: in, close: func() {}}
	guard := &guarded{packed: counter{r: in}}
	switch {
	case len(head) > 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err := gzip.NewReader(&guard.packed)
		if err != nil {
			return u, err
		}
		guard.r = z
	case len(head) > 4 && string(head[:4]) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(&guard.packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return u, err
		}
		guard.r, u.close = z, z.Close
	default:
		return u, nil
	}
	u.Reader, u.packed = guard, true
	return u, nil
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// guarded ends a stream that unpacks to more than any text.
type guarded struct {
	r      io.Reader
	packed counter
	out    int64
}

func (g *guarded) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if g.out += int64(n); g.out > bombFree && g.out/bombRatio > g.packed.n {
		return n, errBomb
	}
	return n, err
}

// plainName is the name of a compressed file's content.
func plainName(path string) string {
	for _, suffix := range []string{".gz", ".zst", ".gzip", ".zstd"} {
		if plain, ok := strings.CutSuffix(path, suffix); ok {
			return plain
		}
	}
	if plain, ok := strings.CutSuffix(path, ".tgz"); ok {
		return plain + ".tar"
	}
	return path
}
