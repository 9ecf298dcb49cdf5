package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedEnv); dir != "" {
		fmt.Fprintln(os.Stderr, killed(dir)) // returns only when something is wrong
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, dir string, opts storage.Options) *storage.Store {
	t.Helper()
	s, err := storage.Open(context.Background(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	t.Run("disk", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Home { return storetest.Home{FS: vfs.Default, Dir: t.TempDir()} })
	})
	t.Run("memory", func(t *testing.T) {
		storetest.Run(t, func(*testing.T) storetest.Home { return storetest.Home{FS: vfs.NewMem(), Dir: "/"} })
	})
	t.Run("crashable", func(t *testing.T) {
		storetest.Run(t, func(*testing.T) storetest.Home {
			mem := vfs.NewCrashableMem()
			return storetest.Home{FS: mem, Dir: "/", Opened: func(t *testing.T, s *storage.Store, dir string, opts storage.Options) {
				t.Cleanup(func() { losePower(t, mem, dir, opts) })
			}}
		})
	})
}

// losePower forgets what a store that is closed had not synced: it has all the same.
func losePower(t *testing.T, mem *vfs.MemFS, dir string, opts storage.Options) {
	ctx := context.Background()
	s := open(t, dir, opts)
	opts.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	again := open(t, dir, opts)
	want, err := s.List(ctx)
	pins, perr := s.Pins(ctx)
	got, gerr := again.List(ctx)
	kept, kerr := again.Pins(ctx)
	if err = errors.Join(err, perr, gerr, kerr); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(kept, pins) {
		t.Errorf("after a loss of power %v and pins %v, before %v and %v", got, kept, want, pins)
	}
	was, err := s.Verify(ctx)
	now, nerr := again.Verify(ctx)
	if err = errors.Join(err, nerr); err != nil || len(now.Faults) != len(was.Faults) {
		t.Errorf("%+v, before the loss of power %+v, %v", now, was, err)
	}
}

// TestSameCIDsAsIPFS pins answers of boxo v0.41.0 (balanced layout, 1 MiB raw leaves, 1,024 links, CIDv1).
func TestSameCIDsAsIPFS(t *testing.T) {
	ctx := context.Background()
	s := open(t, "/store", storage.Options{FS: vfs.NewMem()})
	for size, want := range map[int]string{
		1 << 20:    "bafkreibq4fevl27rgurgnxbp7adh42aqiyd6ouflxhj3gzmcxcxzbh6lla",
		1<<20 + 1:  "bafybeiaomlonartwxzal4y3jecn5axopw3ip6ie37q33qlyuccqpfok7p4",
		5<<20 + 77: "bafybeiaqbmk2liiny7o3xl6oq2le2mieu5gnkh5vyqvdoyetdn6v7ps6fm",
	} {
		b := make([]byte, size)
		for i := 0; i < size; i += 4096 {
			b[i] = byte(i >> 20)
		}
		if c, err := s.PutBytes(ctx, b, storage.PutOptions{}); err != nil || c.String() != want {
			t.Errorf("%d bytes: %s, %v, want %s", size, c, err, want)
		}
	}
	dir := t.TempDir()
	weights := bytes.Repeat([]byte("0123456789abcdef"), 3<<16+1)
	err := errors.Join(os.Mkdir(filepath.Join(dir, "sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "sub", "weights.bin"), weights, 0o644),
		os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	const want = "bafybeiehwpoxycqvgl7pdus7ipg6jtbgitek62fzh5ckabaisvg6lbt4mi"
	if c, err := s.AddPath(ctx, dir, storage.PutOptions{}); err != nil || c.String() != want {
		t.Errorf("folder: %s, %v, want %s", c, err, want)
	}
}

// What its owner gives up is evicted like what was only fetched, unless a pin holds it.
func TestDisown(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir(), storage.Options{})
	defer s.Close()
	var all []cid.Cid
	for _, text := range []string{"given up", "given up and pinned", "owned"} {
		c, err := s.PutBytes(ctx, []byte(text), storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if err := s.Pin(ctx, "name", all[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Disown(ctx, all[0], all[1], unixfs.RawCID([]byte("not here"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true} {
		if has, err := s.Has(ctx, all[i]); err != nil || has != want {
			t.Errorf("object %d is here: %v, %v; want %v", i, has, err, want)
		}
	}
}
