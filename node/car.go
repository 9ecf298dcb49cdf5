package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/car"
)

// Archive describes a CAR file that was written or read.
type Archive struct {
	Roots  []string `json:"roots"`
	Blocks int      `json:"blocks"`
	Bytes  int64    `json:"bytes"`
	Unused int      `json:"unused"` // blocks that were read and that no root reaches
}

func archiveOf(s car.Summary) Archive {
	a := Archive{Roots: []string{}, Blocks: s.Blocks, Bytes: s.Bytes, Unused: s.Unused}
	for _, c := range s.Roots {
		a.Roots = append(a.Roots, c.String())
	}
	return a
}

// WriteCAR writes an object, fetched from the network if need be, as a CAR.
func WriteCAR(ctx context.Context, u Use, what string, w io.Writer) (a Archive, err error) {
	err = u.with(ctx, func(n *Node) error {
		c, err := parseCID(what)
		if err != nil {
			return err
		}
		if err := n.need(ctx, c); err != nil {
			return err
		}
		out := bufio.NewWriterSize(w, 256<<10)
		s, err := car.Export(ctx, n.store, c, out)
		a = archiveOf(s)
		return errors.Join(err, out.Flush())
	})
	return a, err
}

// ExportCAR writes an object as a CAR file, which appears complete or not at all and replaces a file that is there.
func ExportCAR(ctx context.Context, u Use, what, path string) (a Archive, err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".export-*")
	if err != nil {
		return a, err
	}
	a, err = WriteCAR(ctx, u, what, f)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return a, errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return a, err
	}
	return a, errors.Join(d.Sync(), d.Close())
}

// ImportCAR stores what a CAR holds and pins its roots under their CIDs.
func ImportCAR(ctx context.Context, u Use, r io.Reader) (a Archive, err error) {
	err = u.with(ctx, func(n *Node) error {
		dir, err := n.home.sub("store", "objects", "incoming") // what is left here by a crash is removed at the next start
		if err != nil {
			return err
		}
		s, err := car.Import(ctx, n.store, r, car.Options{Pin: cid.Cid.String, Dir: dir})
		a = archiveOf(s)
		if errors.Is(err, car.ErrTruncated) || errors.Is(err, storage.ErrCorrupt) {
			err = fmt.Errorf("%w: copy the file again; nothing was stored", err)
		}
		return err
	})
	return a, err
}
