package transfer

import (
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// progressEvery is the time between two progress events.
const progressEvery = 250 * time.Millisecond

// Progress is how far a fetch is. Total grows while a folder is being explored.
type Progress struct {
	CID     cid.Cid
	Done    int64            // bytes of content that are here, those of an earlier fetch included
	Total   int64            // bytes of content of all files found so far
	Rate    float64          // bytes per second, over the last few seconds
	ETA     time.Duration    // until Done is Total at this rate; negative when it cannot be told
	Ended   bool             // this is the last event of the fetch
	Sources []SourceProgress // in the order in which they were found
}

// SourceProgress is how one source of a fetch is doing.
type SourceProgress struct {
	Source string  // peer ID or URL
	State  string  // "dialling", "active", "waiting" before another try, "dropped", or "done" with the fetch
	Bytes  int64   // that it has delivered
	Rate   float64 // bytes per second while it delivered
	Why    string  // its last failure, when it is not active
}

// tally counts what a session has found and what of it is here, in bytes of content.
type tally struct {
	count sync.Mutex
	done  int64
	total int64
}

// found counts more content, of which a part is here already.
func (t *tally) found(total, done int64) {
	t.count.Lock()
	defer t.count.Unlock()
	t.total += total
	t.done += done
}

func (t *tally) sum() (total, done int64) {
	t.count.Lock()
	defer t.count.Unlock()
	return t.total, t.done
}

// report sends progress events until the session ends, and one then.
func (s *session) report() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	m := meter{}
	for {
		select {
		case <-tick.C:
			s.what.Progress(s.progress(&m))
		case <-s.ctx.Done():
			p := s.progress(&m)
			p.Ended = true
			s.what.Progress(p)
			return
		}
	}
}

func (s *session) progress(m *meter) Progress {
	total, done := s.sum()
	p := Progress{CID: s.root, Done: done, Total: total, ETA: -1, Sources: s.states()}
	p.Rate = m.rate(time.Now(), done)
	if left := total - done; left == 0 {
		p.ETA = 0
	} else if p.Rate > 0 {
		p.ETA = time.Duration(float64(left) / p.Rate * float64(time.Second))
	}
	return p
}

// meter measures a rate over the last few seconds of a growing count.
type meter struct {
	at    []time.Time
	count []int64
}

// meterSpan is how far back a meter looks.
const meterSpan = 3 * time.Second

func (m *meter) rate(now time.Time, count int64) float64 {
	m.at, m.count = append(m.at, now), append(m.count, count)
	for len(m.at) > 2 && now.Sub(m.at[0]) > meterSpan {
		m.at, m.count = m.at[1:], m.count[1:]
	}
	took := now.Sub(m.at[0]).Seconds()
	if took <= 0 {
		return 0
	}
	return float64(count-m.count[0]) / took
}
