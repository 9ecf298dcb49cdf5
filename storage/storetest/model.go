package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
)

// Model is what a store must hold, as simple as it can be said.
type Model struct {
	Quota  int64
	Now    time.Time
	Data   map[cid.Cid][]byte      // every object that ever was
	Owned  map[cid.Cid]bool        // copies that are the user's
	Placed map[cid.Cid]string      // files in place that were added by name, and where they lie
	Files  map[string][]byte       // the user's files
	Pins   map[string]storage.Pin  // leases that are over included
	Half   map[cid.Cid]bool        // fetches that may be unfinished
	Mine   map[cid.Cid]bool        // of them those that repair what is the user's
	Busy   map[cid.Cid]bool        // what the operation under way is about: anything may have become of it
	Loose  map[cid.Cid]storage.Pin // pins that the operation under way sets or removes, by the object that they were or will be of
}

// NewModel returns the model of an empty store.
func NewModel(quota int64) *Model {
	return &Model{
		Quota: quota, Now: time.Unix(1_800_000_000, 0).UTC(), Data: map[cid.Cid][]byte{}, Owned: map[cid.Cid]bool{},
		Placed: map[cid.Cid]string{}, Files: map[string][]byte{}, Pins: map[string]storage.Pin{}, Half: map[cid.Cid]bool{},
		Mine: map[cid.Cid]bool{}, Busy: map[cid.Cid]bool{}, Loose: map[cid.Cid]storage.Pin{},
	}
}

// Clone copies the model. Contents are shared: nobody changes them.
func (m *Model) Clone() *Model {
	out := *m
	out.Data, out.Owned, out.Placed = maps.Clone(m.Data), maps.Clone(m.Owned), maps.Clone(m.Placed)
	out.Files, out.Pins, out.Half, out.Mine = maps.Clone(m.Files), maps.Clone(m.Pins), maps.Clone(m.Half), maps.Clone(m.Mine)
	out.Busy, out.Loose = maps.Clone(m.Busy), maps.Clone(m.Loose)
	return &out
}

// Pinned tells whether a pin or a lease that is not over protects the object.
func (m *Model) Pinned(c cid.Cid) bool {
	for _, p := range m.Pins {
		if p.CID == c && (p.Until.IsZero() || m.Now.Before(p.Until)) {
			return true
		}
	}
	return false
}

// Protected tells whether the object must be there.
func (m *Model) Protected(c cid.Cid) bool {
	_, placed := m.Placed[c]
	return m.Owned[c] || placed || m.Pinned(c)
}

// objects lists every object that ever was, in an order that does not change.
func (m *Model) objects() []cid.Cid {
	return slices.SortedFunc(maps.Keys(m.Data), func(a, b cid.Cid) int { return bytes.Compare(a.Bytes(), b.Bytes()) })
}

// Check holds a store to the model: what must be there is there, of the right class, nothing else is unknown, the quota is kept
// to the byte in the accounts and on the disk, and the accounts add up.
func (m *Model) Check(s *storage.Store, fs vfs.FS, dir string) error {
	ctx := context.Background()
	list, err := s.List(ctx)
	if err != nil {
		return err
	}
	present := map[cid.Cid]storage.Info{}
	var sum int64
	for _, info := range list {
		present[info.CID] = info
		cost, err := charge(ctx, s, info)
		if err != nil {
			return err
		}
		sum += cost
		if err := m.checkObject(info); err != nil {
			return err
		}
	}
	for _, c := range m.objects() {
		if _, ok := present[c]; !ok && m.Protected(c) && !m.Half[c] && !m.Busy[c] {
			return fmt.Errorf("%s is gone (owned %v, in place %q, pinned %v)", c, m.Owned[c], m.Placed[c], m.Pinned(c))
		}
	}
	u := s.Usage()
	if u.Reserved != 0 || m.Quota > 0 && u.Used > m.Quota || u.Used < sum || len(m.Half)+len(m.Busy) == 0 && u.Used != sum {
		return fmt.Errorf("usage %+v for %d bytes of objects", u, sum)
	}
	if n, err := onDisk(fs, dir); err != nil || n > u.Used {
		return fmt.Errorf("%d bytes in files for %d in the accounts: %w", n, u.Used, err)
	}
	return m.checkPins(s)
}

func (m *Model) checkObject(info storage.Info) error {
	want, ok := m.Data[info.CID]
	if !ok || int64(len(want)) != info.Size {
		return fmt.Errorf("unknown object %+v", info)
	}
	path, placed := m.Placed[info.CID]
	switch {
	case m.Busy[info.CID]:
	case placed && (info.Class != storage.External || info.Path != path):
		return fmt.Errorf("%+v, want a file in place at %s", info, path)
	case !placed && (info.Class == storage.Owned) != m.Owned[info.CID]:
		return fmt.Errorf("%+v, want owned %v", info, m.Owned[info.CID])
	}
	return nil
}

func (m *Model) checkPins(s *storage.Store) error {
	got, err := s.Pins(context.Background())
	if err != nil {
		return err
	}
	want := map[string]storage.Pin{}
	for name, p := range m.Pins {
		if p.Until.IsZero() || m.Now.Before(p.Until) {
			want[name] = p
		}
	}
	for _, p := range got {
		if w, ok := want[p.Name]; (!ok || w.CID != p.CID || !w.Until.Equal(p.Until)) && m.loose(p.Name) == nil {
			return fmt.Errorf("pin %+v, want %+v", p, w)
		}
		delete(want, p.Name)
	}
	for name, p := range want {
		if m.loose(name) == nil {
			return fmt.Errorf("pin %+v is gone", p)
		}
	}
	return nil
}

// loose returns the pin of a name that is being set or removed.
func (m *Model) loose(name string) *storage.Pin {
	for _, p := range m.Loose {
		if p.Name == name {
			return &p
		}
	}
	return nil
}

// charge returns what an object costs of the quota.
func charge(ctx context.Context, s *storage.Store, info storage.Info) (int64, error) {
	n := info.Size
	if info.Class == storage.External {
		n = 0
	}
	if info.Kind == storage.File { // all files of the model have one node
		node, err := s.GetBlock(ctx, info.CID, nil)
		if err != nil {
			return 0, err
		}
		n += int64(len(node))
	}
	return n, nil
}

// onDisk returns the bytes in the store's object files.
func onDisk(fs vfs.FS, dir string) (int64, error) {
	var sum int64
	for _, suffix := range []string{".obj", ".part", ".tmp"} {
		names, err := ObjectFiles(fs, dir, suffix)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			st, err := fs.Stat(name)
			if err != nil {
				return 0, err
			}
			sum += st.Size()
		}
	}
	return sum, nil
}

// ObjectFiles lists the files of a store whose names end in suffix.
func ObjectFiles(fs vfs.FS, dir, suffix string) ([]string, error) {
	var out []string
	objects := fs.PathJoin(dir, "objects")
	dirs, err := fs.List(objects)
	for _, d := range dirs {
		names, lerr := fs.List(fs.PathJoin(objects, d))
		err = errors.Join(err, lerr)
		for _, n := range names {
			if strings.HasSuffix(n, suffix) {
				out = append(out, fs.PathJoin(objects, d, n))
			}
		}
	}
	return out, err
}

// CheckBytes reads every object: a byte that comes out is the right one, and what may be unreadable says why.
func (m *Model) CheckBytes(s *storage.Store) error {
	ctx := context.Background()
	for _, c := range m.objects() {
		got, err := s.ReadAll(ctx, c, 1<<30)
		if err == nil && !bytes.Equal(got, m.Data[c]) {
			return fmt.Errorf("%s: other bytes come back", c)
		}
		path, placed := m.Placed[c]
		intact := !placed || bytes.Equal(m.Files[path], m.Data[c]) && m.Files[path] != nil
		switch {
		case err == nil || m.Busy[c] || m.Half[c]:
		case !m.Protected(c) && (errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrChanged)):
		case placed && !intact && errors.Is(err, storage.ErrChanged):
		case m.Pinned(c) && !m.Owned[c] && errors.Is(err, storage.ErrChanged): // of a file that was replaced
		default:
			return fmt.Errorf("read %s (owned %v, in place %q, intact %v): %w", c, m.Owned[c], path, intact, err)
		}
	}
	return nil
}
