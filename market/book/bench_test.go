package book

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/capacloud/capanode/market/query"
)

func BenchmarkApply(b *testing.B) {
	envs := make([][]byte, 2000)
	for i := range envs {
		envs[i] = beacon(b, fmt.Sprint(i), 1, noon)
	}
	bk := New(func() time.Time { return noon })
	for i := 0; b.Loop(); i++ {
		if i%len(envs) == 0 {
			bk = New(func() time.Time { return noon })
		}
		if _, err := bk.Apply(envs[i%len(envs)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyDuplicate(b *testing.B) {
	env := beacon(b, "a", 1, noon)
	bk := New(func() time.Time { return noon })
	bk.Apply(env)
	for b.Loop() {
		bk.Apply(env)
	}
}

func BenchmarkQuery10k(b *testing.B) {
	bk := New(func() time.Time { return noon })
	for i := range 10_000 {
		if _, err := bk.Apply(beacon(b, fmt.Sprint(i), 1, noon)); err != nil {
			b.Fatal(err)
		}
	}
	q, err := query.Parse("vram>=4GB price<0.4 class in [cpu, 4090]")
	if err != nil {
		b.Fatal(err)
	}
	q = q.Limit(50)
	var times []time.Duration
	for b.Loop() {
		start := time.Now()
		bk.Query(q)
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}
