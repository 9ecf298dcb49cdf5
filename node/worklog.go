package node

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// workLog counts what each member has committed, as the requester itself saw it. It is kept on disk, so that a requester
// that comes back still knows. Of rounds that went by while it was away it knows only the run's committed total, on which
// a majority of the members agrees: a member may then claim up to a full share of each such round, and all members
// together no more than that total.
type workLog struct {
	mu      sync.Mutex
	path    string
	cap     uint64 // tokens of one member in one round
	rounds  map[uint64]map[string]uint64
	seen    map[string]uint64 // sum of rounds by member
	sum     uint64            // sum of seen
	top     uint64            // rounds committed
	total   uint64            // tokens committed in them
	granted map[string]uint64 // tokens of unseen rounds that members claimed
}

// workLine is one line of the log.
type workLine struct {
	Round uint64            `json:"round"`
	Total uint64            `json:"total"`
	Work  map[string]uint64 `json:"work"`
}

// openWorkLog reads the log at path, which need not exist. A torn last line is skipped.
func openWorkLog(path string, perRound uint64) (*workLog, error) {
	w := &workLog{path: path, cap: perRound, rounds: map[uint64]map[string]uint64{}, seen: map[string]uint64{}, granted: map[string]uint64{}}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("work log: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l workLine
		if json.Unmarshal(lines.Bytes(), &l) == nil {
			w.put(l)
		}
	}
	return w, lines.Err()
}

// put takes in a round; a later line about the same round replaces the earlier one, as when a fork healed.
func (w *workLog) put(l workLine) {
	for id, n := range w.rounds[l.Round] {
		w.seen[id] -= n
		w.sum -= n
	}
	w.rounds[l.Round] = l.Work
	for id, n := range l.Work {
		w.seen[id] += n
		w.sum += n
	}
	if l.Round+1 >= w.top {
		w.top, w.total = l.Round+1, l.Total
	}
}

// add records a committed round before anything is paid for it.
func (w *workLog) add(round, total uint64, work map[peer.ID]uint64) error {
	l := workLine{round, total, map[string]uint64{}}
	for id, n := range work {
		l.Work[id.String()] = n
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(l)
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("work log: %w", err)
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("work log: %w", err)
	}
	// A leading newline ends a line that a crash tore, so that only the torn one is lost.
	_, err = f.Write(append(append([]byte{'\n'}, b...), '\n'))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// verified returns how many of the tokens that a member claims are committed.
func (w *workLog) verified(id peer.ID, claimed uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := id.String()
	seen := w.seen[name]
	if claimed <= seen {
		return seen
	}
	missed := w.top - uint64(len(w.rounds))
	var others uint64
	for other, n := range w.granted {
		if other != name {
			others += n
		}
	}
	pool := w.total - min(w.total, w.sum+others)
	share := uint64(0) // of the unseen rounds, without overflow
	if missed > 0 {
		share = min(pool/missed+1, w.cap) * missed
	}
	w.granted[name] = max(w.granted[name], min(claimed-seen, share, pool))
	return seen + w.granted[name]
}

// own returns the tokens of a member in the rounds that this node saw.
func (w *workLog) own(id peer.ID) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[id.String()]
}
