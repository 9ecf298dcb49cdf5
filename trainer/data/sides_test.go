package data

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A file of many equal documents, whichever they are, leaves half of itself for training at least.
func TestFilesThatRepeatThemselves(t *testing.T) {
	for seed := range 8 {
		var text strings.Builder
		for i := range 40 { // 1.2 MiB of two paragraphs in turn, the sections of which have few forms
			line := fmt.Sprintf("paragraph %d of seed %d repeats itself again and again\n", i%2, seed)
			text.WriteString(strings.Repeat(line, (32<<10)/len(line)))
		}
		text.WriteString("the end\n")
		o := options(write(t, map[string]string{"copies.txt": text.String()}))
		o.Seed = uint64(seed)
		store := memory(t)
		m, _, _, err := Build(context.Background(), o, store)
		if err != nil {
			t.Fatal(err)
		}
		if share := float64(m.ValTokens) / float64(m.Total()); share <= 0 || share > 0.5 {
			t.Errorf("seed %d: %.3f of the file is held out", seed, share)
		}
	}
}

// Whatever repeats, something is held out and something trained where there are two texts, and what repeats is held out up to twice
// the share at most, unless that is all there is to hold out.
func TestSidesAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fraction := rapid.Float64Range(0.001, 0.5).Draw(t, "fraction")
		c := classes{byKey: map[uint64]class{}, below: math.MaxUint64}
		smallest, largest, short := uint64(math.MaxUint64), uint64(0), uint64(math.MaxUint64)
		var keys []uint64
		for range rapid.IntRange(2, 40).Draw(t, "texts") {
			key := rapid.Uint64().Draw(t, "key")
			if slices.Contains(keys, key) {
				continue
			}
			keys = append(keys, key)
			smallest, largest = min(smallest, key), max(largest, key)
			copies, bytes := rapid.IntRange(1, 50).Draw(t, "copies"), uint32(rapid.IntRange(1, 1<<16).Draw(t, "bytes"))
			if rapid.Bool().Draw(t, "short") {
				short = min(short, key)
				c.bytes += int64(bytes)
				continue
			}
			for range copies {
				c.add(key, bytes)
				c.bytes += int64(bytes)
			}
		}
		if len(keys) < 2 {
			return
		}
		s := c.sides(smallest, largest, short, fraction)
		held, repeated := 0, int64(0)
		for _, key := range keys {
			if s.held(key) {
				held++
				if x := c.byKey[key]; x.parts > 1 {
					repeated += x.bytes
				}
			}
		}
		if held == 0 || held == len(keys) {
			t.Fatalf("%d of %d texts are held out", held, len(keys))
		}
		if s.only == nil && float64(repeated) > 2*fraction*float64(c.bytes) {
			t.Fatalf("%d of %d bytes that repeat are held out, the share is %v", repeated, c.bytes, fraction)
		}
	})
}

// More classes than are remembered: those with the smallest keys stay.
func TestClassesAreBounded(t *testing.T) {
	c := classes{byKey: map[uint64]class{}, below: math.MaxUint64}
	for i := range uint64(3 * maxClasses) {
		c.add(contentKey(1, []byte(fmt.Sprint(i))), 1)
	}
	if n := len(c.byKey); n > maxClasses || n < maxClasses/4 || c.below == math.MaxUint64 {
		t.Errorf("%d classes below %x", n, c.below)
	}
}
