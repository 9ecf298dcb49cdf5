package data

import (
	"context"
	"errors"
	"github.com/capacloud/capanode/trainer/engine"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/round"
)

// built is a small dataset and its store.
func built(t *testing.T) (dataset.Manifest, cid.Cid, *storage.Store) {
	t.Helper()
	store := memory(t)
	m, link, _, err := Build(context.Background(), options(write(t, prose(60))), store)
	if err != nil {
		t.Fatal(err)
	}
	return m, link.Cid, store
}

// side returns all tokens of each shard of one split.
func side(t *testing.T, m dataset.Manifest, store *storage.Store, split dataset.Split) [][]int32 {
	t.Helper()
	var shards [][]int32
	for i, s := range m.Shards {
		if s.Split != split {
			continue
		}
		tokens, err := m.ReadShard(context.Background(), store.ReadAll, i)
		if err != nil {
			t.Fatal(err)
		}
		ids := make([]int32, tokens.Len())
		tokens.Copy(ids, 0)
		shards = append(shards, ids)
	}
	return shards
}

func TestWindowsCoverEachShardOnce(t *testing.T) {
	m, c, store := built(t)
	const n = 16
	s, err := Open(context.Background(), c, store.ReadAll, SourceOptions{Context: n, Vocab: 257})
	if err != nil {
		t.Fatal(err)
	}
	shards := side(t, m, store, dataset.Train)
	if s.Shards() != len(shards) {
		t.Fatalf("%d shards, want %d", s.Shards(), len(shards))
	}
	for shard, ids := range shards {
		windows := s.Windows(shard)
		if left := len(ids) - int(windows)*n; left < 1 || left > n {
			t.Fatalf("shard %d: %d windows leave %d tokens", shard, windows, left)
		}
		var refs []round.Window
		for w := range windows {
			refs = append(refs, round.Window{Shard: shard, Index: w})
		}
		b, err := s.Batch(context.Background(), refs)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Check(engine.Program{Vocab: 257, Context: n}, engine.Needs{Inputs: true, Targets: n}, true); err != nil {
			t.Fatal(err)
		}
		if end := int(windows) * n; !slices.Equal(b.Inputs, ids[:end]) || !slices.Equal(b.Targets, ids[1:end+1]) {
			t.Fatalf("shard %d: rows are not its tokens", shard)
		}
	}
}

func TestBatchKeepsTheOrderOfItsWindows(t *testing.T) {
	m, c, store := built(t)
	shards := side(t, m, store, dataset.Train)
	reads := 0
	counting := func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) {
		reads++
		return store.ReadAll(ctx, c, limit)
	}
	s, err := Open(context.Background(), c, counting, SourceOptions{Context: 8, Vocab: 300, Cache: 1})
	if err != nil {
		t.Fatal(err)
	}
	reads = 0
	refs := []round.Window{{Shard: 2, Index: 1}, {Shard: 0, Index: 3}, {Shard: 2, Index: 0}, {Shard: 0, Index: 0}}
	b, err := s.Batch(context.Background(), refs)
	if err != nil {
		t.Fatal(err)
	}
	for row, w := range refs {
		want := shards[w.Shard][w.Index*8 : w.Index*8+8]
		if got := b.Inputs[row*8 : row*8+8]; !slices.Equal(got, want) {
			t.Errorf("row %d is %v, want %v", row, got, want)
		}
	}
	if reads != 2 {
		t.Errorf("two shards took %d reads", reads)
	}
	if len(s.cached) != 1 {
		t.Errorf("%d shards in memory beyond the limit", len(s.cached))
	}
}

func TestCacheKeepsTheLatestShards(t *testing.T) {
	m, c, store := built(t)
	var reads []cid.Cid
	counting := func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) {
		reads = append(reads, c)
		return store.ReadAll(ctx, c, limit)
	}
	two := 2 * 2 * int64(m.Shards[0].Tokens)
	s, err := Open(context.Background(), c, counting, SourceOptions{Context: 8, Vocab: 257, Cache: two})
	if err != nil {
		t.Fatal(err)
	}
	reads = nil
	for _, shard := range []int{0, 1, 0, 2, 0, 1} { // 2 pushes 1 out
		if _, err := s.Batch(context.Background(), []round.Window{{Shard: shard}}); err != nil {
			t.Fatal(err)
		}
	}
	var want []cid.Cid
	for _, shard := range []int{0, 1, 2, 1} {
		want = append(want, m.Shards[shard].CID.Cid)
	}
	if !slices.Equal(reads, want) || s.size > two {
		t.Errorf("reads %v, want %v; %d bytes in memory", reads, want, s.size)
	}
}

func TestValidationIsFixedAndFull(t *testing.T) {
	m, c, store := built(t)
	s, err := Open(context.Background(), c, store.ReadAll, SourceOptions{Context: 16, Vocab: 257})
	if err != nil {
		t.Fatal(err)
	}
	ids := side(t, m, store, dataset.Val)[0]
	for _, x := range []struct{ rows, most, batches, size int }{
		{4, 8, 2, 4}, {4, 11, 2, 4}, {8, 3, 1, 3}, {1, 2, 2, 1},
	} {
		batches, err := s.Validation(context.Background(), x.rows, x.most)
		if err != nil {
			t.Fatal(err)
		}
		if len(batches) != x.batches || batches[0].Rows != x.size || !slices.Equal(batches[0].Inputs[:16], ids[:16]) {
			t.Errorf("%+v: %d batches of %d rows", x, len(batches), batches[0].Rows)
		}
	}
	o := options(write(t, prose(5)))
	o.ValFraction = 0
	none, _, _, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = NewSource(none, store.ReadAll, SourceOptions{Context: 16, Vocab: 257}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Validation(context.Background(), 4, 8); !errors.Is(err, ErrNoValidation) {
		t.Error(err)
	}
}

func TestSourceRefusals(t *testing.T) {
	m, c, store := built(t)
	ctx := context.Background()
	good := SourceOptions{Context: 16, Vocab: 257}
	s, err := NewSource(m, store.ReadAll, good)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []round.Window{{Shard: -1}, {Shard: s.Shards()}, {Shard: 0, Index: s.Windows(0)}, {Shard: 0, Index: 1 << 63}} {
		if _, err := s.Batch(ctx, []round.Window{w}); !errors.Is(err, ErrWindow) {
			t.Errorf("%+v: %v", w, err)
		}
	}
	for _, o := range []SourceOptions{{Context: 16, Vocab: 256}, {Context: 0, Vocab: 257}, {Context: 16}, {Context: 16, Vocab: 1 << 31}} {
		if _, err := NewSource(m, store.ReadAll, o); !errors.Is(err, ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := Open(ctx, m.Shards[0].CID.Cid, store.ReadAll, good); !errors.Is(err, dataset.ErrInvalid) {
		t.Errorf("a shard as manifest: %v", err)
	}
	other := func(context.Context, cid.Cid, int64) ([]byte, error) { return []byte{0xa0}, nil }
	if _, err := Open(ctx, c, other, good); !errors.Is(err, dataset.ErrInvalid) {
		t.Errorf("another record under the CID: %v", err)
	}
	if s, err = NewSource(m, other, good); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Batch(ctx, []round.Window{{}}); !errors.Is(err, dataset.ErrInvalid) {
		t.Errorf("garbage as shard: %v", err)
	}
	gone := func(context.Context, cid.Cid, int64) ([]byte, error) { return nil, storage.ErrNotFound }
	if s, err = NewSource(m, gone, good); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Batch(ctx, []round.Window{{}}); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("missing shard: %v", err)
	}
}
