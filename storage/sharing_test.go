package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// part is one piece of the files of these tests: equal numbers are equal bytes. Sizes differ from part to part.
func part(n uint64) []byte { return partPool()[n] }

var partPool = sync.OnceValue(func() (all [24][]byte) {
	for n := range all {
		all[n] = storetest.Bytes(1000+uint64(n), 132<<10+n*977)
	}
	return all
})

// assemble makes a file of parts and the cutter that knows them. A file of eight parts is larger than one block.
func assemble(parts ...uint64) ([]byte, storage.Cutter) {
	var data []byte
	var ends []int64
	for _, n := range parts {
		data = append(data, part(n)...)
		ends = append(ends, int64(len(data)))
	}
	return data, func(io.ReaderAt, int64) []int64 { return ends }
}

func putParts(t testing.TB, s *storage.Store, opts storage.PutOptions, parts ...uint64) storage.Info {
	t.Helper()
	data, cutter := assemble(parts...)
	opts.Cut = cutter
	info, err := s.PutFile(context.Background(), bytes.NewReader(data), int64(len(data)), opts)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func readsAs(t testing.TB, s *storage.Store, c cid.Cid, parts ...uint64) {
	t.Helper()
	want, _ := assemble(parts...)
	got, err := s.ReadAll(context.Background(), c, int64(len(want)))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, %v; want %d", c, len(got), err, len(want))
	}
}

func partBytes(parts ...uint64) (sum int64) {
	for _, n := range parts {
		sum += int64(len(part(n)))
	}
	return sum
}

func TestEqualPartsAreStoredOnce(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir(), storage.Options{})
	first := putParts(t, s, storage.PutOptions{Class: storage.Cached}, 1, 2, 3, 4, 5, 6, 7, 8)
	before := s.Usage().Used
	// Part 3 twice: in the file before, and in itself. Part 20 twice in itself.
	second := putParts(t, s, storage.PutOptions{Pin: "second", Class: storage.Cached}, 20, 2, 3, 20, 5, 21, 3, 8)
	if want := partBytes(2, 3, 20, 5, 3, 8); second.Shared != want {
		t.Fatalf("%d bytes are shared, want %d", second.Shared, want)
	}
	if grown := s.Usage().Used - before; grown > partBytes(20, 21)+4096 {
		t.Fatalf("the store grew by %d bytes for %d", grown, partBytes(20, 21))
	}
	readsAs(t, s, second.CID, 20, 2, 3, 20, 5, 21, 3, 8)

	// The one that holds the shared parts goes; they stay.
	if removed, err := s.GC(ctx); err != nil || removed.Objects != 1 || removed.Bytes > partBytes(1, 4, 6, 7)+4096 {
		t.Fatalf("%+v, %v", removed, err)
	}
	if _, err := s.Stat(ctx, first.CID); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	readsAs(t, s, second.CID, 20, 2, 3, 20, 5, 21, 3, 8)
	if info, err := s.Stat(ctx, second.CID); err != nil || info.Shared != partBytes(20, 3) {
		t.Fatalf("%+v, %v: only its own repetitions are shared now", info, err)
	}
	if rep, err := s.Verify(ctx); err != nil || len(rep.Faults) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestReadersOutliveTheMoveOfSharedParts(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir(), storage.Options{})
	first := putParts(t, s, storage.PutOptions{}, 1, 2, 3, 4, 5, 6, 7, 8)
	second := putParts(t, s, storage.PutOptions{Class: storage.Cached}, 11, 2, 3, 4, 5, 6, 7, 8)
	r, err := s.Open(ctx, second.CID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Delete(ctx, first.CID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(ctx); err != nil { // an open reader holds what shares
		t.Fatal(err)
	}
	want, _ := assemble(11, 2, 3, 4, 5, 6, 7, 8)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// TestABadSharedPartIsReportedByAll flips a byte of a part that two files share: neither returns it, both are repaired.
func TestABadSharedPartIsReportedByAll(t *testing.T) {
	ctx := context.Background()
	fs := vfs.NewMem()
	s := open(t, "/store", storage.Options{FS: fs})
	a, b := []uint64{1, 2, 3, 4, 5, 6, 7, 8}, []uint64{9, 2, 3, 4, 5, 6, 7, 8}
	first, second := putParts(t, s, storage.PutOptions{Pin: "a"}, a...), putParts(t, s, storage.PutOptions{Pin: "b"}, b...)
	flipByte(t, fs, first.CID, partBytes(1, 2)+5)
	for _, c := range []cid.Cid{second.CID, first.CID} {
		if _, err := s.ReadAll(ctx, c, 1<<30); !errors.Is(err, storage.ErrCorrupt) {
			t.Fatalf("%s: %v", c, err)
		}
	}
	donor := open(t, "/donor", storage.Options{FS: vfs.NewMem()})
	putParts(t, donor, storage.PutOptions{}, a...)
	putParts(t, donor, storage.PutOptions{}, b...)
	for _, x := range []struct {
		c     cid.Cid
		parts []uint64
	}{{first.CID, a}, {second.CID, b}} {
		if n := fetchMissing(t, donor, s, x.c); n > 2 { // the part itself, and at most its holder's first
			t.Fatalf("%d blocks were fetched for one bad part", n)
		}
		readsAs(t, s, x.c, x.parts...)
	}
	if rep, err := s.Verify(ctx); err != nil || len(rep.Faults) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// flipByte changes one byte of an object's file.
func flipByte(t testing.TB, fs vfs.FS, c cid.Cid, at int64) {
	t.Helper()
	text := c.String()
	f, err := fs.OpenReadWrite("/store/objects/"+text[len(text)-3:len(text)-1]+"/"+text+".obj", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// begin starts the fetch of an object that another store has.
func begin(from, to *storage.Store, c cid.Cid) (*storage.Partial, error) {
	ctx := context.Background()
	return to.Begin(ctx, c, func(n cid.Cid) ([]byte, error) { return from.GetBlock(ctx, n, nil) })
}

// fetchMissing fetches an object from another store and returns how many blocks came over.
func fetchMissing(t testing.TB, from, to *storage.Store, c cid.Cid) int {
	t.Helper()
	ctx := context.Background()
	p, err := begin(from, to, c)
	if err != nil {
		t.Fatal(err)
	}
	missing := p.Missing()
	for _, i := range missing {
		b, err := from.GetBlock(ctx, p.Layout().Leaves[i].CID(cid.Raw), nil)
		if err == nil {
			err = p.Write(i, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	return len(missing)
}

func TestFetchTakesWhatOthersHold(t *testing.T) {
	ctx := context.Background()
	donor, s := open(t, t.TempDir(), storage.Options{}), open(t, t.TempDir(), storage.Options{})
	a, b := []uint64{1, 2, 3, 4, 5, 6, 7, 8}, []uint64{9, 2, 3, 4, 5, 10, 7, 10}
	first, second := putParts(t, donor, storage.PutOptions{}, a...), putParts(t, donor, storage.PutOptions{}, b...)
	if n := fetchMissing(t, donor, s, first.CID); n != 8 {
		t.Fatalf("%d blocks of 8 were fetched", n)
	}
	if n := fetchMissing(t, donor, s, second.CID); n != 2 {
		t.Fatalf("%d blocks were fetched, want the two that are new", n)
	}
	if err := s.Delete(ctx, first.CID); err != nil {
		t.Fatal(err)
	}
	readsAs(t, s, second.CID, b...)
}

// TestFetchNoticesThatAHolderWent deletes the object with which a fetch shares, in the middle of it.
func TestFetchNoticesThatAHolderWent(t *testing.T) {
	ctx := context.Background()
	donor, s := open(t, t.TempDir(), storage.Options{}), open(t, t.TempDir(), storage.Options{})
	a, b := []uint64{1, 2, 3, 4, 5, 6, 7, 8}, []uint64{9, 2, 3, 4, 5, 6, 7, 8}
	first, second := putParts(t, donor, storage.PutOptions{}, a...), putParts(t, donor, storage.PutOptions{}, b...)
	fetchMissing(t, donor, s, first.CID)
	p, err := begin(donor, s, second.CID)
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := s.GC(ctx); err != nil || removed.Objects != 0 {
		t.Fatalf("%+v, %v: a running fetch needs it", removed, err)
	}
	if err := s.Delete(ctx, first.CID); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(0, part(9)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(ctx); !errors.Is(err, storage.ErrIncomplete) {
		t.Fatalf("commit without its shared blocks: %v", err)
	}
	if n := fetchMissing(t, donor, s, second.CID); n != 7 {
		t.Fatalf("%d blocks were fetched, want the seven that went", n)
	}
	readsAs(t, s, second.CID, b...)
	if u, info := s.Usage(), must(s.Stat(ctx, second.CID)); u.Used < info.Size || u.Used > info.Size+4096 || u.Reserved != 0 {
		t.Fatalf("usage %+v for %+v", u, info)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestAHostileSizeDamagesNobody begins a file that claims another size for a block that is here.
func TestAHostileSizeDamagesNobody(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir(), storage.Options{})
	first := putParts(t, s, storage.PutOptions{}, 1, 2, 3, 4, 5, 6, 7, 8)
	cuts, err := unixfs.CutAt([]int64{77, 99})
	if err != nil {
		t.Fatal(err)
	}
	liar, err := unixfs.BuildCuts([]unixfs.Digest{unixfs.Sum(part(2)), unixfs.Sum([]byte("x"))}, cuts)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Begin(ctx, liar.Root, func(cid.Cid) ([]byte, error) { return liar.Nodes[0].Data, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := p.Missing(); len(got) != 2 {
		t.Fatalf("missing %v of two", got)
	}
	if err := p.Write(0, part(2)); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
	readsAs(t, s, first.CID, 1, 2, 3, 4, 5, 6, 7, 8)
}

// sharingModel is what a store of files that share parts must hold.
type sharingModel struct {
	fs    *vfs.MemFS
	s     *storage.Store
	donor *storage.Store // has every file
	files map[cid.Cid][]uint64
	owned map[cid.Cid]bool
	pins  map[string]cid.Cid
}

// sharingLives is how many of rapid's checks run.
const sharingLives = 25

const sharingQuota = 4 << 20

func (m *sharingModel) open(t *rapid.T) {
	s, err := storage.Open(context.Background(), "/store", storage.Options{FS: m.fs, Quota: sharingQuota})
	if err != nil {
		t.Fatal(err)
	}
	m.s = s
}

func (m *sharingModel) draw(t *rapid.T) []uint64 {
	return rapid.SliceOfN(rapid.Uint64Range(0, 11), 8, 10).Draw(t, "parts")
}

func (m *sharingModel) pick(t *rapid.T) cid.Cid {
	var all []cid.Cid
	for c := range m.files {
		all = append(all, c)
	}
	if len(all) == 0 {
		return unixfs.RawCID(nil)
	}
	slices.SortFunc(all, func(a, b cid.Cid) int { return bytes.Compare(a.Bytes(), b.Bytes()) })
	return rapid.SampledFrom(all).Draw(t, "object")
}

func (m *sharingModel) pinned(c cid.Cid) bool {
	for _, p := range m.pins {
		if p == c {
			return true
		}
	}
	return false
}

func (m *sharingModel) put(t *rapid.T) {
	parts := m.draw(t)
	data, cutter := assemble(parts...)
	opts := storage.PutOptions{
		Cut: cutter, Class: rapid.SampledFrom([]storage.Class{storage.Owned, storage.Cached, storage.Cached}).Draw(t, "class"),
		Pin: rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "pin"),
	}
	info, err := m.s.PutFile(context.Background(), bytes.NewReader(data), int64(len(data)), opts)
	if errors.Is(err, storage.ErrQuota) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m.files[info.CID] = parts
	m.owned[info.CID] = m.owned[info.CID] || opts.Class == storage.Owned
	if opts.Pin != "" {
		m.pins[opts.Pin] = info.CID
	}
}

func (m *sharingModel) fetch(t *rapid.T) {
	ctx := context.Background()
	parts := m.draw(t)
	data, cutter := assemble(parts...)
	info, err := m.donor.PutFile(ctx, bytes.NewReader(data), int64(len(data)), storage.PutOptions{Cut: cutter})
	if err != nil {
		t.Fatal(err)
	}
	p, err := begin(m.donor, m.s, info.CID)
	if errors.Is(err, storage.ErrQuota) || errors.Is(err, storage.ErrExists) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	stop := rapid.IntRange(0, 30).Draw(t, "stop after")
	for _, i := range p.Missing() {
		b, err := m.donor.GetBlock(ctx, p.Layout().Leaves[i].CID(cid.Raw), nil)
		if err == nil {
			err = p.Write(i, b)
		}
		if err != nil {
			t.Fatal(err)
		}
		if stop--; stop == 0 {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	if _, err := p.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	m.files[info.CID] = parts
}

func (m *sharingModel) remove(t *rapid.T) {
	c := m.pick(t)
	err := m.s.Delete(context.Background(), c)
	switch {
	case m.pinned(c) && !errors.Is(err, storage.ErrPinned):
		t.Fatalf("delete pinned %s: %v", c, err)
	case m.pinned(c):
	case err != nil && (m.owned[c] || !errors.Is(err, storage.ErrNotFound)):
		t.Fatalf("delete %s: %v", c, err)
	default:
		delete(m.owned, c)
	}
}

func (m *sharingModel) pin(t *rapid.T) {
	c, name := m.pick(t), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "pin")
	err := m.s.Pin(context.Background(), name, c)
	if err == nil {
		m.pins[name] = c
	} else if !errors.Is(err, storage.ErrNotFound) || m.owned[c] || m.pinned(c) {
		t.Fatal(err)
	}
}

func (m *sharingModel) unpin(t *rapid.T) {
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "pin")
	if _, known := m.pins[name]; known {
		if err := m.s.Unpin(context.Background(), name); err != nil {
			t.Fatal(err)
		}
		delete(m.pins, name)
	}
}

func (m *sharingModel) collect(t *rapid.T) {
	if _, err := m.s.GC(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, info := range must(m.s.List(context.Background())) {
		if !m.owned[info.CID] && !m.pinned(info.CID) {
			t.Fatalf("%+v survives a collection; files %v, pins %v", info, m.files, m.pins)
		}
	}
}

func (m *sharingModel) reopen(t *rapid.T) {
	before := m.s.Usage()
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	if after := m.s.Usage(); after != before {
		t.Fatalf("usage %+v, before the restart %+v", after, before)
	}
}

// check holds the store to the model: what is protected is there, every object that is there is whole, the quota is kept, and
// each part is stored at most once for all complete objects.
func (m *sharingModel) check(t *rapid.T) {
	ctx := context.Background()
	var own, parts int64
	present, distinct := map[cid.Cid]bool{}, map[uint64]bool{}
	for _, info := range must(m.s.List(ctx)) {
		present[info.CID] = true
		own += info.Size - info.Shared
		for _, n := range m.files[info.CID] {
			if !distinct[n] {
				distinct[n] = true
				parts += int64(len(part(n)))
			}
		}
	}
	if c := m.pick(t); present[c] {
		want, _ := assemble(m.files[c]...)
		if got, err := m.s.ReadAll(ctx, c, 1<<30); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s reads %d bytes, %v", c, len(got), err)
		}
	}
	for c := range m.files {
		if (m.owned[c] || m.pinned(c)) && !present[c] {
			t.Fatalf("%s (owned %v, pinned %v) is gone", c, m.owned[c], m.pinned(c))
		}
	}
	if own < parts {
		t.Fatalf("%d bytes are charged for %d", own, parts)
	}
	if u := m.s.Usage(); u.Reserved != 0 || u.Used > sharingQuota || u.Used < own {
		t.Fatalf("usage %+v, objects have %d of their own", u, own)
	}
}

// TestSharingModel compares random operations on files that share parts with the model. Files are larger than a block, so a
// few long lives do what other models do with many.
func TestSharingModel(t *testing.T) {
	lives := 0
	rapid.Check(t, func(t *rapid.T) {
		if lives++; lives > sharingLives {
			return
		}
		donor, err := storage.OpenMem()
		if err != nil {
			t.Fatal(err)
		}
		defer donor.Close()
		m := &sharingModel{fs: vfs.NewMem(), donor: donor, files: map[cid.Cid][]uint64{}, owned: map[cid.Cid]bool{}, pins: map[string]cid.Cid{}}
		m.open(t)
		defer func() { m.s.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"": m.check, "put": m.put, "fetch": m.fetch, "delete": m.remove, "pin": m.pin, "unpin": m.unpin,
			"collect": m.collect, "reopen": m.reopen,
		})
		if rep, err := m.s.Verify(context.Background()); err != nil || len(rep.Faults) != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
	})
}

// sharingStep is what a crash in one step must not cost.
type sharingStep struct {
	stored map[cid.Cid]bool
	open   cid.Cid // the step is about this one: it may be there or not
}

// TestCrashWhileSharing loses power between any two writes of a life of files that share: what was acknowledged is whole.
func TestCrashWhileSharing(t *testing.T) {
	ctx := context.Background()
	c := &crashes{mem: vfs.NewCrashableMem(), every: 1, rng: rand.New(rand.NewPCG(7, 7))}
	var promises []sharingStep // by step
	begin := func(id cid.Cid) {
		next := sharingStep{map[cid.Cid]bool{}, id}
		if len(promises) > 0 {
			maps.Copy(next.stored, promises[len(promises)-1].stored)
		}
		promises = append(promises, next)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.step = len(promises) - 1
	}
	s := open(t, "/store", storage.Options{FS: errorfs.Wrap(c.mem, c)})
	donor := open(t, "/donor", storage.Options{FS: vfs.NewMem()})
	lists := [][]uint64{{1, 2, 3, 4, 5, 6, 7, 8}, {9, 2, 3, 4, 5, 6, 9, 8}, {9, 2, 10, 4, 11, 6, 7, 8}}
	parts := map[cid.Cid][]uint64{}
	for i, list := range lists {
		id := putParts(t, donor, storage.PutOptions{}, list...).CID
		parts[id] = list
		begin(id)
		if i == 1 {
			fetchMissing(t, donor, s, id)
			if err := s.Pin(ctx, fmt.Sprint(i), id); err != nil {
				t.Fatal(err)
			}
		} else {
			putParts(t, s, storage.PutOptions{Pin: fmt.Sprint(i)}, list...)
		}
		promises[len(promises)-1].stored[id] = true
	}
	for i, list := range lists[:2] { // what the others share moves on
		id := putParts(t, donor, storage.PutOptions{}, list...).CID
		if err := s.Unpin(ctx, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		begin(id)
		if err := s.Delete(ctx, id); err != nil {
			t.Fatal(err)
		}
		delete(promises[len(promises)-1].stored, id)
	}
	if len(c.taken) < 20 {
		t.Fatalf("only %d crashes", len(c.taken))
	}
	for n, crash := range c.taken {
		after, err := storage.Open(ctx, "/store", storage.Options{FS: crash.fs})
		if err != nil {
			t.Fatalf("crash %d: %v", n, err)
		}
		state := promises[crash.step]
		for id := range state.stored {
			if id != state.open {
				readsAs(t, after, id, parts[id]...)
			}
		}
		rep, err := after.Verify(ctx)
		if err != nil || len(rep.Faults) > 0 {
			t.Fatalf("crash %d with %d %% of unsynced data: %+v, %v", n, crash.unsynced, rep, err)
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
