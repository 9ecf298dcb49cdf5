package book

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
)

const (
	// Protocol copies a book over a stream: the newcomer sends digests, the other side sends what is missing.
	Protocol protocol.ID = "/capanode/book/1.0.0"
	// MaxFrame is the largest frame of the protocol in bytes.
	MaxFrame = 256 << 10
	// digestsPerFrame and envelopesPerFrame keep full frames below MaxFrame.
	digestsPerFrame   = 2048
	envelopesPerFrame = 256
	// maxFrames bounds the frames of one direction, so that MaxOffers fit and no more.
	maxFrames = MaxOffers/envelopesPerFrame + 1
	// frameTimeout bounds the wait for each frame.
	frameTimeout = 10 * time.Second
)

// ErrProtocol reports a peer that breaks the snapshot protocol.
var ErrProtocol = errors.New("broken book snapshot")

// digest names one beacon that the newcomer has.
type digest struct {
	Peer peer.ID `cbor:"p"`
	Seq  uint64  `cbor:"s"`
}

// digestFrame is a part of the newcomer's list.
type digestFrame struct {
	Have []digest `cbor:"have"`
	More bool     `cbor:"more"`
}

// beaconFrame is a part of the answer.
type beaconFrame struct {
	Beacons [][]byte `cbor:"beacons"`
	More    bool     `cbor:"more"`
}

// Serve answers one snapshot request on a stream and closes it.
func (b *Book) Serve(s p2p.Stream) error {
	have := make(map[peer.ID]uint64)
	for n := 0; ; n++ {
		var f digestFrame
		if err := readFrame(s, n, &f); err != nil {
			s.Reset()
			return err
		}
		if len(have)+len(f.Have) > MaxOffers {
			s.Reset()
			return fmt.Errorf("book: more than %d digests: %w", MaxOffers, ErrProtocol)
		}
		for _, d := range f.Have {
			if d.Peer == "" {
				s.Reset()
				return fmt.Errorf("book: digest without a peer: %w", ErrProtocol)
			}
			have[d.Peer] = d.Seq
		}
		if !f.More {
			break
		}
	}
	var missing [][]byte
	for _, o := range b.live() {
		if seq, ok := have[o.Peer]; !ok || seq < o.Beacon.Seq {
			missing = append(missing, o.Envelope)
		}
	}
	for {
		n := min(len(missing), envelopesPerFrame)
		f := beaconFrame{Beacons: missing[:n], More: n < len(missing)}
		if err := writeFrame(s, f); err != nil {
			s.Reset()
			return err
		}
		if missing = missing[n:]; len(missing) == 0 {
			return s.Close()
		}
	}
}

// Fetch copies what the book lacks from the other end of a stream, and closes it. It returns the number of offers that
// were new. A beacon that proves the sender to be broken ends the copy; stale ones are skipped.
func (b *Book) Fetch(s p2p.Stream) (added int, err error) {
	defer func() {
		if err != nil {
			s.Reset()
		}
	}()
	if err := b.sendDigests(s); err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		var f beaconFrame
		if err := readFrame(s, n, &f); err != nil {
			return added, err
		}
		if len(f.Beacons) > envelopesPerFrame {
			return added, fmt.Errorf("book: %d beacons in a frame: %w", len(f.Beacons), ErrProtocol)
		}
		for _, env := range f.Beacons {
			_, err := b.Apply(env)
			if err == nil {
				added++
			} else if Verdict(err) == p2p.Reject {
				return added, fmt.Errorf("book: %w: %w", ErrProtocol, err)
			}
		}
		if !f.More {
			return added, s.Close()
		}
	}
}

func (b *Book) sendDigests(s p2p.Stream) error {
	var have []digest
	for _, o := range b.live() {
		have = append(have, digest{o.Peer, o.Beacon.Seq})
	}
	slices.SortFunc(have, func(x, y digest) int {
		if x.Peer < y.Peer {
			return -1
		}
		return 1
	})
	for {
		n := min(len(have), digestsPerFrame)
		if err := writeFrame(s, digestFrame{Have: have[:n], More: n < len(have)}); err != nil {
			return err
		}
		if have = have[n:]; len(have) == 0 {
			return nil
		}
	}
}

func readFrame(s p2p.Stream, n int, v any) error {
	if n >= maxFrames {
		return fmt.Errorf("book: more than %d frames: %w", maxFrames, ErrProtocol)
	}
	if err := s.SetDeadline(time.Now().Add(frameTimeout)); err != nil {
		return fmt.Errorf("book: %w", err)
	}
	if err := wire.ReadRecord(s, MaxFrame, v); err != nil {
		return fmt.Errorf("book: snapshot with %s: %w: %w", s.Remote(), ErrProtocol, err)
	}
	return nil
}

func writeFrame(s p2p.Stream, v any) error {
	if err := s.SetDeadline(time.Now().Add(frameTimeout)); err != nil {
		return fmt.Errorf("book: %w", err)
	}
	if err := wire.WriteRecord(s, v); err != nil {
		return fmt.Errorf("book: snapshot with %s: %w", s.Remote(), err)
	}
	return nil
}
