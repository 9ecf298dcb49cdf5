package transfer

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
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
	server := &Server{store: store}
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &tape{Reader: bytes.NewReader(input)}
		if server.log == nil {
			server.log = Options{}.withDefaults().Logger
		}
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
	header{statusBlock, 3, uint32(len(block))}.put(good)
	f.Add(append(good, block...))
	f.Add(append(good[:headerSize:headerSize], "the only wrong answer"...))
	denial := make([]byte, headerSize)
	header{statusNotFound, 3, 0}.put(denial)
	f.Add(denial)
	o := Options{}.withDefaults()
	buf := make([]byte, unixfs.MaxBlock)
	f.Fuzz(func(t *testing.T, input []byte) {
		var down counters
		c := newConn(&tape{Reader: bytes.NewReader(input)}, o, &down)
		p := newPlan(unixfs.RawCID(block), []int{3}, time.Second, func(_ int, data []byte) error {
			if !bytes.Equal(data, block) {
				return storage.ErrCorrupt
			}
			return nil
		})
		got, err := c.answer(call{p, []int{3}, func() {}}, 3, buf)
		if ended, _ := p.result(); ended != (got && err == nil) {
			t.Fatalf("answer gives %v, %v; plan ended: %v", got, err, ended)
		}
	})
}
