package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/round"
)

// ErrConfig reports a configuration that cannot be run.
var ErrConfig = errors.New("invalid worker configuration")

// ErrKind reports an update of another kind than the round's: of local steps where all take gradients, or the other way round.
var ErrKind = errors.New("an update of another kind than the round's")

// Blobs is the content-addressed store that updates and states travel through. The CID of equal bytes must be equal on
// every peer. Its methods must be safe for concurrent use.
type Blobs interface {
	// Put stores a copy of the bytes so that peers of the run can fetch them, and returns their CID.
	Put(ctx context.Context, data []byte) (cid.Cid, error)
	// Get returns the bytes of c, fetched from one of the peers when they are not here, and verified. More than limit bytes
	// is an error, found before they are read.
	Get(ctx context.Context, c cid.Cid, from []peer.ID, limit int64) ([]byte, error)
	// Drop says that the run needs the object no longer.
	Drop(ctx context.Context, c cid.Cid)
}

// Data gives the run's samples: windows of the shards of its data set.
type Data interface {
	// Shards returns the number of shards, at least 1.
	Shards() int
	// Windows returns the number of sample windows in the shard.
	Windows(shard int) uint64
	// Batch reads windows, one row each, in order. It may fetch the shard from other peers.
	Batch(ctx context.Context, windows []round.Window) (engine.Batch, error)
}

// Schedule is the inner learning rate: linear warm-up, then a cosine to the floor.
type Schedule struct {
	Peak   float64
	Floor  float64 // rate at Total and after
	Warmup uint64  // steps
	Total  uint64  // steps of the whole run, rounds · local steps
}

// At returns the learning rate of a step, counted from 0 over the whole run. It is a pure function of the step, so a peer
// that joins late uses the rate of its mates.
func (s Schedule) At(step uint64) float64 {
	switch {
	case step < s.Warmup:
		return s.Peak * float64(step+1) / float64(s.Warmup)
	case step >= s.Total:
		return s.Floor
	}
	progress := float64(step-s.Warmup) / float64(s.Total-s.Warmup)
	return s.Floor + float64((s.Peak-s.Floor)*float64(0.5*(1+math.Cos(math.Pi*progress))))
}

// Config is what a worker runs with.
type Config struct {
	Run      cid.Cid // the job record's CID
	Owner    peer.ID // whose signature admits members
	Plan     Plan
	Engine   engine.Engine // freshly seeded: its weights are the run's initial state, equal on every peer
	Numerics string        // numerics class of the engine, such as "go/amd64/avx512"
	Net      p2p.Network
	Blobs    Blobs
	Data     Data

	SnapshotDir   string // folder for crash-safe snapshots, made when missing; "" keeps none
	SnapshotEvery uint64 // rounds between snapshots; 0 means 1, and 10 where rounds are of gradients
	KeepRounds    uint64 // rounds after which the blobs of updates, own and fetched, are dropped; 0 means 4

	States *States         // serves the states of all runs of this process; nil makes one for this run alone
	Drain  <-chan struct{} // closed: commit the round that is under way, then leave; may be nil
	Hooks  Hooks
	Log    *slog.Logger // nil discards
}

// Hooks get told what happens. Fields may be nil. The run waits for the functions, which are called one after the other; only
// OnStep may be called beside the others, when local steps run beside an exchange.
type Hooks struct {
	OnStep       func(Step)
	OnRound      func(Report)
	OnCheckpoint func(*round.State) error // the state is valid during the call; an error is a warning
	OnWarning    func(error)              // the run goes on
}

// Step tells of one optimiser step.
type Step struct {
	Round  uint64
	Step   int     // 0 to LocalSteps-1
	Loss   float64 // nats per token
	Tokens uint64  // of this step
}

// Report tells of one committed round.
type Report struct {
	Round        uint64 // number of the round, from 0
	Parent, Next round.Hash
	Contributors []peer.ID // whose updates were applied, ascending
	Senders      int       // members whose blobs were applied: the contributors, or those whose weights met in the finale
	Live         []peer.ID // who had a fresh heartbeat, ascending
	Loss         float64   // token-weighted mean training loss of the contributors, nats per token
	Tokens       uint64    // of this round
	Merged       uint64    // of these, what the losing side of a fork brought back
	Total        uint64    // committed tokens of the run
	Steps        uint64    // committed nominal steps of the run
	Work         map[peer.ID]uint64
	Up, Down     uint64 // bytes of the own blob, and of the blobs fetched
	Compute      time.Duration
	Comm         time.Duration
	Replaces     bool // a fork healed: this takes the place of an earlier report of the same round
}

// add enters the updates that were applied, none of which counts for more than most tokens. What the losing side of a fork
// brings back counts for the run, but not for who offers it: others trained it, in rounds that were reported before.
func (r *Report) add(accepted []round.Signed, most uint64) {
	r.Work = map[peer.ID]uint64{}
	var loss float64
	var trained uint64
	for _, h := range accepted {
		if h.Merge == nil && (h.Trains() || h.Role == round.RoleWeights) {
			r.Senders++
		}
		if !h.Trains() {
			continue
		}
		if h.Merge != nil {
			r.Merged += h.Tokens
			r.Tokens += h.Tokens
			continue
		}
		tokens := min(h.Tokens, most)
		r.Contributors = append(r.Contributors, h.Author)
		r.Work[h.Author] = tokens
		trained += tokens
		loss += float64(h.Loss) / 1e6 * float64(tokens)
	}
	r.Tokens += trained
	r.Loss = loss / float64(max(trained, 1))
}

// Result is how a run ended.
type Result struct {
	State       *round.State
	Rounds      uint64 // rounds that this worker committed itself
	Contributed uint64 // of those, rounds with an update of its own
	Healed      uint64 // times that it took its state from a mate
	Tokens      uint64 // tokens of its own that were committed
	Up, Down    uint64 // bytes
}

func (c Config) check() error {
	switch {
	case !c.Run.Defined():
		return fmt.Errorf("worker: no run: %w", ErrConfig)
	case c.Engine == nil || c.Net == nil || c.Blobs == nil || c.Data == nil:
		return fmt.Errorf("worker: engine, network, blobs and data are all needed: %w", ErrConfig)
	case c.Data.Shards() < 1 || c.Data.Shards() > round.MaxShards:
		return fmt.Errorf("worker: data set of %d shards, want 1 to %d: %w", c.Data.Shards(), round.MaxShards, ErrConfig)
	}
	if _, ok := c.Engine.(engine.Differentiating); !ok && c.Plan.gradients() {
		return fmt.Errorf("worker: the plan has rounds of gradients and this engine gives none; a job with rounds.gradients: never does without: %w", ErrConfig)
	}
	return c.Plan.check()
}
