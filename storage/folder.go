package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// maxExport bounds the entries of one exported folder: a small hostile folder can name itself many times over.
const maxExport = 1 << 17

// maxFolderDepth bounds how deep folders that are added or exported may nest.
const maxFolderDepth = 64

// AddPath stores a file or a folder of the operating system and returns its CID. The files of a folder become cached
// objects that the folder protects; hidden files are included; symbolic links and devices are refused. With opts.InPlace files
// are added as [Store.AddInPlace] does; what only a folder protects is forgotten with it.
func (s *Store) AddPath(ctx context.Context, path string, opts PutOptions) (cid.Cid, error) {
	if err := checkPut(opts); err != nil {
		return cid.Undef, err
	}
	a := adder{s: s}
	defer a.release()
	c, _, err := a.add(ctx, path, opts, 0)
	if err != nil {
		return cid.Undef, fmt.Errorf("storage: add %s: %w", path, s.diskError(err))
	}
	return c, nil
}

// adder adds a tree and protects what it has added until the root does.
type adder struct {
	s     *Store
	holds []func()
}

func (a *adder) hold(c cid.Cid) { a.holds = append(a.holds, a.s.hold(c)) }

func (a *adder) release() {
	for _, f := range a.holds {
		f()
	}
}

// add returns the CID of a path and the bytes of all blocks below it.
func (a *adder) add(ctx context.Context, path string, opts PutOptions, depth int) (cid.Cid, uint64, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return cid.Undef, 0, err
	}
	switch {
	case st.Mode().IsRegular():
		return a.addFile(ctx, path, opts)
	case st.IsDir() && depth <= maxFolderDepth:
		return a.addFolder(ctx, path, opts, depth)
	}
	return cid.Undef, 0, fmt.Errorf("%s is neither a file nor a folder, or nests too deep: %w", path, ErrWrongKind)
}

// addFile returns the CID of a file and the bytes of its blocks.
func (a *adder) addFile(ctx context.Context, path string, opts PutOptions) (cid.Cid, uint64, error) {
	put := a.copyFile
	if opts.InPlace {
		put = a.s.AddInPlace
	}
	info, err := put(ctx, path, opts)
	if err != nil {
		return cid.Undef, 0, err
	}
	rec, err := a.s.record(info.CID)
	return info.CID, uint64(rec.Size + rec.NodeBytes), err
}

// copyFile copies a file into the store. One that is written meanwhile would be a mix of what it was and what it becomes.
func (a *adder) copyFile(ctx context.Context, path string, opts PutOptions) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	opts.Size = before.Size()
	opts.whole = func() error {
		after, err := f.Stat()
		if err == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
			err = fmt.Errorf("it was written while it was read: add it again when nothing writes to it: %w", ErrChanged)
		}
		return err
	}
	return a.s.PutFile(ctx, f, opts.Size, opts)
}

func (a *adder) addFolder(ctx context.Context, path string, opts PutOptions, depth int) (cid.Cid, uint64, error) {
	entries, err := os.ReadDir(path) // sorted by name, as UnixFS wants
	if err != nil {
		return cid.Undef, 0, err
	}
	node := unixfs.Node{Kind: unixfs.Directory}
	var below uint64
	for _, e := range entries {
		if err := unixfs.CheckName(e.Name()); err != nil {
			return cid.Undef, 0, err
		}
		c, size, err := a.add(ctx, filepath.Join(path, e.Name()), PutOptions{Class: Cached, InPlace: opts.InPlace, Cut: opts.Cut, keep: a.hold}, depth+1)
		if err != nil {
			return cid.Undef, 0, err
		}
		node.Links = append(node.Links, unixfs.Link{CID: c, Name: e.Name(), Tsize: size})
		below += size
	}
	block, err := node.Encode()
	if err != nil {
		return cid.Undef, 0, err
	}
	opts.Size, opts.InPlace = 0, false
	info, err := a.s.PutBlock(ctx, unixfs.NodeCID(block), block, opts)
	return info.CID, below + uint64(len(block)), err
}

// Entry is one name in a folder.
type Entry struct {
	Name string
	CID  cid.Cid
}

// Entries lists a folder by name.
func (s *Store) Entries(ctx context.Context, c cid.Cid) ([]Entry, error) {
	node, err := s.directory(ctx, c)
	if err != nil {
		return nil, err
	}
	out := make([]Entry, len(node.Links))
	for i, l := range node.Links {
		out[i] = Entry{l.Name, l.CID}
	}
	return out, nil
}

// Export writes an object to dest: content as a file, which replaces a file that is there, a folder as a new folder. dest
// appears complete or not at all. Names in a folder that could leave it are refused.
func (s *Store) Export(ctx context.Context, c cid.Cid, dest string) error {
	if err := s.export(ctx, c, dest); err != nil {
		return fmt.Errorf("storage: export %s to %s: %w", c, dest, s.diskError(err))
	}
	return nil
}

func (s *Store) export(ctx context.Context, c cid.Cid, dest string) (err error) {
	rec, err := s.record(c)
	if err != nil {
		return err
	}
	dest = filepath.Clean(dest)
	parent := filepath.Dir(dest)
	if st, statErr := os.Lstat(dest); statErr == nil && (rec.Kind == Directory || st.IsDir()) {
		return fmt.Errorf("the path is taken: %w", ErrExists)
	}
	temp, err := os.MkdirTemp(parent, ".export-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	root, err := os.OpenRoot(temp)
	if err != nil {
		return err
	}
	defer root.Close()
	x := exporter{s: s, left: maxExport}
	if err := x.write(ctx, root, "new", c, 0); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(temp, "new"), dest); err != nil {
		return err
	}
	return syncFolder(parent)
}

type exporter struct {
	s    *Store
	left int
}

// write exports one object under a checked name inside an opened folder.
func (x *exporter) write(ctx context.Context, dir *os.Root, name string, c cid.Cid, depth int) error {
	if x.left--; x.left < 0 || depth > maxFolderDepth {
		return fmt.Errorf("more than %d entries or %d levels: %w", maxExport, maxFolderDepth, ErrTooLarge)
	}
	rec, err := x.s.record(c)
	if err != nil {
		return err
	}
	if rec.Kind != Directory {
		return x.writeFile(ctx, dir, name, c)
	}
	entries, err := x.s.Entries(ctx, c)
	if err != nil {
		return err
	}
	if err := dir.Mkdir(name, 0o755); err != nil {
		return err
	}
	sub, err := dir.OpenRoot(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	for _, e := range entries {
		if err := x.write(ctx, sub, e.Name, e.CID, depth+1); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	d, err := sub.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (x *exporter) writeFile(ctx context.Context, dir *os.Root, name string, c cid.Cid) error {
	r, err := x.s.Open(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = r.exportTo(ctx, f)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil && !errors.Is(err, fs.ErrInvalid) {
		return errors.Join(err, d.Close())
	}
	return d.Close()
}
