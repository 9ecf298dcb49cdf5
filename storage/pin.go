package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
)

// Pin is a name that protects an object, and everything below it if it is a folder, from deletion and eviction. Links
// inside records are not followed. A lease is a pin that ends by itself.
type Pin struct {
	Name  string
	CID   cid.Cid
	Until time.Time // when a lease ends; zero for a pin without an end
}

func pinKey(name string) []byte { return append([]byte{keyPin}, name...) }

// checkPut checks what a caller wants of a new object.
func checkPut(opts PutOptions) error {
	if opts.Class > Cached {
		return fmt.Errorf("storage: class %s: use AddInPlace: %w", opts.Class, ErrWrongKind)
	}
	return checkPin(opts.Pin, false)
}

// checkPin checks a pin name; an empty one is an error only where a name is required.
func checkPin(name string, required bool) error {
	if len(name) > MaxPinName || !utf8.ValidString(name) || (required && name == "") {
		return fmt.Errorf("storage: pin name %.64q: want 1 to %d bytes of UTF-8", name, MaxPinName)
	}
	return nil
}

// Pin protects an object under a name. A name that is taken moves to the new object; a lease of that name loses its end.
func (s *Store) Pin(ctx context.Context, name string, c cid.Cid) error {
	return s.pin(ctx, Pin{Name: name, CID: c})
}

// Lease protects an object under a name until a time, across restarts. Leasing a name again moves it or its end. A name that is a
// pin without an end is [ErrExists] unless it pins the same object, which is protected for longer already.
func (s *Store) Lease(ctx context.Context, name string, c cid.Cid, until time.Time) error {
	if now := s.now(); !until.After(now) {
		return fmt.Errorf("storage: lease %q until %s: that is over at %s", name, until.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return s.pin(ctx, Pin{name, c, until})
}

func (s *Store) pin(ctx context.Context, p Pin) error {
	if err := checkPin(p.Name, true); err != nil {
		return err
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	if _, err := s.Stat(ctx, p.CID); err != nil {
		return fmt.Errorf("pin %q: %w", p.Name, err)
	}
	if !p.Until.IsZero() {
		switch old, err := s.pinned(p.Name); {
		case err == nil && old.Until.IsZero() && old.CID == p.CID:
			return nil
		case err == nil && old.Until.IsZero():
			return fmt.Errorf("storage: lease %q: it is a pin of %s: unpin it first: %w", p.Name, old.CID, ErrExists)
		case err != nil && !errors.Is(err, ErrNotFound):
			return err
		}
	}
	s.protected(protection{p.CID, true})
	if err := s.set(pinKey(p.Name), p.encode(), pebble.Sync); err != nil {
		return fmt.Errorf("storage: pin %q: %w", p.Name, s.diskError(err))
	}
	return nil
}

// encode returns the index value of a pin: the CID, and for a lease its end in unix nanoseconds.
func (p Pin) encode() []byte {
	b := p.CID.Bytes()
	if p.Until.IsZero() {
		return b
	}
	return binary.BigEndian.AppendUint64(b, uint64(p.Until.UnixNano()))
}

func decodePin(name string, value []byte) (Pin, error) {
	n, c, err := cid.CidFromBytes(value)
	p := Pin{Name: name, CID: c}
	switch {
	case err != nil:
	case len(value) == n+8:
		p.Until = time.Unix(0, int64(binary.BigEndian.Uint64(value[n:]))).UTC()
	case len(value) != n:
		err = fmt.Errorf("value of %d bytes", len(value))
	}
	if err != nil {
		return Pin{}, fmt.Errorf("storage: pin %q: %w: %w", name, ErrCorrupt, err)
	}
	return p, nil
}

// over tells whether a pin is a lease that has ended.
func (p Pin) over(now time.Time) bool { return !p.Until.IsZero() && !now.Before(p.Until) }

// pinned returns the pin of a name; a lease that is over is [ErrNotFound].
func (s *Store) pinned(name string) (Pin, error) {
	b, err := s.get(pinKey(name))
	if err != nil {
		return Pin{}, err
	}
	p, err := decodePin(name, b)
	if err == nil && p.over(s.now()) {
		return Pin{}, ErrNotFound
	}
	return p, err
}

// Unpin removes a pin or lease; the object stays until it is deleted or evicted.
func (s *Store) Unpin(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), checkPin(name, true)); err != nil {
		return err
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	if _, err := s.pinned(name); err != nil {
		return fmt.Errorf("storage: unpin %q: %w", name, err)
	}
	if err := s.unset(pinKey(name), pebble.Sync); err != nil {
		return fmt.Errorf("storage: unpin %q: %w", name, s.diskError(err))
	}
	return nil
}

// Pins lists the pins and the leases that are not over, by name.
func (s *Store) Pins(ctx context.Context) ([]Pin, error) {
	var out []Pin
	now := s.now()
	err := s.each(ctx, []byte{keyPin}, func(key, value []byte) error {
		p, err := decodePin(string(key), value)
		if err == nil && !p.over(now) {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// endLeases removes the leases that are over.
func (s *Store) endLeases(ctx context.Context) error {
	s.gate.Lock() // nobody extends one meanwhile
	defer s.gate.Unlock()
	now := s.now()
	batch := s.db.NewBatch()
	defer batch.Close()
	err := s.each(ctx, []byte{keyPin}, func(key, value []byte) error {
		if p, err := decodePin(string(key), value); err == nil && p.over(now) {
			return batch.Delete(pinKey(p.Name), nil)
		}
		return nil
	})
	if err != nil || batch.Empty() {
		return err
	}
	return s.apply(batch, pebble.NoSync) // coming back after a crash, they are over all the same
}

// Delete removes an object of any class; of an external one only what the store knows of it, never the file. An object that a
// pin or lease reaches is [ErrPinned]. The entries of a deleted folder stay as cached objects.
func (s *Store) Delete(ctx context.Context, c cid.Cid) error {
	for {
		gone, needed, err := s.delete(ctx, c)
		if !needed || err != nil {
			s.unfile(gone)
			return err
		}
		if err := s.bequeath(ctx, c, nil); err != nil {
			return err
		}
	}
}

// delete is one attempt; needed tells that it waits until the leaves that others share have moved.
func (s *Store) delete(ctx context.Context, c cid.Cid) (gone []removal, needed bool, err error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if _, err := s.record(c); err != nil {
		return nil, false, err
	}
	pins, err := s.Pins(ctx)
	if err != nil {
		return nil, false, err
	}
	reached := map[cid.Cid]bool{}
	for _, p := range pins {
		if err := s.mark(ctx, p.CID, reached); err != nil {
			return nil, false, err
		}
		if reached[c] {
			return nil, false, fmt.Errorf("storage: delete %s: unpin %q first: %w", c, p.Name, ErrPinned)
		}
	}
	if needed, err = s.needed(c, nil); needed || err != nil {
		return nil, needed, err
	}
	defer s.lockStripes()()
	batch := s.db.NewBatch()
	defer batch.Close()
	one, err := s.unlist(batch, candidate{cid: c})
	if err == nil {
		s.changed(c)
		err = s.apply(batch, pebble.Sync)
	}
	if err != nil {
		return nil, false, fmt.Errorf("storage: delete %s: %w", c, s.diskError(err))
	}
	return []removal{one}, false, nil
}

// Disown makes objects cached ones: they may be evicted unless a pin, a lease or an owned folder reaches them. Those that are
// not here are passed over.
func (s *Store) Disown(ctx context.Context, all ...cid.Cid) error {
	s.gate.Lock() // nobody changes a record meanwhile
	defer s.gate.Unlock()
	defer s.lockStripes()()
	batch := s.db.NewBatch()
	defer batch.Close()
	for _, c := range all {
		rec, err := s.record(c)
		if errors.Is(err, ErrNotFound) || err == nil && rec.Class == Cached {
			continue
		}
		rec.Class = Cached
		s.changed(c)
		if err == nil {
			err = s.putRecord(batch, c, rec)
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("storage: disown %s: %w", c, err)
		}
	}
	if batch.Empty() {
		return nil
	}
	if err := s.apply(batch, pebble.Sync); err != nil {
		return fmt.Errorf("storage: disown: %w", s.diskError(err))
	}
	return nil
}
