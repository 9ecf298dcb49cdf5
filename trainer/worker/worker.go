package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
)

// settleTime is how long a worker waits for the rest of the roster before its first round.
const settleTime = 10 * round.HeartbeatInterval

// rosterEvery is how many heartbeats pass before a member passes the roster on for those who missed the owner's message.
const rosterEvery = 10

// defaultKeepRounds is how many rounds the blobs of updates stay for late mates and audits.
const defaultKeepRounds = 4

// doubtTime is how long the announcements of a peer that did not deliver its state are passed over.
const doubtTime = 30 * round.HeartbeatInterval

// seqRoom is how far beyond the last heartbeat's number a process goes on that starts from a snapshot: a day of nanoseconds, more than
// passes between two snapshots, so that mates do not take its heartbeats for old ones although its clock was set back.
const seqRoom = uint64(24 * time.Hour)

// worker is one peer in one run.
type worker struct {
	cfg     Config
	self    peer.ID
	log     *slog.Logger
	board   *board
	topic   p2p.Topic
	windows []uint64 // sample windows of each shard
	stop    func()   // ends the background goroutines and waits for them
	salt    atomic.Uint32

	// Guarded by mu: read by the heartbeat and by the state server.
	mu      sync.RWMutex
	state   *round.State
	hash    round.Hash
	lineage round.Lineage // the way to the state
	phase   round.Phase
	began   time.Time // of the last local steps
	speed   uint64
	seq     uint64 // of the last heartbeat

	sharing sync.Mutex // guards shared
	shared  shared

	// The training goroutine's own.
	first      []float32       // weights that the run began with
	members    []peer.ID       // among whom the round is dealt; nil until somebody asks
	listen     bool            // sit the next round out
	retry      int             // aborted attempts at this round
	hellos     []round.Hash    // of the vote for this round
	own        *own            // the update of this round
	limit      float64         // largest norm of a mate's update
	blob       []byte          // the own update, encoded, at the beginning of the codec's bound
	feedback   *outer.Feedback // what the codec has lost so far
	components bool            // of gradients, that is: cosine components; else of weights
	signs      *outer.Signs    // nil where no round is of gradients
	moments    round.Hash      // of the inner optimiser, as long as still says that nothing has moved it
	still      bool
	behind     map[peer.ID]uint64 // live mates that are behind, and since which round
	restored   bool               // the residual is a snapshot's, and nothing was committed since
	saved      uint64             // round of the newest snapshot
	mean       []float32          // of a round's updates; scratch between commits
	lap        *lap               // local steps that run ahead of the exchange
	sent       []float32          // fast weights when they began
	restart    moments            // inner optimiser when the last lap of local steps began; while one runs ahead, what a snapshot holds
	crew       []peer.ID          // who trained in the last round
	calm       int                // rounds since that changed
	lost       *lostSide          // to be offered to the winners of a fork
	compute    time.Duration      // of the last lap
	link       uint64             // bytes per second at which updates arrive; 0 is unknown
	exchanging time.Duration      // what an exchange takes
	waiting    float64            // share of the time that goes to the network
	kept       []keptBlob
	result     Result

	headerWait, voteWait round.Arrivals
	counted              map[round.Hash]uint64 // headers that entered headerWait, and their rounds
	lastParent           round.Hash
	lastBegan            time.Time
	doubted              map[peer.ID]time.Time // who announced a state and did not deliver it, and when
}

// moments are the state of the inner optimiser.
type moments struct {
	steps uint64
	m, v  []float32
	lap   *lap // that began with them
}

// shared is the blob of the state that was handed out last.
type shared struct {
	state      round.Hash
	blob, head cid.Cid
}

type keptBlob struct {
	round uint64
	blob  cid.Cid
}

// open builds the worker on its newest snapshot, or on the engine's fresh weights, and starts its background goroutines.
func open(cfg Config) (*worker, error) {
	inner := cfg.Engine.State()
	n := len(inner.Weights)
	w := &worker{
		cfg: cfg, self: cfg.Net.ID(), log: cfg.Log, counted: map[round.Hash]uint64{}, doubted: map[peer.ID]time.Time{},
		state:    round.NewState(cfg.Run, cfg.Data.Shards(), slices.Clone(inner.Weights)),
		feedback: outer.NewFeedback(n, 0), // the fast weights carry the residual
		mean:     make([]float32, n),
		first:    slices.Clone(inner.Weights),
	}
	if cfg.Plan.gradients() {
		w.signs = outer.NewSigns(inner.Params)
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	for s := range cfg.Data.Shards() {
		w.windows = append(w.windows, cfg.Data.Windows(s))
	}
	if err := w.restore(); err != nil {
		return nil, err
	}
	w.hash, w.limit = w.state.Key(), normLimit(w.state.Weights)
	w.lineage = round.Lineage{{State: w.hash, Tokens: w.state.Tokens}}
	w.board = newBoard(cfg.Run, w.self, cfg.Owner)
	var err error
	if w.topic, err = cfg.Net.Join(round.Topic(cfg.Run), w.board.validate); err != nil {
		return nil, fmt.Errorf("worker: join the run's topic: %w", err)
	}
	states := cfg.States
	if states == nil {
		states = NewStates(cfg.Net)
	}
	unregister := states.register(cfg.Run, w.donate)
	w.salt.Store(uint32(time.Now().UnixNano())) // a process that starts again says new bytes
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { listen(ctx, w.topic, w.board) })
	tasks.Go(func() { w.beatOn(ctx) })
	w.stop = func() {
		unregister()
		cancel()
		tasks.Wait()
	}
	return w, nil
}

// restore loads the newest snapshot that reads back.
func (w *worker) restore() error {
	if w.cfg.SnapshotDir == "" {
		return nil
	}
	s, err := loadSnapshot(w.cfg.SnapshotDir, w.state.Shape())
	if err != nil {
		if !errors.Is(err, ErrSnapshot) {
			return err
		}
		w.warn(err)
	}
	if s == nil {
		return nil
	}
	inner := w.cfg.Engine.State()
	w.state, inner.Steps, w.seq = s.state, s.steps, s.seq
	copy(inner.M, s.m)
	copy(inner.V, s.v)
	copy(w.feedback.Residual(), s.residual)
	w.components, w.restored, w.saved = s.components, true, s.state.Round
	if s.fast == nil {
		w.rewind()
	} else {
		copy(inner.Weights, s.fast)
	}
	w.log.Info("resumed from snapshot", "round", s.state.Round, "tokens", s.state.Tokens)
	return nil
}

func (w *worker) close() {
	w.dropLap()
	w.stop()
	_ = w.topic.Close()
	ctx, cancel := context.WithTimeout(context.Background(), round.MaxWait)
	defer cancel()
	for _, k := range w.kept {
		w.cfg.Blobs.Drop(ctx, k.blob)
	}
	w.sharing.Lock()
	defer w.sharing.Unlock()
	w.unshare(ctx)
}

// listen moves messages from the topic to the board until the context ends.
func listen(ctx context.Context, topic p2p.Topic, b *board) {
	for {
		m, err := topic.Next(ctx)
		if err != nil {
			return
		}
		b.put(m.Data, time.Now())
	}
}

// join waits until the roster names this peer and the mates have shown up: all of them, or those who did within the
// settle time, or until the worker is drained. Where a mate already trains, three heartbeats are enough to hear of the others.
func (w *worker) join(ctx context.Context) error {
	tick := time.NewTicker(round.HeartbeatInterval / 4)
	defer tick.Stop()
	var admitted, running time.Time
	for {
		now := time.Now()
		roster, _ := w.board.current()
		if roster.Has(w.self) {
			mates := w.board.mates(now)
			if admitted.IsZero() {
				admitted = now
				w.beat(ctx) // earlier ones were refused for want of a roster
			}
			begun := slices.ContainsFunc(mates, func(m mate) bool { return m.phase != round.PhaseJoining })
			if begun && running.IsZero() {
				running = now
			}
			all := len(mates) == len(roster.Members)-1
			late := now.Sub(admitted) >= settleTime || !running.IsZero() && now.Sub(running) >= round.Silence
			if all || late {
				// Whoever comes to a run under way listens first: its mates are in the middle of a round.
				w.listen = slices.ContainsFunc(mates, func(m mate) bool { return m.takesPart(w.claim()) && m.elapsed > round.Silence })
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.cfg.Drain:
			return nil // the caller's loop sees it too
		case <-w.board.changed:
		case <-tick.C:
		}
	}
}

// linger serves state and blobs after the last round until every live mate holds the same state, so that all end with the
// same checkpoint. A fork found now still heals, which may lead back to a round that is not the last: then it is not over.
func (w *worker) linger(ctx context.Context) (over bool, err error) {
	w.enter(round.PhaseDone)
	until := time.Now().Add(w.headerWait.Deadline(w.roundTime()) + round.MaxWait)
	tick := time.NewTicker(round.HeartbeatInterval / 2)
	defer tick.Stop()
	for time.Now().Before(until) {
		if claim, ok := w.beaten(); ok {
			return false, w.adopt(ctx, claim)
		}
		same := true
		for _, m := range w.board.mates(time.Now()) {
			same = same && m.claim.State == w.hash
		}
		if same {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-w.board.changed:
		case <-tick.C:
		}
	}
	return true, nil
}

// roundTime estimates the time of a round's local steps from the measured speed.
func (w *worker) roundTime() time.Duration {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.speed == 0 {
		return 0
	}
	return time.Duration(w.cfg.Plan.MostTokens()/round.MaxPace/w.speed) * time.Second
}

// lag returns how much later than this peer its mates began their local steps: the upper median over those who are still at
// them, so that few cannot hold up the rest, and at most the time that a death can set peers apart. A peer that had decided
// early once would else give its mates up right before their headers come, round after round.
func (w *worker) lag(now time.Time) time.Duration {
	if w.listen {
		return 0
	}
	at, late := w.claim(), []time.Duration(nil)
	w.mu.RLock()
	began := w.began
	w.mu.RUnlock()
	for _, m := range w.board.mates(now) {
		if m.phase == round.PhaseTraining && m.claim.Round == at.Round && m.claim.State == at.State {
			late = append(late, now.Sub(began)-m.elapsed)
		}
	}
	if len(late) == 0 {
		return 0
	}
	slices.Sort(late)
	return min(max(late[len(late)/2], 0), round.Silence)
}

func (w *worker) draining() bool {
	select {
	case <-w.cfg.Drain:
		return true
	default:
		return false
	}
}

func (w *worker) roster() []peer.ID {
	r, _ := w.board.current()
	return r.Members
}

func (w *worker) claim() round.Claim {
	return round.Claim{Peer: w.self, Round: w.state.Round, Steps: w.state.Steps, Tokens: w.state.Tokens, State: w.hash}
}

// report starts the report of a round before the state moves.
func (w *worker) report(accepted []round.Signed, blobs exchanged) Report {
	r := Report{Round: w.state.Round, Parent: w.hash, Down: blobs.down, Live: []peer.ID{w.self}}
	r.add(accepted, w.cfg.Plan.MostTokens())
	for _, m := range w.board.mates(time.Now()) {
		r.Live = append(r.Live, m.id)
	}
	slices.Sort(r.Live)
	if w.own != nil && w.own.Merge == nil {
		r.Up, r.Compute = w.own.Size, w.own.compute
	}
	if len(r.Contributors) == 0 {
		r.Loss = float64(w.state.Pulse.Loss) / 1e6
	}
	return r
}

// savedGradients is how many rounds of gradients lie between two snapshots. Each is one step long, and a synced copy of weights and
// moments after every step would cost more than training again what a death of all members loses.
const savedGradients = 10

// snapshotIfDue saves what a restart needs, now and then. from and to bound the part of the weights that the last commit moved.
func (w *worker) snapshotIfDue(from, to int) {
	every := max(w.cfg.SnapshotEvery, 1)
	if w.cfg.SnapshotEvery == 0 && w.pace().gradients {
		every = savedGradients
	}
	if w.state.Round%every == 0 || w.over() {
		w.snapshot(from, to)
	}
}

// snapshot saves what a restart needs.
func (w *worker) snapshot(from, to int) {
	if w.cfg.SnapshotDir == "" {
		return
	}
	w.mu.RLock()
	s := snapshot{state: w.state, residual: w.feedback.Residual(), components: w.components, seq: w.seq + seqRoom}
	w.mu.RUnlock()
	var fast []float32
	if w.lap == nil {
		inner := w.cfg.Engine.State()
		s.steps, s.m, s.v, fast = inner.Steps, inner.M, inner.V, inner.Weights
	} else { // the lap that runs ahead is moving the engine's state
		s.steps, s.m, s.v, fast = w.restart.steps, w.restart.m, w.restart.v, w.sent
	}
	if w.pace().fragments > 1 { // outside of the round's fragment the fast weights are this peer's own
		s.fast = slices.Clone(fast)
		w.start(s.fast[from:to], from)
	}
	if err := s.save(w.cfg.SnapshotDir); err != nil {
		w.warn(err)
		return
	}
	w.saved = w.state.Round
}

// checkpoint hands the state out if one is due between that many nominal steps and the state's. It follows from the states alone, so
// all members hand out the same ones.
func (w *worker) checkpoint(since uint64) {
	every, last := w.cfg.Plan.CheckpointEvery*uint64(w.cfg.Plan.LocalSteps), w.over()
	if w.cfg.Hooks.OnCheckpoint == nil || !last && (every == 0 || since/every == w.state.Steps/every) {
		return
	}
	if err := w.cfg.Hooks.OnCheckpoint(w.state); err != nil {
		w.warn(fmt.Errorf("worker: checkpoint of round %d: %w", w.state.Round, err))
	}
}

// keep remembers a blob that the store holds for us, the own or a mate's.
func (w *worker) keep(number uint64, blob cid.Cid) {
	if !slices.ContainsFunc(w.kept, func(k keptBlob) bool { return k.blob.Equals(blob) }) {
		w.kept = append(w.kept, keptBlob{number, blob})
	}
}

// forget drops what belongs to rounds long past.
func (w *worker) forget() {
	age := w.cfg.KeepRounds
	if age == 0 {
		age = defaultKeepRounds
	}
	w.kept = slices.DeleteFunc(w.kept, func(k keptBlob) bool {
		if k.round+age >= w.state.Round {
			return false
		}
		w.cfg.Blobs.Drop(context.Background(), k.blob)
		return true
	})
	maps.DeleteFunc(w.counted, func(_ round.Hash, number uint64) bool { return number+2 < w.state.Round })
}

func (w *worker) warn(err error) {
	w.log.Warn("run goes on", "error", err)
	if w.cfg.Hooks.OnWarning != nil {
		w.cfg.Hooks.OnWarning(err)
	}
}

// enter changes the phase and tells the mates at once.
func (w *worker) enter(p round.Phase) {
	w.mu.Lock()
	if w.phase != p && p == round.PhaseTraining {
		w.began = time.Now()
	}
	w.phase = p
	w.mu.Unlock()
	w.beat(context.Background())
}

// beatOn sends heartbeats, and the roster now and then, until the context ends.
func (w *worker) beatOn(ctx context.Context) {
	tick := time.NewTicker(round.HeartbeatInterval)
	defer tick.Stop()
	for n := 0; ; n++ {
		w.beat(ctx)
		if _, raw := w.board.current(); n%rosterEvery == rosterEvery-1 && raw != nil {
			w.send(ctx, raw)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// count gives the next heartbeat its number, which grows whatever the clock does.
func (w *worker) count(now time.Time) { w.seq = max(w.seq+1, uint64(now.UnixNano())) }

func (w *worker) beat(ctx context.Context) {
	w.mu.Lock()
	w.count(time.Now())
	b := round.Heartbeat{
		Version: round.Version, Run: wire.Link{Cid: w.cfg.Run}, Seq: w.seq, Round: w.state.Round,
		State: w.hash, Tokens: w.state.Tokens, Steps: w.state.Steps, Phase: w.phase, Speed: w.speed,
	}
	if !w.began.IsZero() {
		b.Elapsed = uint64(time.Since(w.began).Milliseconds())
	}
	w.mu.Unlock()
	w.publish(ctx, b)
}

// publish signs a record and sends it to the run's topic.
func (w *worker) publish(ctx context.Context, record round.Record) {
	raw, err := round.Seal(w.cfg.Net.Key(), record)
	if err != nil {
		w.log.Error("message not sent", "error", err) // a bug: our own records fit their limits
		return
	}
	w.send(ctx, raw)
}

// send publishes a message. A failure is only logged: everything that matters is said again.
func (w *worker) send(ctx context.Context, raw []byte) {
	ctx, cancel := context.WithTimeout(ctx, round.HeartbeatInterval)
	defer cancel()
	if err := w.topic.Publish(ctx, round.Salt(raw, w.salt.Add(1))); err != nil && ctx.Err() == nil {
		w.log.Debug("publish failed", "error", err)
	}
}

// donate puts the state where the asker can fetch it. Only members and the owner may ask.
func (w *worker) donate(ctx context.Context, asker peer.ID) (stateResponse, error) {
	roster, _ := w.board.current()
	if asker != w.cfg.Owner && !roster.Has(asker) {
		return stateResponse{}, fmt.Errorf("worker: %s is no member: %w", asker, ErrNoDonor)
	}
	w.sharing.Lock()
	defer w.sharing.Unlock()
	w.mu.RLock()
	res := stateResponse{
		Version: round.Version, Round: w.state.Round, Steps: w.state.Steps, Tokens: w.state.Tokens, State: w.hash,
		Size: uint64(w.state.Size()), Lineage: w.lineage,
	}
	var raw, head []byte
	if w.shared.state != w.hash {
		raw = w.state.Bytes()
		if w.state.Apart {
			head = w.state.Head()
		}
	}
	w.mu.RUnlock()
	if raw != nil {
		fresh := shared{state: res.State}
		var err error
		if fresh.blob, err = w.cfg.Blobs.Put(ctx, raw); err == nil && head != nil {
			fresh.head, err = w.cfg.Blobs.Put(ctx, head)
		}
		if err != nil {
			return res, fmt.Errorf("worker: share the state: %w", err)
		}
		w.unshare(ctx)
		w.shared = fresh
	}
	res.Blob, res.Head = wire.Link{Cid: w.shared.blob}, wire.Link{Cid: w.shared.head}
	return res, nil
}

// unshare drops the blobs of the state that was handed out last.
func (w *worker) unshare(ctx context.Context) {
	for _, blob := range []cid.Cid{w.shared.blob, w.shared.head} {
		if blob.Defined() {
			w.cfg.Blobs.Drop(ctx, blob)
		}
	}
}
