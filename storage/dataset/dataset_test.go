package dataset_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/storage/unixfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func sample() dataset.Manifest {
	return dataset.Manifest{
		Version:   dataset.Version,
		Name:      "sonnets",
		Tokenizer: dataset.Tokenizer{Kind: "bytes", Vocab: 256},
		Dtype:     dataset.U8,
		Shards: []dataset.Shard{
			{CID: wire.Link{Cid: unixfs.RawCID([]byte("one"))}, Tokens: 1000, Bytes: 400, Split: dataset.Train},
			{CID: wire.Link{Cid: unixfs.RawCID([]byte("two"))}, Tokens: 500, Bytes: 220, Split: dataset.Train},
			{CID: wire.Link{Cid: unixfs.NodeCID([]byte("three"))}, Tokens: 70, Bytes: 60, Split: dataset.Val},
		},
		TrainTokens: 1500,
		ValTokens:   70,
		Sources:     []dataset.Source{{Name: "sonnets.txt", Documents: 154, Bytes: 1570, Tokens: 1570}},
	}
}

func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return want
}

func TestManifestGolden(t *testing.T) {
	got, err := dataset.Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	if want := golden(t, "manifest.hex", got); !bytes.Equal(got, want) {
		t.Fatalf("encoding changed:\n%x\nwant\n%x", got, want)
	}
	const want = "bafyreib3astx7tntnzuyzvgg7m7lpc3ogwpenitxgprgyhfkrxus4kygpq"
	if c := wire.RecordCID(got).String(); c != want {
		t.Fatalf("CID %s, want %s", c, want)
	}
	m, err := dataset.Decode(got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := dataset.Encode(m)
	if err != nil || !bytes.Equal(again, got) {
		t.Fatalf("second encoding %x, %v", again, err)
	}
}

func TestManifestRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*dataset.Manifest){
		"version":        func(m *dataset.Manifest) { m.Version = 2 },
		"dtype":          func(m *dataset.Manifest) { m.Dtype = "u64" },
		"no shards":      func(m *dataset.Manifest) { m.Shards, m.TrainTokens, m.ValTokens = nil, 0, 0 },
		"vocabulary":     func(m *dataset.Manifest) { m.Tokenizer.Vocab = 257 },
		"no vocabulary":  func(m *dataset.Manifest) { m.Tokenizer.Vocab = 0 },
		"no name":        func(m *dataset.Manifest) { m.Name = "" },
		"long name":      func(m *dataset.Manifest) { m.Sources[0].Name = strings.Repeat("x", dataset.MaxName+1) },
		"train sum":      func(m *dataset.Manifest) { m.TrainTokens++ },
		"val sum":        func(m *dataset.Manifest) { m.ValTokens = math.MaxUint64 },
		"split":          func(m *dataset.Manifest) { m.Shards[0].Split = "test" },
		"no CID":         func(m *dataset.Manifest) { m.Shards[0].CID = wire.Link{} },
		"record CID":     func(m *dataset.Manifest) { m.Shards[0].CID = wire.Link{Cid: wire.RecordCID(nil)} },
		"CIDv0":          func(m *dataset.Manifest) { m.Shards[0].CID = wire.Link{Cid: cid.NewCidV0(m.Shards[0].CID.Hash())} },
		"huge shard":     func(m *dataset.Manifest) { m.Shards[0].Tokens = math.MaxUint64 },
		"empty shard":    func(m *dataset.Manifest) { m.Shards[0].Tokens, m.TrainTokens = 0, 500 },
		"inflated shard": func(m *dataset.Manifest) { m.Shards[0].Bytes = 1 << 20 },
		"only val":       func(m *dataset.Manifest) { m.Shards, m.TrainTokens = m.Shards[2:], 0 },
	} {
		t.Run(name, func(t *testing.T) {
			m := sample()
			spoil(&m)
			if _, err := dataset.Encode(m); err == nil {
				t.Error("Encode accepts it")
			}
			b, err := wire.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := dataset.Decode(b); err == nil {
				t.Error("Decode accepts it")
			}
		})
	}
}

func TestShardRoundTrip(t *testing.T) {
	ctx := context.Background()
	s, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, d := range []dataset.Dtype{dataset.U8, dataset.U16, dataset.U32} {
		limit := 1 << (8*d.Width() - 1)
		ids := make([]int, 5000)
		for i := range ids {
			ids[i] = i * 7919 % min(limit, 1<<30)
		}
		tokens, err := dataset.FromInts(d, ids)
		if err != nil {
			t.Fatal(err)
		}
		file, err := dataset.EncodeShard(tokens)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.PutBytes(ctx, file, storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m := dataset.Manifest{
			Version: dataset.Version, Name: "x", Dtype: d, TrainTokens: uint64(len(ids)),
			Tokenizer: dataset.Tokenizer{Kind: "ids", Vocab: uint64(limit)},
			Shards:    []dataset.Shard{{CID: wire.Link{Cid: c}, Tokens: uint64(len(ids)), Bytes: uint64(len(file)), Split: dataset.Train}},
		}
		got, err := m.ReadShard(ctx, s.ReadAll, 0)
		if err != nil {
			t.Fatal(err)
		}
		window := make([]int32, 6000)
		if n := got.Copy(window, 10); n != len(ids)-10 {
			t.Fatalf("copied %d", n)
		}
		for i := range ids[10:] {
			if window[i] != int32(ids[10+i]) {
				t.Fatalf("%s: token %d is %d, want %d", d, 10+i, window[i], ids[10+i])
			}
		}
		m.Tokenizer.Vocab = 5
		if _, err := m.ReadShard(ctx, s.ReadAll, 0); !errors.Is(err, dataset.ErrInvalid) {
			t.Fatalf("tokens outside the vocabulary: %v", err)
		}
		if _, err := dataset.DecodeShard(file, d, uint64(len(ids))-1); !errors.Is(err, dataset.ErrInvalid) {
			t.Fatalf("another count than the manifest's: %v", err)
		}
		for _, bad := range [][]byte{file[:10], file[:len(file)-1], append(append([]byte(nil), file...), file[16:]...)} {
			if _, err := dataset.DecodeShard(bad, d, uint64(len(ids))); !errors.Is(err, dataset.ErrInvalid) {
				t.Fatalf("%d of %d bytes: %v", len(bad), len(file), err)
			}
		}
	}
	if _, err := dataset.FromInts(dataset.U8, []int{256}); !errors.Is(err, dataset.ErrInvalid) {
		t.Fatalf("256 in u8: %v", err)
	}
}

// TestShardGolden reads a file written by an earlier version; what the compressor writes today may differ.
func TestShardsOfEveryNearSize(t *testing.T) {
	raw := make([]byte, 1100)
	for n := 1; n <= len(raw); n++ {
		file, err := dataset.EncodeShard(dataset.FromBytes(raw[:n]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dataset.DecodeShard(file, dataset.U8, uint64(n)); err != nil {
			t.Fatalf("%d tokens: %v", n, err)
		}
	}
}

func TestShardGolden(t *testing.T) {
	text := bytes.Repeat([]byte("Shall I compare thee to a summer's day? "), 8)
	file, err := dataset.EncodeShard(dataset.FromBytes(text))
	if err != nil {
		t.Fatal(err)
	}
	got, err := dataset.DecodeShard(golden(t, "shard.hex", file), dataset.U8, uint64(len(text)))
	if err != nil || !bytes.Equal(got.Raw, text) {
		t.Fatalf("%q, %v", got.Raw, err)
	}
}

func FuzzDecode(f *testing.F) {
	b, err := dataset.Encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dataset.Decode(b)
		if err != nil {
			return
		}
		again, err := dataset.Encode(m)
		if err != nil {
			t.Fatalf("decoded manifest does not encode: %v", err)
		}
		if _, err := dataset.Decode(again); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeShard(f *testing.F) {
	for _, d := range []dataset.Dtype{dataset.U8, dataset.U16, dataset.U32} {
		tokens, err := dataset.FromInts(d, []int{1, 2, 3, 3, 3, 3})
		if err != nil {
			f.Fatal(err)
		}
		file, err := dataset.EncodeShard(tokens)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		d, n, err := dataset.ParseHeader(file)
		if err != nil || n > 1<<20 { // larger claims are legal and only slow the fuzzer down
			return
		}
		tokens, err := dataset.DecodeShard(file, d, n)
		if err == nil && uint64(tokens.Len()) != n {
			t.Fatalf("%d tokens, header says %d", tokens.Len(), n)
		}
	})
}

func TestFilesOfASplit(t *testing.T) {
	m := dataset.Manifest{}
	var want []cid.Cid
	for i, split := range []dataset.Split{dataset.Train, dataset.Val, dataset.Train} {
		c := unixfs.RawCID([]byte{byte(i)})
		m.Shards = append(m.Shards, dataset.Shard{CID: wire.Link{Cid: c}, Split: split})
		if split == dataset.Train {
			want = append(want, c)
		}
	}
	if got := m.Files(dataset.Train); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
