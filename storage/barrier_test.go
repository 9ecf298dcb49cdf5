package storage_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
)

// TestProtectionDuringCollection pins, leases, holds and owns objects while collections run: what was acknowledged as protected
// when it was there is never removed.
func TestProtectionDuringCollection(t *testing.T) {
	ctx := t.Context()
	s := open(t, "/store", storage.Options{FS: vfs.NewMem()})
	rounds := 4
	if long() {
		rounds = 100
	}
	for round := range rounds {
		var all []cid.Cid
		for i := range 3000 { // several steps of a collection
			c, err := s.PutBytes(ctx, fmt.Appendf(nil, "%d of %d", i, round), storage.PutOptions{Class: storage.Cached})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
		if err := protectWhile(ctx, s, all, round); err != nil {
			t.Fatal(err)
		}
	}
}

// protectWhile collects and protects every tenth object at the same time.
func protectWhile(ctx context.Context, s *storage.Store, all []cid.Cid, round int) error {
	var wg sync.WaitGroup
	var gcErr error
	wg.Go(func() { _, gcErr = s.GC(ctx) })
	kept := map[cid.Cid]string{}
	for i := len(all) - 1; i >= 0; i -= 10 {
		c := all[i]
		how := [...]string{"pin", "hold", "own"}[i/10%3]
		var err error
		switch how {
		case "pin":
			err = s.Pin(ctx, fmt.Sprint(round, " ", i), c)
		case "hold":
			defer s.Hold(c)()
			_, err = s.Stat(ctx, c)
		case "own":
			_, err = s.PutBytes(ctx, fmt.Appendf(nil, "%d of %d", i, round), storage.PutOptions{})
		}
		if err == nil {
			kept[c] = how
		} else if !errors.Is(err, storage.ErrNotFound) {
			return errors.Join(err, gcErr)
		}
	}
	wg.Wait()
	for c, how := range kept {
		if has, err := s.Has(ctx, c); !has || err != nil {
			return fmt.Errorf("%s is gone after its %s: %w", c, how, err)
		}
	}
	return gcErr
}
