package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Machine does random things to a store, says whether the answers fit the model, and keeps the model up to date.
type Machine struct {
	FS     vfs.FS // of the store
	User   vfs.FS // where the user writes files: the same one, without the faults
	Dir    string
	Model  *Model
	Choose func(what string, n int) int // a number below n
	Start  func(what string)            // called before each operation; nil does nothing
	// Done is called after each operation with the model from before it, in which all is busy that it was about. A store that
	// stopped in the middle must fit that. nil does nothing.
	Done func(during *Model)

	s      *storage.Store
	donor  *storage.Store
	orders []*storage.Order
}

// machineQuota leaves room for about two files.
const machineQuota = 5 << 19

// NewMachine opens a store in a file system.
func NewMachine(fs, user vfs.FS, choose func(string, int) int) (*Machine, error) {
	m := &Machine{FS: fs, User: user, Dir: "/store", Model: NewModel(machineQuota), Choose: choose}
	var err error
	if m.donor, err = storage.OpenMem(); err != nil {
		return nil, err
	}
	return m, errors.Join(m.Open(), user.MkdirAll("/files", 0o700), syncDir(user, "/"))
}

// Store returns the store, nil while it is closed.
func (m *Machine) Store() *storage.Store { return m.s }

// Open opens the store.
func (m *Machine) Open() (err error) {
	m.s, err = storage.Open(context.Background(), m.Dir, storage.Options{
		FS: m.FS, Quota: m.Model.Quota, Now: func() time.Time { return m.Model.Now },
	})
	return err
}

// Close closes the store.
func (m *Machine) Close() error {
	m.orders = nil
	var err error
	if m.s != nil {
		err = m.s.Close()
	}
	return errors.Join(err, m.donor.Close())
}

func syncDir(fs vfs.FS, name string) error {
	d, err := fs.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// operations are what a machine does, the frequent ones more than once.
var operations = []struct {
	name string
	do   func(*Machine) error
}{
	{"put", (*Machine).put}, {"put", (*Machine).put}, {"put", (*Machine).put}, {"place", (*Machine).place}, {"place", (*Machine).place},
	{"write", (*Machine).write}, {"pin", (*Machine).pin}, {"unpin", (*Machine).unpin}, {"lease", (*Machine).lease},
	{"delete", (*Machine).remove}, {"collect", (*Machine).collect}, {"fetch", (*Machine).fetch}, {"fetch", (*Machine).fetch},
	{"wait", (*Machine).wait}, {"read", (*Machine).read}, {"order", (*Machine).order}, {"verify", (*Machine).verify},
	{"reopen", (*Machine).reopen},
}

// Step does one random thing.
func (m *Machine) Step() error {
	op := operations[m.Choose("operation", len(operations))]
	if m.Start != nil {
		m.Start(op.name)
	}
	var during *Model
	if m.Done != nil {
		during = m.Model.Clone()
	}
	if err := op.do(m); err != nil {
		return fmt.Errorf("%s: %w", op.name, err)
	}
	if m.Done != nil {
		after := m.Model.Clone()
		during.Data, during.Busy, during.Loose = after.Data, after.Busy, after.Loose
		maps.Copy(during.Half, after.Half)
		m.Done(during)
	}
	clear(m.Model.Busy)
	clear(m.Model.Loose)
	return nil
}

// about says what the operation that follows may change.
func (m *Machine) about(c cid.Cid, pin string) {
	m.Model.Busy[c] = true
	if pin != "" {
		m.Model.Loose[c] = storage.Pin{Name: pin, CID: c}
		if old, ok := m.Model.Pins[pin]; ok { // whether it still is pinned depends on how far this comes
			m.Model.Busy[old.CID] = true
		}
	}
}

var machineSizes = []int{0, 1, 1000, 20 << 10, 70 << 10, 120 << 10, 300 << 10, unixfs.BlockSize + 99}

// content returns one of few contents and its CID.
func (m *Machine) content() ([]byte, cid.Cid, error) {
	i := m.Choose("size", len(machineSizes))
	b := Bytes(uint64(100*i+m.Choose("seed", 3)), machineSizes[i])
	c, err := m.donor.PutBytes(context.Background(), b, storage.PutOptions{})
	return b, c, err
}

func (m *Machine) pick() (cid.Cid, bool) {
	all := m.Model.objects()
	if len(all) == 0 {
		return cid.Undef, false
	}
	return all[m.Choose("object", len(all))], true
}

func (m *Machine) name() string { return string(rune('a' + m.Choose("pin", 3))) }

// protectedBytes is about the least that the store can shrink to.
func (m *Machine) protectedBytes() int64 {
	var sum int64
	for c, b := range m.Model.Data {
		if _, placed := m.Model.Placed[c]; m.Model.Owned[c] || m.Model.Mine[c] || m.Model.Half[c] || m.Model.Pinned(c) && !placed {
			sum += int64(len(b)) + 256
		}
	}
	return sum
}

// mayLackRoom passes over a refusal for want of room, if the room really is taken.
func (m *Machine) mayLackRoom(err error, want int) error {
	if !errors.Is(err, storage.ErrQuota) {
		return err
	}
	if m.protectedBytes()+int64(want)+256 <= m.Model.Quota {
		return fmt.Errorf("%d bytes beside %d that must stay: %w", want, m.protectedBytes(), err)
	}
	return nil
}

func (m *Machine) put() error {
	b, c, err := m.content()
	if err != nil {
		return err
	}
	opts := storage.PutOptions{Class: []storage.Class{storage.Owned, storage.Cached, storage.Cached}[m.Choose("class", 3)]}
	if m.Choose("pinned", 4) == 0 {
		opts.Pin = m.name()
	}
	m.about(c, opts.Pin)
	m.Model.Data[c] = b
	if _, err := m.s.PutBytes(context.Background(), b, opts); err != nil {
		return m.mayLackRoom(err, len(b))
	}
	if _, placed := m.Model.Placed[c]; placed || opts.Class == storage.Owned || m.Model.Mine[c] {
		m.Model.Owned[c] = m.Model.Owned[c] || placed || opts.Class == storage.Owned
		delete(m.Model.Placed, c) // the copy takes its place
	}
	if opts.Pin != "" {
		m.Model.Pins[opts.Pin] = storage.Pin{Name: opts.Pin, CID: c}
	}
	delete(m.Model.Half, c)
	delete(m.Model.Mine, c)
	return nil
}

// userWrite replaces a file of the user, durably.
func (m *Machine) userWrite(path string, b []byte) error {
	f, err := m.User.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(append([]byte(nil), b...))
	m.Model.Files[path] = b
	return errors.Join(err, f.Sync(), f.Close(), syncDir(m.User, "/files"))
}

func (m *Machine) path() string { return "/files/" + string(rune('p'+m.Choose("path", 3))) }

func (m *Machine) place() error {
	path := m.path()
	b, c, err := m.content()
	if err != nil {
		return err
	}
	if old, ok := m.Model.Files[path]; ok && m.Choose("again", 2) == 0 { // add what lies there once more
		b = old
		if c, err = m.donor.PutBytes(context.Background(), b, storage.PutOptions{}); err != nil {
			return err
		}
	} else if err := m.userWrite(path, b); err != nil {
		return err
	}
	m.about(c, "")
	for o, p := range m.Model.Placed {
		if p == path && o != c {
			m.about(o, "")
		}
	}
	m.Model.Data[c] = b
	if _, err := m.s.AddInPlace(context.Background(), path, storage.PutOptions{}); err != nil {
		return m.mayLackRoom(err, 0)
	}
	for o, p := range m.Model.Placed {
		if p == path && o != c {
			delete(m.Model.Placed, o) // nobody can read it any more
		}
	}
	if !m.Model.Owned[c] {
		m.Model.Placed[c] = path
	}
	delete(m.Model.Half, c)
	delete(m.Model.Mine, c)
	return nil
}

// write changes or removes a file behind the store's back.
func (m *Machine) write() error {
	path := m.path()
	old, ok := m.Model.Files[path]
	if !ok {
		return nil
	}
	switch m.Choose("change", 4) {
	case 0:
		delete(m.Model.Files, path)
		return errors.Join(m.User.Remove(path), syncDir(m.User, "/files"))
	case 1:
		return m.userWrite(path, old) // touched
	case 2:
		changed := append([]byte{}, old...)
		for i := range changed {
			changed[i] ^= 1
		}
		return m.userWrite(path, changed)
	}
	return m.userWrite(path, append([]byte{7}, old...))
}

func (m *Machine) pin() error {
	c, ok := m.pick()
	if !ok {
		return nil
	}
	name := m.name()
	m.about(c, name)
	err := m.s.Pin(context.Background(), name, c)
	if err == nil {
		m.Model.Pins[name] = storage.Pin{Name: name, CID: c}
		return nil
	}
	if errors.Is(err, storage.ErrNotFound) && (!m.Model.Protected(c) || m.Model.Half[c]) {
		return nil
	}
	return err
}

func (m *Machine) lease() error {
	c, ok := m.pick()
	if !ok {
		return nil
	}
	name, until := m.name(), m.Model.Now.Add(time.Duration(1+m.Choose("hours", 5))*time.Hour)
	m.about(c, name)
	err := m.s.Lease(context.Background(), name, c, until)
	old, taken := m.Model.Pins[name]
	forGood := taken && old.Until.IsZero()
	switch {
	case err == nil && forGood && old.CID != c:
		return fmt.Errorf("a lease replaced the pin %+v", old)
	case err == nil && !forGood:
		m.Model.Pins[name] = storage.Pin{Name: name, CID: c, Until: until}
	case errors.Is(err, storage.ErrExists) && forGood && old.CID != c:
	case errors.Is(err, storage.ErrNotFound) && (!m.Model.Protected(c) || m.Model.Half[c]):
	default:
		return err
	}
	return nil
}

func (m *Machine) unpin() error {
	name := m.name()
	p, known := m.Model.Pins[name]
	known = known && (p.Until.IsZero() || m.Model.Now.Before(p.Until))
	if known {
		m.Model.Busy[p.CID] = !m.Model.Owned[p.CID]
		m.Model.Loose[p.CID] = p
	}
	if err := m.s.Unpin(context.Background(), name); (err == nil) != known {
		return fmt.Errorf("unpin %s, known %v: %w", name, known, err)
	}
	if known {
		delete(m.Model.Pins, name)
	}
	return nil
}

func (m *Machine) wait() error {
	m.Model.Now = m.Model.Now.Add(time.Hour)
	return nil
}

func (m *Machine) remove() error {
	c, ok := m.pick()
	if !ok {
		return nil
	}
	m.about(c, "")
	err := m.s.Delete(context.Background(), c)
	switch {
	case errors.Is(err, storage.ErrNotFound) && (!m.Model.Protected(c) || m.Model.Half[c]):
		return nil
	case m.Model.Pinned(c):
		if !errors.Is(err, storage.ErrPinned) {
			return fmt.Errorf("delete pinned %s: %w", c, err)
		}
		return nil
	case err != nil:
		return err
	}
	delete(m.Model.Owned, c)
	delete(m.Model.Placed, c)
	return nil
}

func (m *Machine) collect() error {
	ctx := context.Background()
	if _, err := m.s.GC(ctx); err != nil {
		return err
	}
	list, err := m.s.List(ctx)
	for _, info := range list {
		if !m.Model.Protected(info.CID) {
			err = errors.Join(err, fmt.Errorf("%s survives a collection", info.CID))
		}
	}
	for c := range m.Model.Half {
		if !m.Model.Mine[c] && !m.Model.Pinned(c) {
			delete(m.Model.Half, c)
		}
	}
	return err
}

// fetch brings in a file, whole or in part, as a transfer does.
func (m *Machine) fetch() error {
	ctx := context.Background()
	b := Bytes(uint64(900+m.Choose("seed", 3)), unixfs.BlockSize+99)
	c, err := m.donor.PutBytes(ctx, b, storage.PutOptions{})
	if err != nil {
		return err
	}
	m.Model.Data[c] = b
	m.about(c, "")
	before, err := m.s.Stat(ctx, c)
	whole := err == nil && !before.Damaged
	p, err := m.s.Begin(ctx, c, Nodes(ctx, m.donor))
	if whole {
		if !errors.Is(err, storage.ErrExists) {
			return fmt.Errorf("fetch what is there: %w", err)
		}
		return nil
	}
	if err != nil {
		return m.mayLackRoom(err, len(b))
	}
	if _, placed := m.Model.Placed[c]; placed || m.Model.Owned[c] {
		m.Model.Mine[c] = true // a repair of what is the user's; the file in place becomes a copy
		delete(m.Model.Placed, c)
		delete(m.Model.Owned, c)
	}
	m.Model.Half[c] = true
	stop := m.Choose("stop", 2) == 0
	for _, i := range p.Missing() {
		if stop && i == 1 {
			return p.Close()
		}
		off := int64(i) * unixfs.BlockSize
		if err := p.Write(i, b[off:off+p.Layout().LeafSize(i)]); err != nil {
			return errors.Join(err, p.Close())
		}
	}
	if _, err := p.Commit(ctx); err != nil {
		return err
	}
	if m.Model.Mine[c] {
		m.Model.Owned[c] = true
	}
	delete(m.Model.Half, c)
	delete(m.Model.Mine, c)
	return nil
}

func (m *Machine) read() error {
	c, ok := m.pick()
	if !ok {
		return nil
	}
	got, err := m.s.ReadAll(context.Background(), c, 1<<30)
	if err == nil && !bytes.Equal(got, m.Model.Data[c]) {
		return fmt.Errorf("%s: other bytes come back", c)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
		return err
	}
	return nil
}

// order opens, follows or ends a hint about next uses: none of it may change what is right.
func (m *Machine) order() error {
	if len(m.orders) > 0 && m.Choose("end", 2) == 0 {
		m.orders[0].Advance(m.Choose("steps", 9))
		if m.Choose("close", 2) == 0 {
			m.orders[0].Close()
			m.orders = m.orders[1:]
		}
		return nil
	}
	m.orders = append(m.orders, m.s.Follow(m.Model.objects(), m.Choose("loop", 2) == 0))
	return nil
}

// verify finds nothing wrong but files that the user changed and repairs that have not ended.
func (m *Machine) verify() error {
	rep, err := m.s.Verify(context.Background())
	if err != nil {
		return err
	}
	for _, f := range rep.Faults {
		if !errors.Is(f.Err, storage.ErrChanged) && !m.Model.Half[f.CID] {
			return fmt.Errorf("%s: %w", f.CID, f.Err)
		}
		if path, placed := m.Model.Placed[f.CID]; placed && bytes.Equal(m.Model.Files[path], m.Model.Data[f.CID]) && m.Model.Files[path] != nil {
			return fmt.Errorf("%s at %s is as it was: %w", f.CID, path, f.Err)
		}
	}
	return m.Model.CheckBytes(m.s)
}

func (m *Machine) reopen() error {
	before := m.s.Usage()
	for _, o := range m.orders {
		o.Close()
	}
	m.orders = nil
	if err := m.s.Close(); err != nil {
		return err
	}
	if err := m.Open(); err != nil {
		return err
	}
	if after := m.s.Usage(); after != before {
		return fmt.Errorf("usage %+v, before the restart %+v", after, before)
	}
	return nil
}
