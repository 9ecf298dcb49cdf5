package transfer

import (
	"bytes"
	"context"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// tape is a stream whose input is given and whose output is kept.
type tape struct {
	io.Reader
	bytes.Buffer
}

func (t *tape) Read(b []byte) (int, error)  { return t.Reader.Read(b) }
func (t *tape) Write(b []byte) (int, error) { return t.Buffer.Write(b) }
func (t *tape) Close() error                { return nil }
func (t *tape) CloseWrite() error           { return nil }
func (t *tape) Reset() error                { return nil }
func (t *tape) SetDeadline(time.Time) error { return nil }
func (t *tape) Remote() peer.ID             { return "" }

// FuzzRequest lets the server answer hostile input: it must stop with an error or at the end, and write no more than the
// blocks that it was asked for.
func FuzzRequest(f *testing.F) {
	ctx := context.Background()
	store, err := storage.OpenMem()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { store.Close() })
	c, err := store.PutBytes(ctx, []byte("a small object"), storage.PutOptions{})
	if err != nil {
		f.Fatal(err)
	}
	for _, req := range []Request{
		{CID: wire.Link{Cid: c}},
		{CID: wire.Link{Cid: c}, Ranges: []Range{{0, 1}}},
		{CID: wire.Link{Cid: unixfs.NodeCID(nil)}, Ranges: []Range{{3, 2}, {1, 1}}},
	} {
		var frame bytes.Buffer
		if err := wire.WriteRecord(&frame, req); err != nil {
			f.Fatal(err)
		}
		f.Add(frame.Bytes())
	}
	server := newServer(store, ServeOptions{})
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &tape{Reader: bytes.NewReader(input)}
		if err := server.serve(ctx, s); err == nil {
			t.Fatal("the server never stops")
		}
		if most := (len(input)/5 + 1) * MaxBlocks * (headerSize + 14); s.Len() > most {
			t.Fatalf("%d bytes answer %d", s.Len(), len(input))
		}
	})
}

// FuzzAnswer lets a fetcher read hostile answers: what it delivers must match the hash.
func FuzzAnswer(f *testing.F) {
	block := []byte("the only right answer")
	good := make([]byte, headerSize)
	plain(statusBlock, 3, len(block)).put(good)
	f.Add(append(good, block...))
	f.Add(append(good[:headerSize:headerSize], "the only wrong answer"...))
	denial := make([]byte, headerSize)
	plain(statusNotFound, 3, 0).put(denial)
	f.Add(denial)
	packed := []byte{1, 0, 0, 0, 'x'} // no planes of anything
	encoded := make([]byte, headerSize)
	header{statusBlock, 3, encode.Planes4, uint32(len(packed)), uint32(len(block))}.put(encoded)
	f.Add(append(encoded, packed...))
	bomb := make([]byte, headerSize)
	header{statusBlock, 3, encode.Zstd, 4, unixfs.MaxBlock}.put(bomb)
	f.Add(append(bomb, 0x28, 0xb5, 0x2f, 0xfd))
	f.Fuzz(func(t *testing.T, input []byte) {
		s := alone(t)
		c := newConn(s, &tape{Reader: bytes.NewReader(input)})
		p := newPlan(unixfs.RawCID(block), []int{3}, time.Second, func(_ int, data []byte) error {
			if !bytes.Equal(data, block) {
				return storage.ErrCorrupt
			}
			return nil
		})
		got, err := c.answer(t.Context(), p, 3)
		c.working.Wait()
		if ended, _ := p.result(); ended != (got && err == nil && c.bad == nil) {
			t.Fatalf("answer gives %v, %v, %v; plan ended: %v", got, err, c.bad, ended)
		}
	})
}

// alone returns a session without sources that hashes blocks at once.
func alone(t *testing.T) *session {
	f := &Fetcher{opts: Options{}.withDefaults(), mem: newMemory(0)}
	f.bufs.New = func() any { return new([unixfs.MaxBlock]byte) }
	f.decoders.New = func() any { return encode.NewDecoder() }
	s := f.session(t.Context(), unixfs.RawCID(nil), Ask{})
	go func() {
		for job := range s.jobs {
			job()
		}
	}()
	t.Cleanup(func() { close(s.jobs) })
	return s
}

// FuzzHave reads what a hostile source says that it has: it must keep within a file, and within memory.
func FuzzHave(f *testing.F) {
	f.Add(have{complete: true}.encode())
	some := newBits(unixfs.MaxLeaves)
	some.setRun(0, 3)
	some.setRun(60, 200)
	some.setRun(unixfs.MaxLeaves-1, 1)
	f.Add(have{delta: true, epoch: 7, count: 204, blocks: some}.encode())
	f.Fuzz(func(t *testing.T, input []byte) {
		h, err := parseHave(input)
		if err != nil {
			return
		}
		if again, err := parseHave(h.encode()); err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%+v becomes %+v, %v", h, again, err)
		}
		p := newPlan(unixfs.RawCID(nil), []int{0, 5, 100}, time.Second, nil)
		source := newFlow("source")
		p.learn(source, h)
		p.learn(source, h)
		p.forget(source)
		for b, n := range p.rare {
			if n != 0 {
				t.Fatalf("block %d is counted %d times after its source has gone", b, n)
			}
		}
	})
}

// FuzzBans reads a broken file of bans.
func FuzzBans(f *testing.F) {
	f.Add([]byte(`{"12D3KooW":{"count":2,"last":"2026-01-02T03:04:05Z"}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, input []byte) {
		list, err := parseBans(input)
		for name, s := range list {
			if err == nil && (s.Count < 1 || s.Last.IsZero()) {
				t.Fatalf("%q: %+v", name, s)
			}
		}
	})
}
