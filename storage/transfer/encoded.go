package transfer

import (
	"context"
	"time"

	"github.com/capacloud/capanode/storage/encode"
)

// Encode says when a server encodes blocks for clients that take it.
type Encode uint8

const (
	// EncodeIfFaster encodes while that takes less time than it saves on the way, as the server measures both.
	EncodeIfFaster Encode = iota
	// EncodeAlways encodes whatever becomes shorter.
	EncodeAlways
	// EncodeNever sends every block as it is.
	EncodeNever
)

const (
	// probe is how many blocks go out raw, where encoding does not pay, before it is tried again.
	probe = 16
	// smooth is the weight of the newest block in a measured time.
	smooth = 0.3
)

// pace is what a stream knows about times, in seconds per byte; 0 means not measured.
type pace struct {
	encode float64 // of a block
	write  float64 // of what travels
	left   float64 // share of a block that its encoding has
	raw    int     // blocks since the last one that was encoded
}

// pays tells whether the next block should be encoded: if the time that takes is less than what the shorter block saves on the way,
//
//	encode < (1 − left) · write
//
// or if it is time to find out.
func (p *pace) pays() bool {
	if p.encode == 0 || p.write == 0 || p.encode < (1-p.left)*p.write || p.raw >= probe {
		p.raw = 0
		return true
	}
	p.raw++
	return false
}

func (p *pace) wrote(took time.Duration, bytes int) {
	p.write = blend(p.write, took.Seconds()/float64(max(1, bytes)))
}

func (p *pace) encoded(took time.Duration, from, to int) {
	p.encode = blend(p.encode, took.Seconds()/float64(max(1, from)))
	p.left = blend(p.left, float64(to)/float64(max(1, from)))
}

func blend(old, now float64) float64 {
	if old == 0 {
		return now
	}
	return old + smooth*(now-old)
}

// mayEncode tells whether the blocks of a request should be encoded.
func (a *answerer) mayEncode(req Request) bool {
	switch {
	case req.Encodings&encode.All == 0 || a.s.opts.Encode == EncodeNever:
		return false
	case a.last != req.CID.Cid:
		a.last, a.choice = req.CID.Cid, encode.Choice{}
	}
	return a.s.opts.Encode == EncodeAlways || a.pace.pays()
}

// sendEncoded answers with a block in the encoding that suits it; false means that none makes it shorter, and nothing was sent.
func (a *answerer) sendEncoded(ctx context.Context, number uint32, block []byte, from encode.Set) (bool, error) {
	e := a.s.codes.Get().(*encode.Encoder)
	start := time.Now()
	how, packed := a.choice.Next(e, block, from)
	a.pace.encoded(time.Since(start), len(block), len(packed))
	h := header{statusBlock, number, how, uint32(len(packed)), uint32(len(block))}
	if how != encode.Raw {
		copy(a.buf[headerSize:], packed)
	}
	a.s.codes.Put(e) // a client that takes its time keeps no encoder
	if how == encode.Raw {
		return false, nil
	}
	h.put(a.buf[:])
	return true, a.finish(ctx, h)
}
