package transfer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/storage/transfer"
)

// weights are n bytes of bfloat16 as training leaves them; equal seeds give equal weights.
func weights(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := 0; i+2 <= n; i += 2 {
		binary.LittleEndian.PutUint16(b[i:], uint16(math.Float32bits(float32(rng.NormFloat64()*0.02))>>16))
	}
	return b
}

// checkpoint is a safetensors file of four tensors of unequal size, the smallest one tiny.
func checkpoint(seeds [4]uint64) []byte {
	head := []byte(`{"a":{"dtype":"BF16","shape":[700000],"data_offsets":[0,1400000]},"b":{"dtype":"BF16","shape":[100],"data_offsets":[1400000,1400200]},` +
		`"c":{"dtype":"BF16","shape":[300000],"data_offsets":[1400200,2000200]},"d":{"dtype":"BF16","shape":[300000],"data_offsets":[2000200,2600200]}}`)
	for len(head)%8 != 0 {
		head = append(head, ' ')
	}
	out := append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...)
	for i, n := range []int{1_400_000, 200, 600_000, 600_000} {
		out = append(out, weights(seeds[i], n)...)
	}
	return out
}

func putCheckpoint(t *testing.T, s *storage.Store, data []byte) cid.Cid {
	t.Helper()
	info, err := s.PutFile(context.Background(), bytes.NewReader(data), int64(len(data)), storage.PutOptions{Cut: safetensors.Cut})
	if err != nil {
		t.Fatal(err)
	}
	return info.CID
}

// TestCheckpointsTravelEncodedAndOnce fetches two checkpoints that share two tensors: the first in two thirds of its bytes, of the
// second only what is new.
func TestCheckpointsTravelEncodedAndOnce(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	a.server = transfer.Serve(a, a.store, transfer.ServeOptions{Encode: transfer.EncodeAlways})
	first, second := checkpoint([4]uint64{1, 2, 3, 4}), checkpoint([4]uint64{1, 5, 3, 6})
	one, two := putCheckpoint(t, a.store, first), putCheckpoint(t, a.store, second)
	if err := b.fetch.Fetch(t.Context(), one, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, one, first)
	s := b.fetch.Stats()
	if s.Wire > s.Bytes*70/100 || s.Wire < s.Bytes/2 {
		t.Fatalf("%d bytes travelled for %d", s.Wire, s.Bytes)
	}
	if up := a.server.Stats(); up.Wire != s.Wire {
		t.Fatalf("%d bytes were sent, %d arrived", up.Wire, s.Wire)
	}
	if err := b.fetch.Fetch(t.Context(), two, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, two, second)
	// What is new: the header is not, the small tensor and the last one are, and the node of the file.
	if more := b.fetch.Stats().Bytes - s.Bytes; more < 600_200 || more > 602_000 {
		t.Fatalf("%d bytes came over for 600,200 new ones", more)
	}
	b.check(t, one, first)
}

// TestReadCheckpointWhileItArrives reads a file of unequal blocks through the reader of an unfinished fetch.
func TestReadCheckpointWhileItArrives(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	a.server = transfer.Serve(a, a.store, transfer.ServeOptions{Encode: transfer.EncodeAlways})
	first, second := checkpoint([4]uint64{1, 2, 3, 4}), checkpoint([4]uint64{1, 5, 3, 1})
	if err := b.fetch.Fetch(t.Context(), putCheckpoint(t, a.store, first), []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	r, err := b.fetch.Open(t.Context(), putCheckpoint(t, a.store, second), transfer.Ask{From: []peer.ID{a.ID()}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tensors, err := safetensors.ReadHeader(r, r.Size())
	if err != nil || len(tensors) != 4 {
		t.Fatalf("%v, %v", tensors, err)
	}
	for _, x := range tensors {
		got := make([]byte, x.Bytes)
		if _, err := r.ReadAt(got, x.Offset); err != nil || !bytes.Equal(got, second[x.Offset:x.Offset+x.Bytes]) {
			t.Fatalf("tensor %s: %v", x.Name, err)
		}
	}
}

// TestRawClientsGetRawBlocks: who takes no encodings is sent none, whatever the server prefers.
func TestRawClientsGetRawBlocks(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	transfer.Serve(a, a.store, transfer.ServeOptions{Encode: transfer.EncodeAlways})
	raw := fast
	raw.Raw = true
	f := transfer.NewFetcher(b, b, b.store, raw)
	data := checkpoint([4]uint64{1, 2, 3, 4})
	c := putCheckpoint(t, a.store, data)
	if err := f.Fetch(t.Context(), c, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, c, data)
	if s := f.Stats(); s.Wire != s.Bytes {
		t.Fatalf("%d bytes travelled for %d", s.Wire, s.Bytes)
	}
}

// TestBrokenEncodingsEndTheSource: a source whose encoded blocks do not decode is dropped, and an honest one delivers.
func TestBrokenEncodingsEndTheSource(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	data := checkpoint([4]uint64{1, 2, 3, 4})
	c := putCheckpoint(t, a.store, data)
	liar := w.evil("liar", func(_ context.Context, s p2p.Stream) {
		for {
			var req transfer.Request
			if wire.ReadRecord(s, transfer.MaxRequest, &req) != nil || len(req.Ranges) == 0 {
				return
			}
			head := make([]byte, 14)
			binary.BigEndian.PutUint32(head[1:], req.Ranges[0].First)
			head[5] = 3
			binary.BigEndian.PutUint32(head[6:], 9)
			binary.BigEndian.PutUint32(head[10:], 100)
			if _, err := io.Copy(s, bytes.NewReader(append(head, "no planes"...))); err != nil {
				return
			}
		}
	})
	if err := b.fetch.Fetch(t.Context(), c, []peer.ID{liar, a.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, c, data)
}
