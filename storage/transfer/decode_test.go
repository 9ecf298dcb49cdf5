package transfer

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// No decoder allocates more than twice the limit of its message, whatever length the other side claims.
func TestDecodersAllocateWithinLimits(t *testing.T) {
	claim := func(n uint32, rest int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), make([]byte, rest)...)
	}
	every := newBits(unixfs.MaxLeaves) // every other block: the most runs
	for i := 0; i < unixfs.MaxLeaves; i += 2 {
		every.set(i)
	}
	many := Request{CID: wire.Link{Cid: unixfs.NodeCID(nil)}}
	for i := range MaxRanges {
		many.Ranges = append(many.Ranges, Range{uint32(2 * i), 1})
	}
	var largest bytes.Buffer
	if err := wire.WriteRecord(&largest, many); err != nil {
		t.Fatal(err)
	}
	haves := have{blocks: every}.encode()
	if len(haves) < maxHave/2 || len(haves) > maxHave {
		t.Fatalf("the largest have has %d bytes", len(haves))
	}
	for name, c := range map[string]struct {
		limit  uint64
		decode func()
	}{
		"request that claims 4 GiB":  {MaxRequest, func() { _, _ = readRequest(bytes.NewReader(claim(1<<32-1, 8))) }},
		"request that claims 4 KiB":  {MaxRequest, func() { _, _ = readRequest(bytes.NewReader(claim(MaxRequest, 8))) }},
		"request of many ranges":     {MaxRequest, func() { _, _ = readRequest(bytes.NewReader(largest.Bytes())) }},
		"have of many runs":          {maxHave, func() { _, _ = parseHave(haves) }},
		"header that claims 4 GiB":   {headerSize << 10, func() { _, _ = parseHeader(bytes.Repeat([]byte{0xff}, headerSize), 0, false, encode.All) }},
		"have header claims a block": {headerSize << 10, func() { _, _ = parseHeader(frameHead(statusHave, 1<<20), 0, true, encode.All) }},
	} {
		c.decode()
		var before, after runtime.MemStats
		const times = 20
		runtime.ReadMemStats(&before)
		for range times {
			c.decode()
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / times; got > 2*c.limit {
			t.Errorf("%s: %d bytes allocated, limit of the message %d", name, got, c.limit)
		}
	}
}

func frameHead(s status, length uint32) []byte {
	b := make([]byte, headerSize)
	plain(s, 0, int(length)).put(b)
	return b
}

// What a source is asked for at a time never breaks the limits of a request.
func TestOneRequest(t *testing.T) {
	var odd, all []int
	for i := range 2 * MaxBlocks {
		odd, all = append(odd, 2*i+1), append(all, i)
	}
	for _, blocks := range [][]int{odd, all, append(all[5:300:300], odd[:200]...), {7}} {
		for len(blocks) > 0 {
			n := oneRequest(blocks)
			req := Request{CID: wire.Link{Cid: unixfs.NodeCID(nil)}, Ranges: rangesOf(blocks[:n])}
			var frame bytes.Buffer
			if err := wire.WriteRecord(&frame, req); err != nil {
				t.Fatal(err)
			}
			if _, err := readRequest(&frame); err != nil || n == 0 {
				t.Fatalf("%d blocks in one request: %v", n, err)
			}
			blocks = blocks[n:]
		}
	}
}

// The set of blocks agrees with a map through random operations.
func TestBits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const size = 300
	b, also, want, other := newBits(size), newBits(size), map[int]bool{}, map[int]bool{}
	for range 2000 {
		switch i := random.IntN(size); random.IntN(4) {
		case 0:
			b.set(i)
			want[i] = true
		case 1:
			b.clear(i)
			delete(want, i)
		case 2:
			n := random.IntN(90)
			b.setRun(i, n)
			for j := i; j < i+n && j < 64*len(b); j++ {
				want[j] = true
			}
		case 3:
			also.set(i)
			other[i] = true
		}
		from := random.IntN(size)
		next, both := -1, -1
		for j := 64*len(b) - 1; j >= from; j-- {
			if want[j] {
				next = j
			}
			if want[j] && other[j] {
				both = j
			}
		}
		if got := b.next(nil, from); got != next {
			t.Fatalf("next from %d is %d, want %d", from, got, next)
		}
		if got := b.next(also, from); got != both {
			t.Fatalf("next of both from %d is %d, want %d", from, got, both)
		}
	}
	back, err := parseHave(have{blocks: b}.encode())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 * len(b) {
		if back.blocks.has(i) != want[i] {
			t.Fatalf("block %d does not survive the wire", i)
		}
	}
}

// An offer's news are what came since, and all of it to somebody who counts in another epoch.
func TestPlanLearns(t *testing.T) {
	p := newPlan(unixfs.RawCID(nil), []int{0, 1, 2, 3}, time.Second, nil)
	near, far := newFlow("near"), newFlow("far")
	p.learn(near, have{epoch: 1, count: 2, blocks: bits{0b0011}})
	if got := p.take(near, 9).blocks; !reflect.DeepEqual(got, []int{0, 1}) {
		t.Fatalf("near is asked for %v", got)
	}
	p.learn(near, have{delta: true, epoch: 1, count: 3, blocks: bits{0b0100}})
	// far has everything: it is asked for what nobody else has first.
	if got := p.take(far, 1).blocks; !reflect.DeepEqual(got, []int{3}) {
		t.Fatalf("far is asked for %v", got)
	}
	if epoch, count, partial := p.known(near); epoch != 1 || count != 3 || !partial {
		t.Fatalf("near: epoch %d, count %d, partial %v", epoch, count, partial)
	}
	p.learn(near, have{epoch: 2, count: 1, blocks: bits{0b1000}})
	if got := p.take(near, 9).blocks; len(got) != 0 {
		t.Fatalf("near is asked for %v after its fetch began anew", got)
	}
	p.giveBack(far, 3)
	if got := p.take(near, 9).blocks; !reflect.DeepEqual(got, []int{3}) {
		t.Fatalf("near is asked for %v", got)
	}
	p.missed(near, 3)
	p.giveBack(near, 3)
	if got := p.take(near, 9); len(got.blocks) != 0 || got.over {
		t.Fatalf("near is asked for %v again", got)
	}
	p.missed(far, 2)
	if !p.look(far, 1).over {
		t.Error("a complete source that misses a block is of use")
	}
}
