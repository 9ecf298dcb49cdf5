package data

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

func TestShardPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Options{
			Tokenizer:   tokenizer.Byte{},
			ShardTokens: rapid.SampledFrom([]uint64{0, 0, 1, 1000, 1 << 20, 1 << 40}).Draw(t, "shard tokens"),
			Context:     rapid.IntRange(1, 4096).Draw(t, "context"),
			Peers:       rapid.IntRange(1, 64).Draw(t, "peers"),
		}
		train := rapid.Uint64Range(0, 1<<38).Draw(t, "train") >> rapid.IntRange(0, 38).Draw(t, "shift")
		val := train / 20
		count, valCount, err := shardCounts(o, train, val)
		if err != nil {
			if most := uint64(o.Peers) * uint64(leastWindows*o.Context+1); train >= most {
				t.Fatalf("%d tokens refused: %v", train, err)
			}
			return
		}
		if count < o.Peers || (val > 0) != (valCount > 0) {
			t.Fatalf("%d and %d shards", count, valCount)
		}
		least := uint64(o.Context + 1)
		if o.ShardTokens == 0 {
			least = uint64(leastWindows*o.Context + 1)
			if train >= 32*least && count < 24 {
				t.Fatalf("%d tokens give %d shards", train, count)
			}
		}
		sum := uint64(0)
		for i := range count {
			size := shardSize(train, count, i)
			if size < least || size > dataset.MaxShardBytes/2 {
				t.Fatalf("shard %d of %d has %d tokens", i, count, size)
			}
			sum += size
		}
		if sum != train {
			t.Fatalf("shards hold %d of %d tokens", sum, train)
		}
	})
}

func TestHeldOutThreshold(t *testing.T) {
	for name, c := range map[string]struct {
		keys     []uint64
		fraction float64
		held     int
	}{
		"none wanted":      {[]uint64{1, 2, 3}, 0, 0},
		"a single one":     {[]uint64{1}, 0.5, 0},
		"nothing":          {nil, 0.5, 0},
		"too rare":         {[]uint64{1 << 63, 1<<63 + 1, 1<<63 + 2}, 1e-9, 1},
		"too many":         {[]uint64{1, 2, 3}, 0.999, 2},
		"half of the keys": {[]uint64{1, 1 << 62, 1<<63 + 1, 1<<63 + 5}, 0.5, 2},
	} {
		smallest, largest := uint64(math.MaxUint64), uint64(0)
		for _, k := range c.keys {
			smallest, largest = min(smallest, k), max(largest, k)
		}
		threshold, held := heldOut(smallest, largest, c.fraction), 0
		for _, k := range c.keys {
			if k < threshold {
				held++
			}
		}
		if held != c.held {
			t.Errorf("%s: %d held out, want %d", name, held, c.held)
		}
	}
}

// A file that repeats itself may be held out but for its tail: the held-out side is not cut into shards of the tail's size.
func TestHeldOutMoreThanTrained(t *testing.T) {
	train, val, err := shardCounts(Options{Tokenizer: tokenizer.Byte{}, Context: 1, Peers: 1}, 32, 10<<20)
	if err != nil || val > train {
		t.Errorf("%d training shards, %d held out, %v", train, val, err)
	}
}
