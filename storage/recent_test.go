package storage

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

// usesIn lists the objects of which the index knows the last use.
func usesIn(t *testing.T, s *Store) map[cid.Cid]bool {
	t.Helper()
	out := map[cid.Cid]bool{}
	err := s.each(t.Context(), []byte{keyUse}, func(key, _ []byte) error {
		c, err := cid.Cast(key)
		out[c] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A use is told to the index after a while, at the close, and before somebody must go; never that of an object that went.
func TestUses(t *testing.T) {
	ctx, fs, now := context.Background(), vfs.NewMem(), time.Unix(1000, 0)
	open := func() *Store {
		s, err := Open(ctx, "/store", Options{FS: fs, Quota: 2 << 20, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	put := func(fill byte) cid.Cid {
		t.Helper()
		b := make([]byte, 700<<10)
		b[0] = fill
		c, err := s.PutBytes(ctx, b, PutOptions{Class: Cached})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	use := func(c cid.Cid) {
		t.Helper()
		r, err := s.Open(ctx, c)
		if err == nil {
			err = r.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pending := func() int {
		s.recent.mu.Lock()
		defer s.recent.mu.Unlock()
		return len(s.recent.uses)
	}
	a, b := put(1), put(2)
	use(a)
	use(a)
	if pending() != 1 {
		t.Fatalf("%d uses wait, want that of one object", pending())
	}
	now = now.Add(recentAge)
	use(b)
	if pending() != 0 {
		t.Errorf("%d uses wait after %v", pending(), recentAge)
	}
	use(a) // now b is the one that was not used for the longest time, and only memory knows
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	c := put(3) // needs room
	if _, err := s.Stat(ctx, b); !errors.Is(err, ErrNotFound) {
		t.Errorf("the object that was used first stayed: %v", err)
	}
	if _, err := s.Stat(ctx, a); err != nil {
		t.Errorf("the object that was used last went: %v", err)
	}
	use(a)
	use(c)
	if _, err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.settleUses(); err != nil {
		t.Fatal(err)
	}
	if left := usesIn(t, s); len(left) > 0 {
		t.Errorf("uses of objects that are gone: %v", left)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
