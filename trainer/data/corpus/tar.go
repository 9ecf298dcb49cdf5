package corpus

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"path"
	"strings"
)

// tar reads a WebDataset: members of one base name are one sample. Its text members become documents: .txt and .md whole, of
// .json the text field. Images and sound of the sample are counted and passed over; [Format] has the names of the readers to come.
func (r *reading) tar(in *bufio.Reader) error {
	members := tar.NewReader(in)
	want := strings.Split(r.o.Field, ".")
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		h, err := members.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := r.member(members, h.Name, want); err != nil {
			return err
		}
	}
}

// member reads one member of a tar by the ending of its name.
func (r *reading) member(in io.Reader, name string, want []string) error {
	switch strings.ToLower(path.Ext(name)) {
	case ".txt", ".text", ".md":
		r.counts.Records++
		decoded, err := r.decode(bufio.NewReaderSize(in, headBytes))
		if err == nil {
			err = r.document(decoded, true)
		}
		if errors.Is(err, errBinary) {
			r.counts.BadRecords++
			return nil
		}
		return err
	case ".json":
		r.counts.Records++
		b, err := io.ReadAll(io.LimitReader(in, MaxRecord+1))
		if err != nil {
			return err
		}
		if len(b) > MaxRecord {
			r.counts.TooLong++
			return nil
		}
		text, what, surrogates := jsonText(b, want, nil)
		r.counts.Surrogates += surrogates
		switch what {
		case badJSON:
			r.counts.BadRecords++
		case noField:
			r.counts.NoField++ // the text of most samples is in .txt, their .json holds sizes and addresses
		case notText:
			r.counts.NoText++
		case gotText:
			return r.record(text)
		}
		return nil
	}
	r.counts.OtherMembers++
	return nil
}
