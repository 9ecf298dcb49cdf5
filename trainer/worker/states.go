package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/round"
)

// StateProtocol hands out where a run's state is. One request frame, one response frame.
const StateProtocol protocol.ID = "/capanode/state/3.0.0"

// maxStateFrame bounds both frames of the protocol.
const maxStateFrame = 16 << 10

// ErrNoDonor reports that no peer handed out the state.
var ErrNoDonor = errors.New("no peer hands out the run's state")

type stateRequest struct {
	Version uint16    `cbor:"version"`
	Run     wire.Link `cbor:"run"`
}

type stateResponse struct {
	Version uint16     `cbor:"version"`
	Round   uint64     `cbor:"round"`
	Steps   uint64     `cbor:"steps"`
	Tokens  uint64     `cbor:"tokens"`
	State   round.Hash `cbor:"state"`
	Blob    wire.Link  `cbor:"blob"` // the state's bytes; no link when the run or the asker is unknown
	Size    uint64     `cbor:"size"`
	Head    wire.Link  `cbor:"head"` // its ledger alone; no link where members' weights are equal

	Lineage []round.Ancestor `cbor:"lineage"` // the states before it, newest last
}

// donate makes the answer for a peer that asks for the state, or refuses.
type donate func(ctx context.Context, asker peer.ID) (stateResponse, error)

// States serves [StateProtocol] for all runs of a process. Make one per network.
type States struct {
	mu   sync.Mutex
	runs map[cid.Cid]donate
}

// NewStates starts to serve the protocol.
func NewStates(net p2p.Network) *States {
	s := &States{runs: map[cid.Cid]donate{}}
	net.Handle(StateProtocol, p2p.Limits{Streams: 64, StreamsPerPeer: 4, Idle: 30 * time.Second}, s.serve)
	return s
}

func (s *States) register(run cid.Cid, f donate) (unregister func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[run] = f
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.runs, run)
	}
}

func (s *States) serve(ctx context.Context, stream p2p.Stream) {
	var req stateRequest
	if err := wire.ReadRecord(stream, maxStateFrame, &req); err != nil || req.Version != round.Version {
		_ = stream.Reset()
		return
	}
	s.mu.Lock()
	donate := s.runs[req.Run.Cid]
	s.mu.Unlock()
	res := stateResponse{Version: round.Version}
	if donate != nil {
		if got, err := donate(ctx, stream.Remote()); err == nil {
			res = got
		}
	}
	if err := wire.WriteRecord(stream, res); err != nil {
		_ = stream.Reset()
		return
	}
	_ = stream.Close()
}

// ask asks one donor where its state is.
func ask(ctx context.Context, net p2p.Network, donor peer.ID, run cid.Cid) (res stateResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, round.MaxWait)
	defer cancel()
	stream, err := net.Open(ctx, donor, StateProtocol)
	if err != nil {
		return res, fmt.Errorf("worker: ask %s for the state: %w", donor, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Reset() })
	defer stop()
	if err := stream.SetDeadline(time.Now().Add(round.MaxWait)); err != nil {
		_ = stream.Reset()
		return res, fmt.Errorf("worker: ask %s for the state: %w", donor, err)
	}
	if err = wire.WriteRecord(stream, stateRequest{round.Version, wire.Link{Cid: run}}); err == nil {
		err = wire.ReadRecord(stream, maxStateFrame, &res)
	}
	if err != nil {
		_ = stream.Reset()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return res, fmt.Errorf("worker: ask %s for the state: %w", donor, err)
	}
	_ = stream.Close()
	if res.Version != round.Version || !res.Blob.Defined() {
		return res, fmt.Errorf("worker: ask %s for the state: refused: %w", donor, ErrNoDonor)
	}
	return res, nil
}

// fetchTime is how long a transfer of so many bytes may take: ten seconds and a second for each 128 KiB, a link slower than
// which cannot take part in a run.
func fetchTime(size int64) time.Duration {
	return round.MaxWait + time.Duration(size/(128<<10))*time.Second
}
