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
	"github.com/capacloud/capanode/trainer/round"
)

// ErrNotOwner reports an attempt to change the members of a run that somebody else owns.
var ErrNotOwner = errors.New("only the run's owner names its members")

// ObserveConfig is what an observer runs with.
type ObserveConfig struct {
	Run        cid.Cid
	Owner      peer.ID // publishes the roster; may be this node
	MostTokens uint64  // Plan.MostTokens: no update counts for more
	Net        p2p.Network
	OnRound    func(Report) // called from the observer's goroutine; may be nil
	Log        *slog.Logger // nil discards
}

// Observer follows a run without training in it: it verifies what members say, and where enough of them announce the same
// commit, it reports the round. For the run's owner it also publishes the roster.
type Observer struct {
	cfg   ObserveConfig
	log   *slog.Logger
	board *board
	topic p2p.Topic
	stop  func()
	salt  atomic.Uint32

	mu     sync.Mutex
	rounds map[uint64]Report // the last keepReports
	best   round.Claim
	named  time.Time // when the owner last changed the members
}

// Observe joins a run's topic and follows it until Close.
func Observe(cfg ObserveConfig) (*Observer, error) {
	o := &Observer{
		cfg: cfg, log: cfg.Log, board: newBoard(cfg.Run, cfg.Net.ID(), cfg.Owner), rounds: map[uint64]Report{},
	}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	o.board.keep = observedMessages
	var err error
	if o.topic, err = cfg.Net.Join(round.Topic(cfg.Run), o.board.validate); err != nil {
		return nil, fmt.Errorf("worker: observe %s: %w", cfg.Run, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { listen(ctx, o.topic, o.board) })
	tasks.Go(func() { o.follow(ctx) })
	o.stop = func() {
		cancel()
		tasks.Wait()
	}
	return o, nil
}

// Close stops following.
func (o *Observer) Close() error {
	o.stop()
	return o.topic.Close()
}

// SetMembers names the members of the run from now on. The epoch grows with the clock, so that an owner that lost its memory
// still outbids its old rosters.
func (o *Observer) SetMembers(members []peer.ID) error {
	if o.cfg.Net.ID() != o.cfg.Owner {
		return fmt.Errorf("worker: set the members of %s: %w", o.cfg.Run, ErrNotOwner)
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(members)))
	b := o.board
	b.mu.Lock()
	r := round.Roster{
		Version: round.Version, Run: wire.Link{Cid: o.cfg.Run}, Members: sorted,
		Epoch: max(b.roster.Epoch+1, uint64(time.Now().UnixMilli())),
	}
	raw, err := round.Seal(o.cfg.Net.Key(), r)
	if err == nil {
		b.roster, b.rosterRaw = r, raw
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("worker: set the members of %s: %w", o.cfg.Run, err)
	}
	o.mu.Lock()
	o.named = time.Now()
	o.mu.Unlock()
	o.announce(context.Background())
	return nil
}

// Member is a member of the run as its last heartbeat tells.
type Member struct {
	ID    peer.ID
	Live  bool // heard of within three heartbeats
	Phase round.Phase
	Claim round.Claim
	Speed uint64 // tokens per second
}

// Members lists the roster, ascending by ID.
func (o *Observer) Members() []Member {
	live := o.board.mates(time.Now())
	roster, _ := o.board.current()
	members := make([]Member, 0, len(roster.Members))
	for _, id := range roster.Members {
		m := Member{ID: id}
		if i := slices.IndexFunc(live, func(m mate) bool { return m.id == id }); i >= 0 {
			m = Member{id, true, live[i].phase, live[i].claim, live[i].speed}
		}
		members = append(members, m)
	}
	return members
}

// State returns the newest state that enough members announced; zero before the first round.
func (o *Observer) State() round.Claim {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.best
}

// keepReports is how many of the last rounds an observer remembers: as many as forks are merged over. What happens to older ones
// is not reported any more, so that none is reported twice.
const keepReports = round.MaxLineage

// Work returns the committed tokens of every peer in the last [round.MaxLineage] rounds that were reported.
func (o *Observer) Work() map[uint64]map[peer.ID]uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	work := make(map[uint64]map[peer.ID]uint64, len(o.rounds))
	for number, r := range o.rounds {
		work[number] = maps.Clone(r.Work)
	}
	return work
}

func (o *Observer) follow(ctx context.Context) {
	tick := time.NewTicker(round.HeartbeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.board.changed:
		case <-tick.C:
			o.announce(ctx)
		}
		for _, r := range o.judge() {
			if o.cfg.OnRound != nil {
				o.cfg.OnRound(r)
			}
		}
	}
}

// announce publishes the roster, for the owner.
func (o *Observer) announce(ctx context.Context) {
	_, raw := o.board.current()
	if raw == nil || o.cfg.Net.ID() != o.cfg.Owner {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, round.HeartbeatInterval)
	defer cancel()
	if err := o.topic.Publish(ctx, round.Salt(raw, o.salt.Add(1))); err != nil && ctx.Err() == nil {
		o.log.Debug("publish failed", "error", err)
	}
}

// judge returns the reports of rounds that became certain.
func (o *Observer) judge() []Report {
	live := o.board.mates(time.Now())
	groups := o.board.agreements()
	o.mu.Lock()
	defer o.mu.Unlock()
	var reports []Report
	for _, g := range groups {
		old, known := o.rounds[g.commit.Round]
		if known && old.Total >= g.commit.Total || g.commit.Round+keepReports < o.best.Round {
			continue
		}
		if 2*len(g.support(live)) <= len(o.board.electorate(g.commit.Round, o.named)) {
			continue
		}
		r, whole := o.report(g.commit, live)
		if !whole {
			continue
		}
		r.Replaces = known
		o.rounds[r.Round] = r
		claim := round.Claim{Peer: g.by[0], Round: r.Round + 1, Steps: r.Steps, Tokens: r.Total, State: r.Next}
		if claim.Beats(o.best) {
			o.best = claim
			maps.DeleteFunc(o.rounds, func(number uint64, _ Report) bool { return number+keepReports < claim.Round })
		}
		reports = append(reports, r)
	}
	return reports
}

// report makes the report of an agreed commit from the members' headers; false while one of them is missing.
func (o *Observer) report(c round.Commit, live []mate) (Report, bool) {
	var set []round.Signed
	for _, h := range o.board.about(c.Round, c.Parent).headers {
		if slices.Contains(c.Set, h.ID) {
			set = append(set, h.Signed)
		}
	}
	if len(set) != len(c.Set) {
		return Report{}, false
	}
	r := Report{
		Round: c.Round, Parent: c.Parent, Next: c.Next, Total: c.Total, Steps: c.Steps, Up: c.Up, Down: c.Down,
		Compute: time.Duration(c.Compute) * time.Millisecond, Comm: time.Duration(c.Comm) * time.Millisecond,
	}
	for _, m := range live {
		r.Live = append(r.Live, m.id)
	}
	r.add(round.Accept(set), o.cfg.MostTokens)
	if len(r.Contributors) == 0 {
		r.Loss = float64(c.Loss) / 1e6
	}
	return r, true
}

// agreement is a commit that several members announced alike.
type agreement struct {
	commit round.Commit
	by     []peer.ID
}

// support lists who stands behind the commit: members that announced it, and those that hold the state it led to, having
// taken it from a mate. Money and the end of a run follow from reports, so more than half of the electorate must: a commit
// of one member alone, over its own update alone, is easily made up.
func (g agreement) support(live []mate) []peer.ID {
	all := g.by
	for _, m := range live {
		if m.claim.Round == g.commit.Round+1 && m.claim.State == g.commit.Next && !slices.Contains(g.by, m.id) {
			all = append(all[:len(all):len(all)], m.id)
		}
	}
	return all
}

// electorate lists the members whose word about a round counts: who announced any commit of it, and, of those who have not
// left, who was heard of within the settle time. Right after the roster was named that is also who was never heard of: not
// all may have shown up. Being silent for a moment must not hand the majority to somebody else.
func (b *board) electorate(number uint64, named time.Time) []peer.ID {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	var ids []peer.ID
	for _, id := range b.roster.Members {
		w := b.members[id]
		if w == nil {
			w = &member{beatAt: named}
		}
		announced := slices.ContainsFunc(w.commits, func(c round.Commit) bool { return c.Round == number })
		if announced || now.Sub(w.beatAt) < settleTime && w.beat.Phase != round.PhaseLeaving {
			ids = append(ids, id)
		}
	}
	return ids
}

// agreements groups the members' commits, oldest round first.
func (b *board) agreements() []agreement {
	b.mu.Lock()
	defer b.mu.Unlock()
	var groups []agreement
	for _, id := range b.roster.Members {
		w := b.members[id]
		if w == nil {
			continue
		}
		for _, c := range w.commits {
			i := slices.IndexFunc(groups, func(g agreement) bool { return sameCommit(g.commit, c) })
			if i < 0 {
				groups = append(groups, agreement{commit: c})
				i = len(groups) - 1
			}
			groups[i].by = append(groups[i].by, id)
		}
	}
	slices.SortStableFunc(groups, func(a, b agreement) int { return int(int64(a.commit.Round) - int64(b.commit.Round)) })
	return groups
}

func sameCommit(a, b round.Commit) bool {
	return a.Round == b.Round && a.Parent == b.Parent && a.Next == b.Next && a.Total == b.Total && slices.Equal(a.Set, b.Set)
}
