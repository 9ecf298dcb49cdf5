package storetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// spoil turns over one bit of a file, durably.
func (h Home) spoil(t *testing.T, name string, at int64) {
	t.Helper()
	f := must(h.FS.OpenReadWrite(name, vfs.WriteCategoryUnspecified))(t)
	b := make([]byte, 1)
	_, err := f.ReadAt(b, at)
	if err == nil {
		b[0] ^= 16
		_, err = f.WriteAt(b, at)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// testScrub spoils objects of three kinds: all are found, what peers have is repaired, and the files of the user are left alone.
func testScrub(t *testing.T, h Home) {
	ctx := context.Background()
	s := h.open(t, storage.Options{})
	defer closeStore(t, s)
	donor := must(storage.OpenMem())(t)
	defer closeStore(t, donor)
	dir := h.FS.PathJoin(h.Dir, "store")
	data := map[cid.Cid][]byte{}
	for i, size := range []int{100, 90 << 10, 90<<10 + 1, 2*unixfs.BlockSize + 7} {
		b := Bytes(uint64(i), size)
		c := must(s.PutBytes(ctx, b, storage.PutOptions{}))(t)
		must(donor.PutBytes(ctx, b, storage.PutOptions{}))(t)
		data[c] = b
	}
	bad := 0
	for _, name := range must(ObjectFiles(h.FS, dir, ".obj"))(t) {
		if st := must(h.FS.Stat(name))(t); st.Size() != 90<<10 {
			h.spoil(t, name, st.Size()-1)
			bad++
		}
	}
	path := h.write(t, "mine", Bytes(9, 70<<10))
	mine := must(s.AddInPlace(ctx, path, storage.PutOptions{}))(t).CID
	h.spoil(t, path, 5)

	var asked []cid.Cid
	rep, err := s.ScrubPass(ctx, storage.ScrubOptions{Rate: -1, Repair: func(ctx context.Context, c cid.Cid) error {
		asked = append(asked, c)
		return copyObject(ctx, donor, s, c)
	}})
	if err != nil || bad != 2 || len(rep.Faults) != 3 || rep.Repaired != 2 || rep.Objects != 5 || slices.Contains(asked, mine) {
		t.Fatalf("%+v, %v, %d spoilt, asked for %v", rep, err, bad, asked)
	}
	for c, want := range data {
		if got := must(s.ReadAll(ctx, c, 1<<30))(t); !bytes.Equal(got, want) {
			t.Fatalf("%s: other bytes after the repair", c)
		}
	}
	h.spoil(t, path, 5)
	if rep := must(s.ScrubPass(ctx, storage.ScrubOptions{Rate: -1}))(t); len(rep.Faults) != 0 || rep.Objects != 5 {
		t.Fatalf("%+v once all is well", rep)
	}
}

// copyObject brings an object from one store into another as a fetch does.
func copyObject(ctx context.Context, from, to *storage.Store, c cid.Cid) error {
	if c.Type() == cid.Raw {
		b, err := from.GetBlock(ctx, c, nil)
		if err == nil {
			_, err = to.PutBlock(ctx, c, b, storage.PutOptions{Class: storage.Cached})
		}
		return err
	}
	p, err := to.Begin(ctx, c, Nodes(ctx, from))
	if err != nil {
		return err
	}
	for _, i := range p.Missing() {
		b, err := from.GetBlock(ctx, p.Layout().Leaves[i].CID(cid.Raw), nil)
		if err == nil {
			err = p.Write(i, b)
		}
		if err != nil {
			return errors.Join(err, p.Close())
		}
	}
	_, err = p.Commit(ctx)
	return err
}

// testScrubResumes stops a scrub at a fault and goes on after a restart: what was seen is not read again.
func testScrubResumes(t *testing.T, h Home) {
	ctx := context.Background()
	s := h.open(t, storage.Options{})
	defer func() { closeStore(t, s) }()
	total := 0
	for i := range 6 {
		must(s.PutBytes(ctx, Bytes(uint64(i), 80<<10+i), storage.PutOptions{}))(t)
		total += 80<<10 + i
	}
	list := must(s.List(ctx))(t)
	for _, name := range must(ObjectFiles(h.FS, h.FS.PathJoin(h.Dir, "store"), list[2].CID.String()+".obj"))(t) {
		h.spoil(t, name, 1)
	}
	stop, cancel := context.WithCancel(ctx)
	_, err := s.ScrubPass(stop, storage.ScrubOptions{Rate: -1, Repair: func(context.Context, cid.Cid) error {
		cancel()
		return errors.New("no peer has it")
	}})
	wantErr(t, err, context.Canceled)
	closeStore(t, s)
	s = h.open(t, storage.Options{})
	rep := must(s.ScrubPass(ctx, storage.ScrubOptions{Rate: -1}))(t)
	if rep.Objects != 6 || len(rep.Faults) > 1 || rep.Bytes != int64(total)-list[2].Size {
		t.Fatalf("%+v of %d bytes", rep, total)
	}
}
