package bench

import (
	"context"
	"path/filepath"
	"testing"
)

// BenchmarkCollect reports the collection of 100,000 objects beside a reader and a writer, who notice it as little as they may.
func BenchmarkCollect(b *testing.B) {
	for b.Loop() {
		var f StoreFigures
		if err := collect(context.Background(), filepath.Join(b.TempDir(), "gc"), gcObjects, &f); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(f.GC, "gc-s")
		b.ReportMetric(f.ReadIdle, "read-idle-p99-ms")
		b.ReportMetric(f.ReadGC, "read-gc-p99-ms")
		b.ReportMetric(f.ReadGC/f.ReadIdle, "gc/idle")
		b.ReportMetric(f.WriteGC, "write-max-ms")
	}
}
