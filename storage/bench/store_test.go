package bench_test

import (
	"fmt"
	"testing"

	"github.com/capacloud/capanode/storage/bench"
)

func TestRunStore(t *testing.T) {
	f, err := bench.RunStore(t.Context(), bench.StoreOptions{Size: 5<<20 + 1, Objects: 500, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]float64{"import": f.Import, "write": f.Baseline.Write, "in place": f.InPlace, "again": f.Again, "hash": f.Baseline.Hash,
		"gc": f.GC, "idle": f.ReadIdle} {
		if v <= 0 {
			t.Errorf("%s: %v", name, v)
		}
	}
	if f.Collected != 500 {
		t.Errorf("%d objects collected", f.Collected)
	}
	if _, err := bench.RunStore(t.Context(), bench.StoreOptions{Size: 1}); err == nil {
		t.Error("one byte was measured")
	}
}

// BenchmarkStore prints the figures of a whole run.
func BenchmarkStore(b *testing.B) {
	for b.Loop() {
		f, err := bench.RunStore(b.Context(), bench.StoreOptions{Size: 512 << 20, Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("%+v\n", f)
	}
}
