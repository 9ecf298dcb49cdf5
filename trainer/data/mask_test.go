package data

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/round"
)

var gaps = Masking{Seed: 5, Mask: 257, End: 256, Vocab: 257}

// maskedBatch masks rows of given tokens as the windows of one shard.
func maskedBatch(m Masking, epoch uint64, rows ...[]int32) engine.Batch {
	b := engine.Batch{Rows: len(rows), Context: len(rows[0]), Inputs: slices.Concat(rows...)}
	windows := make([]round.Window, len(rows))
	for i := range windows {
		windows[i] = round.Window{Shard: 3, Index: uint64(i), Epoch: epoch}
	}
	m.apply(&b, windows)
	return b
}

// text is a row of tokens.
func text(n int, id func(i int) int32) []int32 {
	row := make([]int32, n)
	for i := range row {
		row[i] = id(i)
	}
	return row
}

func TestMaskingIsAFunctionOfSeedAndWindow(t *testing.T) {
	row := text(64, func(i int) int32 { return int32(i * 3 % 251) })
	first := maskedBatch(gaps, 0, row, row, row)
	if again := maskedBatch(gaps, 0, row, row, row); !reflect.DeepEqual(first, again) {
		t.Error("the same windows are masked in another way")
	}
	// Computed alone, in another batch, a window is masked as it was among others.
	alone := engine.Batch{Rows: 1, Context: 64, Inputs: slices.Clone(row)}
	gaps.apply(&alone, []round.Window{{Shard: 3, Index: 2}})
	if !slices.Equal(alone.Inputs, first.Inputs[128:]) || !slices.Equal(alone.Picks, first.Picks[20:]) || !slices.Equal(alone.Targets, first.Targets[20:]) {
		t.Error("a window's masks depend on its neighbours")
	}
	other := gaps
	other.Seed++
	for what, b := range map[string]engine.Batch{"pass over the data": maskedBatch(gaps, 1, row, row, row), "seed": maskedBatch(other, 0, row, row, row)} {
		if slices.Equal(b.Picks, first.Picks) {
			t.Errorf("another %s picks the same tokens", what)
		}
	}
	if slices.Equal(first.Picks[:10], first.Picks[10:20]) {
		t.Error("two windows have the same picks")
	}
	// The bytes of the draws are part of the format: a run that is replayed elsewhere must see the same gaps.
	h := sha256.New()
	for _, list := range [][]int32{first.Inputs, first.Picks, first.Targets} {
		_ = binary.Write(h, binary.LittleEndian, list)
	}
	const want = "9952aba6c0a8c944"
	if got := fmt.Sprintf("%x", h.Sum(nil)[:8]); got != want {
		t.Errorf("the masks are %s, were %s", got, want)
	}
}

func TestMaskingShares(t *testing.T) {
	const length, rows = 200, 500
	var all [][]int32
	for r := range rows {
		all = append(all, text(length, func(i int) int32 { // an end of text now and then
			if (i+r)%50 == 0 {
				return 256
			}
			return int32((i*7 + r) % 256)
		}))
	}
	b := maskedBatch(gaps, 0, all...)
	if want := rows * model.Masked(length); len(b.Picks) != want || len(b.Targets) != want || model.Masked(length) != 30 {
		t.Fatalf("%d picks, want %d", len(b.Picks), want)
	}
	var masked, kept, replaced int
	changed := map[int]bool{}
	for i, pick := range b.Picks {
		at := i/30*length + int(pick)
		was := all[i/30][pick]
		if b.Targets[i] != was || was == 256 {
			t.Fatalf("target %d is %d, the token was %d", i, b.Targets[i], was)
		}
		changed[at] = true
		switch now := b.Inputs[at]; {
		case now == gaps.Mask:
			masked++
		case now == was:
			kept++
		default:
			replaced++
		}
	}
	for at, now := range b.Inputs {
		if !changed[at] && now != all[at/length][at%length] {
			t.Fatalf("token %d changed without being a target", at)
		}
	}
	n := float64(len(b.Picks)) // 15,000: a deviation of 0.3 % of them
	for what, c := range map[string][2]float64{"masked": {float64(masked) / n, 0.8}, "kept": {float64(kept) / n, 0.1 + 0.1/257}, "replaced": {float64(replaced) / n, 0.1}} {
		if c[0] < c[1]-0.015 || c[0] > c[1]+0.015 {
			t.Errorf("%s: %.3f of the targets, want %.2f", what, c[0], c[1])
		}
	}
	if err := b.Check(engine.Program{Vocab: 258, Context: length}, engine.Needs{Inputs: true, Picks: length, Targets: 30}, true); err != nil {
		t.Error(err)
	}
}

// Where there is little but ends of texts, those are picked to fill up and not predicted; where there is nothing else, they are.
func TestMaskingFewWords(t *testing.T) {
	few := text(20, func(i int) int32 {
		if i == 7 {
			return 65
		}
		return 256
	})
	b := maskedBatch(gaps, 0, few)
	if len(b.Picks) != 3 || b.TargetCount() != 1 || !slices.Contains(b.Targets, 65) || !slices.IsSorted(b.Picks) {
		t.Errorf("picks %v, targets %v", b.Picks, b.Targets)
	}
	none := text(20, func(int) int32 { return 256 })
	if b := maskedBatch(gaps, 0, none); b.TargetCount() != 3 {
		t.Errorf("picks %v, targets %v", b.Picks, b.Targets)
	}
	if b := maskedBatch(gaps, 0, []int32{65}); len(b.Picks) != 1 || b.Targets[0] != 65 {
		t.Errorf("one token: picks %v, targets %v", b.Picks, b.Targets)
	}
}

// The source hands out masked windows for training and for measuring, the same ones every time.
func TestMaskedSource(t *testing.T) {
	_, c, store := built(t)
	open := func(m *Masking) *Source {
		s, err := Open(context.Background(), c, store.ReadAll, SourceOptions{Context: 16, Vocab: 258, Masking: m})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	plain, masked := open(nil), open(&gaps)
	windows := []round.Window{{Shard: 0, Index: 1}, {Shard: 1, Index: 0}, {Shard: 0, Index: 1, Epoch: 4}}
	a, err := plain.Batch(context.Background(), windows)
	if err != nil {
		t.Fatal(err)
	}
	b, err := masked.Batch(context.Background(), windows)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Equal(b.Picks[:2], b.Picks[4:]) {
		t.Errorf("picks %v: another pass over the shard has the same", b.Picks)
	}
	for i, pick := range b.Picks {
		if want := a.Inputs[i/2*16+int(pick)]; b.Targets[i] != want && b.Targets[i] != engine.Ignore {
			t.Errorf("target %d is %d, the text has %d", i, b.Targets[i], want)
		}
	}
	one, err := masked.Validation(context.Background(), 2, 4)
	if err != nil {
		t.Fatal(err)
	}
	two, err := masked.Validation(context.Background(), 2, 4)
	if err != nil || !reflect.DeepEqual(one, two) || len(one[0].Picks) != 4 {
		t.Errorf("held-out windows differ from one reading to the next, or have no gaps: %v", err)
	}
}
