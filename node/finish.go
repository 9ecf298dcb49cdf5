package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// pullTime bounds the fetch of a model.
const pullTime = 10 * time.Minute

// modelSlack is how much more than the weights a model folder may hold, in bytes.
const modelSlack = 8<<20 + tokenizer.MaxFile

// pulled is a model folder that was fetched and read.
type pulled struct {
	cid   cid.Cid
	model readModel
	peers []peer.ID // that claimed it
	loss  float64   // held-out loss, once measured
}

// remember looks for what an earlier process that was killed near the end left: the final model in the store, and its
// export, which is then not made again.
func (r *requester) remember(ctx context.Context) error {
	all, err := r.checkpoints(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(all, func(c Checkpoint) bool { return c.Run == r.run.String() }); i >= 0 { // the newest round comes first
		newest, err := parseCID(all[i].CID)
		if err != nil {
			return err
		}
		m, err := r.readModel(ctx, newest)
		if err == nil && m.Provenance.Step >= r.rec.Steps() {
			r.final = newest
		}
	}
	if r.foundRun == "" {
		return nil
	}
	if r.exported = r.foundRun == r.run.String() && r.trained(); !r.exported {
		return occupied(r.outDir)
	}
	return nil
}

// recall seeds the claims with what an earlier process knew: the models that receipts name, and the final one that it took in.
func (r *requester) recall() error {
	r.claims = map[peer.ID]cid.Cid{}
	for id, all := range r.history {
		var last int64
		for _, l := range all {
			newest, err := r.db.Newest(l)
			if err != nil {
				return err
			}
			if newest == nil || l.ActiveMs < last {
				continue
			}
			if c, err := cid.Cast(newest.State); err == nil {
				r.claims[id], last = c, l.ActiveMs
			}
		}
	}
	if r.trained() {
		r.claims[r.id] = r.final
	}
	return nil
}

// isFinal tells whether a checkpoint is the model of the end of the run. It fetches the folder, once.
func (r *requester) isFinal(ctx context.Context, c cid.Cid) bool {
	m, err := r.pull(ctx, c)
	if err != nil {
		r.Node.log.Warn("checkpoint", "cid", c, "err", err)
		return false
	}
	return m.model.Provenance.Step >= r.rec.Steps()
}

// errForeign reports a model that is not the one that the run's members agreed on.
var errForeign = errors.New("not the model that the members agreed on")

// judge checks a model against the rounds as this node saw them: run, round, and the weights bit by bit. Of a round that it
// did not see it knows nothing; there the members' votes decide.
func (r *requester) judge(m readModel) error {
	p := m.Provenance
	if p.Run != r.run.String() || p.Step > r.rec.Steps() {
		return fmt.Errorf("it says step %d of run %s: %w", p.Step, p.Run, errForeign)
	}
	if m.Tokenizer == nil || m.Tokenizer.Name() != r.rec.Tokenizer {
		return fmt.Errorf("its tokenizer is not %s: %w", r.rec.Tokenizer, errForeign)
	}
	agreed := r.verified.state(p.Round)
	if agreed == "" {
		return nil
	}
	var proof round.Proof
	var err error
	if proof.Head, err = round.ParseHash(p.Head); err == nil {
		proof.Momentum, err = round.ParseHash(p.Momentum)
	}
	if err != nil {
		return fmt.Errorf("it proves nothing: %w: %w", err, errForeign)
	}
	// Where members' weights differ they agree on the ledger alone: until the finale each one's model is its own word.
	fixed, err := r.frozen()
	if err != nil {
		return err
	}
	trained, err := m.trained(r.rec, fixed)
	if err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	if got := proof.State(trained).String(); got != agreed && proof.Ledger().String() != agreed {
		return fmt.Errorf("its weights belong to state %.8s, round %d ended in %.8s: %w", got, p.Round, agreed, errForeign)
	}
	return nil
}

// keepModels is how many models are kept in memory: a member that names another one with every tick must not fill it.
const keepModels = 4

// pull fetches a model folder from the members that claim it, reads and judges it.
func (r *requester) pull(ctx context.Context, c cid.Cid) (*pulled, error) {
	if m := r.models[c]; m != nil {
		return m, nil
	}
	m := &pulled{cid: c}
	for id, claimed := range r.claims {
		if claimed == c && id != r.id {
			m.peers = append(m.peers, id)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pullTime)
	defer cancel()
	_, params, err := r.rec.Trained()
	if err != nil {
		return nil, err
	}
	if err := r.fetch.FetchWithin(ctx, c, 4*params+modelSlack, m.peers); err != nil {
		return nil, err
	}
	model, err := r.readModel(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := r.judge(model); err != nil {
		return nil, fmt.Errorf("model %s: %w", c, err)
	}
	m.model = model
	if len(r.models) >= keepModels {
		clear(r.models)
	}
	r.models[c] = m
	return m, nil
}

// readModel reads a model folder out of the store.
func (n *Node) readModel(ctx context.Context, c cid.Cid) (m readModel, err error) {
	if m.bytes, _, err = n.store.Compare(ctx, c, cid.Undef); err != nil {
		return m, err
	}
	entries, err := n.store.Entries(ctx, c)
	if err != nil {
		return m, err
	}
	bytes := m.bytes
	m, err = n.readFolder(ctx, storedFolder{ctx, n.store, entries})
	if err != nil {
		return m, fmt.Errorf("model %s: %w", c, err)
	}
	m.bytes = bytes
	return m, nil
}

// storedFolder lets a model be read where it is stored.
type storedFolder struct {
	ctx     context.Context
	store   *storage.Store
	entries []storage.Entry
}

// Open implements [hf.Source].
func (f storedFolder) Open(name string) (hf.File, error) {
	for _, e := range f.entries {
		if e.Name == name {
			return f.store.Open(f.ctx, e.CID)
		}
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// collect pulls the model on which most members agree and pins it. At the end of a run it is measured on the held-out
// text and exported; a run that ended early keeps the newest checkpoint, if there is one.
func (r *requester) collect(ctx context.Context, whole bool) (*pulled, error) {
	m, votes, err := r.choose(ctx, whole)
	if err != nil || m == nil {
		return nil, err
	}
	p := m.model.Provenance
	if err := r.store.Pin(ctx, checkpointPin(r.run.String(), p.Round), m.cid); err != nil {
		return nil, err
	}
	r.log.Checkpoint = m.cid.String() // from here on no member is needed any more
	if err := r.runs.save(r.log); err != nil {
		return nil, err
	}
	r.announce(m.cid)
	r.emit(CheckpointEvent{Type: "checkpoint", Run: r.run.String(), Round: p.Round, Checkpoint: m.cid.String(), Peers: votes, Bytes: m.model.bytes})
	if !whole {
		return m, nil
	}
	if r.verified.state(p.Round) == "" {
		r.emit(WarningEvent{Type: "warning", Run: r.run.String(),
			Warning: fmt.Sprintf("the last round went by unseen; that this is its model rests on the word of %d members", votes)})
	}
	if err := r.measure(ctx, m); err != nil {
		return nil, err
	}
	if r.exported {
		return m, nil
	}
	if err := clearEmpty(r.log.Out); err != nil {
		return nil, err
	}
	return m, r.deliver(ctx, m)
}

// choose goes through the models that members name, the one named most often first, and returns the first good one of the
// last round; of a run that ended early, the good one of the newest round, nil when there is none.
func (r *requester) choose(ctx context.Context, whole bool) (best *pulled, votes int, err error) {
	count := map[cid.Cid]int{}
	for _, c := range r.claims {
		count[c]++
	}
	ctx, cancel := context.WithTimeout(ctx, pullTime)
	defer cancel()
	var failed error
	for _, c := range slices.SortedFunc(maps.Keys(count), func(a, b cid.Cid) int {
		return cmp.Or(count[b]-count[a], strings.Compare(a.KeyString(), b.KeyString()))
	}) {
		m, err := r.pull(ctx, c)
		if err != nil {
			failed = errors.Join(failed, err)
			r.emit(WarningEvent{Type: "warning", Run: r.run.String(), Warning: fmt.Sprintf("model named by %d members: %v", count[c], err)})
			continue
		}
		if whole && m.model.Provenance.Step >= r.rec.Steps() {
			return m, count[c], nil
		}
		if best == nil || m.model.Provenance.Round > best.model.Provenance.Round {
			best, votes = m, count[c]
		}
	}
	switch {
	case !whole:
		return best, votes, nil
	case best != nil:
		return nil, 0, fmt.Errorf("%w: the newest model is of step %d of %d; run the same command again", ErrPartly, best.model.Provenance.Step, r.rec.Steps())
	case failed != nil:
		return nil, 0, fmt.Errorf("%w: no good model: %w", ErrPartly, failed)
	}
	return nil, 0, fmt.Errorf("%w: no member published the model of run %s; run the same command again to ask once more", ErrPartly, r.run)
}

// measure computes the model's loss on the held-out text.
func (r *requester) measure(ctx context.Context, m *pulled) error {
	batches, err := r.data.Validation(ctx, int(r.rec.MicroBatch), r.file.Eval.Windows)
	if err != nil {
		return err
	}
	loss, tokens, err := heldOutLoss(ctx, m.model.Model, batches)
	if err != nil {
		return err
	}
	m.loss = loss
	r.emit(EvalEvent{Type: "eval", Run: r.run.String(), Round: m.model.Provenance.Round, Loss: loss, Perplexity: math.Exp(loss),
		BitsPerByte: loss / math.Ln2 * float64(tokens) / float64(textBytes(m.model.Tokenizer, batches)), Tokens: tokens})
	return nil
}

// textBytes counts the bytes of text that the targets of batches stand for; an end of text counts as one.
func textBytes(t tokenizer.Tokenizer, batches []engine.Batch) uint64 {
	var sum uint64
	var one [1]int32
	var text []byte
	for _, b := range batches {
		for _, id := range b.Targets {
			one[0] = id
			text = t.Decode(text[:0], one[:])
			sum += uint64(max(1, len(text)))
		}
	}
	return sum
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
