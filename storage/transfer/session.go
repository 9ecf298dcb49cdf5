package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
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
	from []peer.ID
	once sync.Once // guards begin
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	sources map[peer.ID]*source
	order   []peer.ID     // in which they were found
	looking bool          // the router is being asked, or will be
	more    chan struct{} // closed to ask the router at once
	asked   error         // what the router answered, when that was an error
	changed chan struct{} // closed and replaced at every change
	holds   map[cid.Cid]func()
}

// source is one peer of a session.
type source struct {
	conn *conn // nil while dialling and when gone
	gone bool
	why  error // of its last failure
}

func (f *Fetcher) session(ctx context.Context, root cid.Cid, from []peer.ID) *session {
	s := &session{
		f: f, root: root, from: from, sources: map[peer.ID]*source{}, more: make(chan struct{}),
		changed: make(chan struct{}), holds: map[cid.Cid]func(){},
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	return s
}

// begin opens streams to the sources, when the first block is needed that is not here.
func (s *session) begin() {
	for _, id := range s.from {
		s.add(id)
	}
	if s.f.router != nil {
		s.update(func() { s.looking = true })
		s.wg.Go(s.look)
	}
}

func (s *session) close() {
	s.stop()
	s.wg.Wait()
	for _, release := range s.holds {
		release()
	}
}

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

// add starts using a peer as a source, once.
func (s *session) add(id peer.ID) {
	s.update(func() {
		if s.sources[id] != nil || id == s.f.net.ID() {
			return
		}
		src := &source{}
		s.sources[id] = src
		s.order = append(s.order, id)
		s.wg.Go(func() { s.run(id, src) })
	})
}

// look asks the router for providers: at once when nobody else is known, else when the known sources disappoint.
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
	ids, err := s.f.router.Providers(ctx, s.root, maxProviders)
	for _, id := range ids {
		s.add(id)
	}
	s.update(func() { s.looking, s.asked = false, err })
}

// run keeps a stream to a source until the session ends or the source has disappointed too often.
func (s *session) run(id peer.ID, src *source) {
	for fails := 0; s.ctx.Err() == nil; {
		delivered, err := s.use(id, src)
		if delivered {
			fails = 0
		}
		fails++
		bad := errors.Is(err, storage.ErrCorrupt) || errors.Is(err, ErrProtocol)
		gone := bad || fails >= attempts || errors.Is(err, p2p.ErrNoProtocol)
		s.update(func() { src.conn, src.why, src.gone = nil, err, gone })
		if gone {
			s.f.log.Info("source dropped", "cid", s.root, "peer", id, "err", err)
			return
		}
		timer := time.NewTimer(backoff << (fails - 1))
		select {
		case <-timer.C:
		case <-s.ctx.Done():
		}
		timer.Stop()
	}
}

// use opens one stream and reads it to its end.
func (s *session) use(id peer.ID, src *source) (delivered bool, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.f.opts.Dial)
	stream, err := s.f.net.Open(ctx, id, Protocol)
	cancel()
	if err != nil {
		return false, err
	}
	c := newConn(stream, s.f.opts, &s.f.down)
	s.update(func() { src.conn = c })
	err = c.read(s.ctx)
	return c.delivered() > 0, err
}

// pull works on a plan with every source that the session has or finds, until the plan ends or no source is left.
func (s *session) pull(ctx context.Context, p *plan) error {
	s.once.Do(s.begin)
	ctx, stop := context.WithCancel(ctx)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stop()
	used := map[*conn]bool{} // false once the work is over
	patience := time.NewTimer(s.f.opts.Find)
	defer patience.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		for _, src := range s.sources {
			c := src.conn
			if _, known := used[c]; c == nil || known || c.isDead() {
				continue
			}
			used[c] = true
			workers.Go(func() {
				c.work(ctx, p)
				s.update(func() { used[c] = false })
			})
		}
		active, hope := s.prospects(used)
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
func (s *session) prospects(used map[*conn]bool) (active, hope bool) {
	for _, working := range used {
		active = active || working
	}
	for _, src := range s.sources {
		// Dialling, waiting to dial again, or about to notice that its stream is dead.
		hope = hope || (!src.gone && (src.conn == nil || src.conn.isDead()))
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

// failure says who was asked for an object and why nobody delivered it.
func (s *session) failure(c cid.Cid) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	reason := ErrNoProviders
	var asked []string
	for _, id := range s.order {
		src := s.sources[id]
		why := "does not have it"
		if src.why != nil && src.conn == nil {
			why = src.why.Error()
		}
		if errors.Is(src.why, storage.ErrCorrupt) {
			reason = errors.Join(ErrNoProviders, storage.ErrCorrupt)
		}
		asked = append(asked, fmt.Sprintf("%s (%s)", id, why))
	}
	if len(asked) == 0 {
		asked = []string{"nobody: no source was given and nobody announced it"}
	}
	if s.asked != nil {
		asked = append(asked, fmt.Sprintf("the router (%v)", s.asked))
	}
	return fmt.Errorf("transfer: fetch %s: asked %s: %w", c, strings.Join(asked, ", "), reason)
}
