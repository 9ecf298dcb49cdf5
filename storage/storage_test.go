package storage_test

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
		storetest.Run(t, func(t *testing.T, opts storage.Options) *storage.Store {
			return open(t, t.TempDir(), opts)
		})
	})
	t.Run("memory", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T, opts storage.Options) *storage.Store {
			opts.FS = vfs.NewMem()
			return open(t, "/store", opts)
		})
	})
}
