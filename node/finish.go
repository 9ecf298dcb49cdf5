package node

import (
	"context"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
)

// pullTime bounds the fetch of a model.
const pullTime = 10 * time.Minute

// modelSlack is how much more than the weights a model folder may hold, in bytes.
const modelSlack = 8 << 20

// pulled is a model folder that was fetched and read.
type pulled struct {
	cid   cid.Cid
	model hf.Model
	bytes int64
	peers []peer.ID // that claimed it
	loss  float64   // held-out loss, once measured
}

// isFinal tells whether a checkpoint is the model of the last round. It fetches the folder, once.
func (r *requester) isFinal(ctx context.Context, c cid.Cid) bool {
	m, err := r.pull(ctx, c)
	if err != nil {
		r.Node.log.Warn("checkpoint", "cid", c, "err", err)
		return false
	}
	p := m.model.Provenance
	return p.Run == r.run.String() && p.Round >= r.rec.Rounds
}

// pull fetches a model folder from the members that claim it and reads it.
func (r *requester) pull(ctx context.Context, c cid.Cid) (*pulled, error) {
	if m := r.models[c]; m != nil {
		return m, nil
	}
	m := &pulled{cid: c}
	for id, claimed := range r.claims {
		if claimed == c {
			m.peers = append(m.peers, id)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pullTime)
	defer cancel()
	params, err := r.rec.Model.Parameters()
	if err != nil {
		return nil, err
	}
	if err := r.fetch.FetchWithin(ctx, c, 4*params+modelSlack, m.peers); err != nil {
		return nil, err
	}
	model, size, err := r.readModel(ctx, c)
	if err != nil {
		return nil, err
	}
	m.model, m.bytes = model, size
	r.models[c] = m
	return m, nil
}

// readModel reads a model folder out of the store.
func (n *Node) readModel(ctx context.Context, c cid.Cid) (hf.Model, int64, error) {
	tmp, err := os.MkdirTemp(n.home.Path("runs"), ".model-")
	if err != nil {
		return hf.Model{}, 0, err
	}
	defer os.RemoveAll(tmp)
	dir := tmp + "/model"
	if err := n.store.Export(ctx, c, dir); err != nil {
		return hf.Model{}, 0, err
	}
	size, err := folderSize(dir)
	if err != nil {
		return hf.Model{}, 0, err
	}
	m, err := hf.Read(dir)
	return m, size, err
}

func folderSize(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	var sum int64
	for _, e := range entries {
		info, ierr := e.Info()
		if ierr != nil {
			return 0, ierr
		}
		sum += info.Size()
	}
	return sum, err
}

// collect pulls the model on which most members agree and pins it. At the end of a run it is measured on the held-out
// text and exported; a run that ended early keeps the newest checkpoint, if there is one.
func (r *requester) collect(ctx context.Context, whole bool) (*pulled, error) {
	votes := map[cid.Cid]int{}
	var best cid.Cid
	for _, c := range r.claims {
		votes[c]++
		if n, top := votes[c], votes[best]; !best.Defined() || n > top || n == top && c.KeyString() < best.KeyString() {
			best = c
		}
	}
	if !best.Defined() {
		if whole {
			return nil, fmt.Errorf("%w: no member published the model of run %s; run the same command again to ask once more", ErrPartly, r.run)
		}
		return nil, nil
	}
	m, err := r.pull(ctx, best)
	if err != nil {
		return nil, fmt.Errorf("%w: fetch the model %s: %w", ErrPartly, best, err)
	}
	p := m.model.Provenance
	if p.Run != r.run.String() || whole && p.Round < r.rec.Rounds {
		return nil, fmt.Errorf("%w: the newest model is of round %d of run %s", ErrPartly, p.Round, p.Run)
	}
	if err := r.store.Pin(ctx, checkpointPin(r.run.String(), p.Round), best); err != nil {
		return nil, err
	}
	r.announce(best)
	r.emit(CheckpointEvent{Type: "checkpoint", Run: r.run.String(), Round: p.Round, Checkpoint: best.String(), Peers: votes[best], Bytes: m.bytes})
	if !whole {
		return m, nil
	}
	if err := r.measure(ctx, m); err != nil {
		return nil, err
	}
	if err := clearEmpty(r.log.Out); err != nil {
		return nil, err
	}
	return m, r.store.Export(ctx, best, r.log.Out)
}

// measure computes the model's loss on the held-out text.
func (r *requester) measure(ctx context.Context, m *pulled) error {
	batches, err := r.data.Validation(ctx, int(r.rec.MicroBatch), r.file.Eval.Windows)
	if err != nil {
		return err
	}
	loss, tokens, err := heldOutLoss(ctx, m.model, batches)
	if err != nil {
		return err
	}
	m.loss = loss
	// One token is one byte for the byte tokenizer.
	r.emit(EvalEvent{Type: "eval", Run: r.run.String(), Round: m.model.Provenance.Round, Loss: loss, Perplexity: math.Exp(loss),
		BitsPerByte: loss / math.Ln2, Tokens: tokens})
	return nil
}

// heldOutLoss is the mean loss of a model over batches of one shape, in nats per token.
func heldOutLoss(ctx context.Context, m hf.Model, batches []engine.Batch) (loss float64, tokens uint64, err error) {
	eng, err := modelEngine(m, 0)
	if err != nil {
		return 0, 0, err
	}
	defer eng.Close()
	for _, b := range batches {
		l, err := eng.Evaluate(ctx, b)
		if err != nil {
			return 0, 0, err
		}
		loss += l / float64(len(batches))
		tokens += uint64(b.TargetCount())
	}
	return loss, tokens, nil
}

// paidUnits sums the work units of the run's newest receipts.
func (r *requester) paidUnits() (uint64, error) {
	all, err := r.buyer.Leases()
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, l := range all {
		if !l.Terms.Run.Equals(r.run) || l.Role != lease.Buyer {
			continue
		}
		newest, err := r.db.Newest(l)
		if err != nil {
			return 0, err
		}
		if newest != nil {
			sum += newest.Units
		}
	}
	return sum, nil
}
