package transfer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/internal/pause"
)

const (
	// attempts is how often in a row a source may fail without delivering a block.
	attempts = 2
	// backoff is the wait before the second attempt; it doubles with each further one.
	backoff = 200 * time.Millisecond
	// maxProviders bounds the sources that the router is asked for.
	maxProviders = 16
)

// session is one fetch: its sources and how they are doing.
type session struct {
	f    *Fetcher
	root cid.Cid
	what Ask
	once sync.Once // guards begin
	at   time.Time // of begin
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	tally

	jobs    chan func() // blocks to hash and write
	workers sync.WaitGroup

	mu      sync.Mutex
	sources map[string]*source
	order   []string      // in which they were found
	looking bool          // the router is being asked, or will be
	more    chan struct{} // closed to ask the router at once
	asked   error         // what the router answered, when that was an error
	changed chan struct{} // closed and replaced at every change
	holds   map[cid.Cid]func()
}

// source is one peer or web server of a session.
type source struct {
	lane   lane // nil while dialling and when gone
	gone   bool
	why    error // of its last failure
	asked  time.Time
	ended  time.Time // when it last failed
	bytes  int64 // delivered over lanes that have ended
	blocks int
}

// now returns what the source has delivered, and its rate.
func (s *source) now() (bytes int64, rate float64) {
	bytes = s.bytes
	if s.lane != nil {
		n, _ := s.lane.state().total()
		bytes, rate = bytes+n, s.lane.state().speed()
	}
	return bytes, rate
}

func (f *Fetcher) session(ctx context.Context, root cid.Cid, what Ask) *session {
	s := &session{
		f: f, root: root, what: what, sources: map[string]*source{}, more: make(chan struct{}),
		changed: make(chan struct{}), holds: map[cid.Cid]func(){}, jobs: make(chan func()),
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	return s
}

// begin opens ways to the sources, when the first block is needed that is not here.
func (s *session) begin() {
	s.update(func() { s.at = time.Now() })
	for range runtime.GOMAXPROCS(0) {
		s.workers.Go(func() {
			for job := range s.jobs {
				job()
			}
		})
	}
	for _, id := range s.what.From {
		s.addPeer(id)
	}
	for _, url := range s.what.Seeds {
		s.add(url, func(ctx context.Context, src *source) (bool, error) { return s.useWeb(ctx, url, src) })
	}
	if s.f.router != nil {
		s.update(func() { s.looking = true })
		s.wg.Go(s.look)
	}
	if s.what.Progress != nil {
		s.wg.Go(s.report)
	}
}

func (s *session) close() {
	s.stop()
	s.wg.Wait()
	close(s.jobs)
	s.workers.Wait()
	for _, release := range s.holds {
		release()
	}
}

// hand gives a block to those who hash and write, and waits while all of them are busy: that is what slows the sources down to
// the speed of the disk.
func (s *session) hand(job func()) { s.jobs <- job }

// hold protects an object until the session ends.
func (s *session) hold(c cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[c] == nil {
		s.holds[c] = s.f.store.Hold(c)
	}
}

// update changes the session's state and wakes whoever waits for a change.
func (s *session) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *session) addPeer(id peer.ID) {
	if id != s.f.net.ID() {
		s.add(id.String(), func(ctx context.Context, src *source) (bool, error) { return s.usePeer(ctx, id, src) })
	}
}

// add starts using a source, once. use opens a lane and returns when it has ended.
func (s *session) add(name string, use func(context.Context, *source) (bool, error)) {
	s.update(func() {
		if s.sources[name] != nil {
			return
		}
		src := &source{asked: time.Now()}
		s.sources[name] = src
		s.order = append(s.order, name)
		if until, banned := s.f.opts.Bans.Banned(name); banned {
			src.gone, src.why = true, fmt.Errorf("transfer: banned until %s: %w", until.UTC().Format(time.RFC3339), ErrBanned)
			return
		}
		s.wg.Go(func() { s.run(name, src, use) })
	})
}

// look asks the router for providers: at once when nobody else is known, else when the known sources disappoint. It asks for one
// first: a search for all of them may take its time even where the first is near.
func (s *session) look() {
	s.mu.Lock()
	known := len(s.sources)
	s.mu.Unlock()
	if known > 0 {
		timer := time.NewTimer(s.f.opts.Hedge)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.more:
		case <-s.ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.f.opts.Find)
	defer cancel()
	var err error
	for _, most := range []int{1, maxProviders} {
		var ids []peer.ID
		ids, err = s.f.router.Providers(ctx, s.root, most)
		for _, id := range ids {
			s.addPeer(id)
		}
		if len(ids) < most {
			break
		}
	}
	s.update(func() { s.looking, s.asked = false, err })
}

// run keeps a way to a source until the session ends or the source has disappointed too often.
func (s *session) run(name string, src *source, use func(context.Context, *source) (bool, error)) {
	for fails := 0; s.ctx.Err() == nil; {
		delivered, err := use(s.ctx, src)
		if delivered {
			fails = 0
		}
		fails++
		if errors.Is(err, storage.ErrCorrupt) {
			s.blame(name)
		}
		bad := errors.Is(err, storage.ErrCorrupt) || errors.Is(err, ErrProtocol)
		gone := bad || fails >= attempts || errors.Is(err, p2p.ErrNoProtocol)
		if s.ctx.Err() != nil {
			return // the session's end is no fault of the source, whatever its stream says
		}
		s.update(func() { src.why, src.gone, src.ended = err, gone, time.Now() })
		s.f.log.Info("source failed", "cid", s.root, "source", name, "dropped", gone, "err", err)
		if gone || pause.For(s.ctx, backoff<<(fails-1)) != nil {
			return
		}
	}
}

// blame counts a bad block against its source.
func (s *session) blame(name string) {
	banned, err := s.f.opts.Bans.Bad(name)
	if err != nil {
		s.f.log.Error("cannot save who sent bad blocks", "err", err)
	}
	if banned {
		s.f.log.Warn("source banned: it keeps sending bad blocks", "source", name, "for", banTime)
	}
}

// usePeer opens one stream and reads it to its end.
func (s *session) usePeer(ctx context.Context, id peer.ID, src *source) (delivered bool, err error) {
	dial, cancel := context.WithTimeout(ctx, s.f.opts.Dial)
	stream, err := s.f.net.Open(dial, id, Protocol)
	cancel()
	if err != nil {
		return false, err
	}
	c := newConn(s, stream)
	s.update(func() { src.lane = c })
	err = c.read(ctx)
	return s.ended(src), err
}

// ended takes the lane of a source away and tells whether it has delivered anything.
func (s *session) ended(src *source) (delivered bool) {
	s.update(func() {
		bytes, blocks := src.lane.state().total()
		src.bytes, src.blocks, src.lane = src.bytes+bytes, src.blocks+blocks, nil
		delivered = blocks > 0
	})
	return delivered
}

// pull works on a plan with every source that the session has or finds, until the plan ends or no source is left.
func (s *session) pull(ctx context.Context, p *plan) error {
	s.once.Do(s.begin)
	ctx, stop := context.WithCancel(ctx)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stop()
	used := map[lane]bool{} // false once the work is over
	patience := time.NewTimer(s.f.opts.Find)
	defer patience.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		for _, src := range s.sources {
			l := src.lane
			if _, known := used[l]; l == nil || known || l.state().isDead() {
				continue
			}
			used[l] = true
			workers.Go(func() {
				l.work(ctx, p)
				s.update(func() { used[l] = false })
			})
		}
		active, hope := s.prospects(p, used)
		s.mu.Unlock()
		if ended, err := p.result(); ended {
			return err
		}
		if !active && !hope {
			return s.failure(p.cid)
		}
		if active {
			patience.Reset(s.f.opts.Find)
		}
		select {
		case <-changed:
		case <-p.ended:
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			if !active {
				return s.failure(p.cid)
			}
		}
	}
}

// prospects says whether somebody works on a plan and whether somebody else may yet. It is called with mu held.
func (s *session) prospects(p *plan, used map[lane]bool) (active, hope bool) {
	for l, working := range used {
		active = active || working && !p.spent(l.state())
	}
	for _, src := range s.sources {
		// Dialling, waiting to dial again, or about to notice that its stream is dead.
		hope = hope || (!src.gone && (src.lane == nil || src.lane.state().isDead()))
	}
	if !active && !hope && s.looking {
		select {
		case <-s.more:
		default:
			close(s.more)
		}
	}
	return active, hope || s.looking
}

// states lists the sources for a progress event, in the order in which they were found.
func (s *session) states() []SourceProgress {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]SourceProgress, 0, len(s.order))
	for _, name := range s.order {
		src := s.sources[name]
		p := SourceProgress{Source: name, State: "dialling"}
		if s.ctx.Err() != nil {
			p.State = "done"
		}
		p.Bytes, p.Rate = src.now()
		switch {
		case src.gone:
			p.State = "dropped"
		case src.lane != nil:
			p.State = "active"
		case src.why != nil && s.ctx.Err() == nil:
			p.State = "waiting"
		}
		if src.why != nil && src.lane == nil {
			p.Why = src.why.Error()
		}
		out = append(out, p)
	}
	return out
}
