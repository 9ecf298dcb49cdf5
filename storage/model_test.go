package storage_test

import (
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage/storetest"
)

// long tells whether the long forms of the tests are wanted: `make test-crash`.
func long() bool { return os.Getenv("CAPANODE_CRASH_LONG") != "" }

// TestModel compares random operations with the model: quota, classes, pins, leases, files in place, fetches, collections and
// restarts. The long form does 20,000.
func TestModel(t *testing.T) {
	steps := 12
	switch {
	case long():
		steps = 200
	case testing.Short():
		steps = 4
	}
	rapid.Check(t, func(t *rapid.T) {
		fs := vfs.NewMem()
		m, err := storetest.NewMachine(fs, fs, func(what string, n int) int { return rapid.IntRange(0, n-1).Draw(t, what) })
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}()
		m.Start = func(what string) { t.Log(what) }
		for range steps {
			if err := m.Step(); err != nil {
				t.Fatal(err)
			}
			if err := m.Model.Check(m.Store(), fs, m.Dir); err != nil {
				t.Fatal(err)
			}
		}
	})
}
