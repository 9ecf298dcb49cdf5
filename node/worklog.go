package node

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/worker"
)

// workLog counts what each member has committed, as the requester itself saw it. It is kept on disk, so that a requester
// that comes back still knows. Of rounds that went by while it was away it knows only the run's committed total, on which
// a majority of the members agrees: a member may then claim up to a full share of each such round, and all members
// together no more than that total. What was granted on such a claim is on disk before it is paid.
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
	states  map[uint64]string // agreed state after so many rounds, hex
}

// workLine is one line of the log: a committed round, or a grant for rounds that were not seen.
type workLine struct {
	Round   uint64            `json:"round"`
	Total   uint64            `json:"total"`
	State   string            `json:"state,omitempty"` // after the round, hex
	Work    map[string]uint64 `json:"work,omitzero"`   // empty for a round in which nobody's work counted
	Granted map[string]uint64 `json:"granted,omitzero"`
}

// openWorkLog reads the log at path, which need not exist. A torn last line is skipped.
func openWorkLog(path string, perRound uint64) (*workLog, error) {
	w := &workLog{path: path, cap: perRound, rounds: map[uint64]map[string]uint64{}, seen: map[string]uint64{}, granted: map[string]uint64{}, states: map[uint64]string{}}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("work log: %w", err)
	}
	defer f.Close()
	if err := readWork(f, w.put); err != nil {
		return nil, fmt.Errorf("work log %s: %w", path, err)
	}
	return w, nil
}

// maxWorkLine is the longest line of a work log in bytes.
const maxWorkLine = 1 << 20

// readWork calls put for every line of a log that says something. Others, such as a torn one, are skipped; so is the round
// after which no other could be counted.
func readWork(from io.Reader, put func(workLine)) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxWorkLine)
	for lines.Scan() {
		var l workLine
		if json.Unmarshal(lines.Bytes(), &l) == nil && (l.Work != nil || l.Granted != nil) && l.Round < math.MaxUint64 {
			put(l)
		}
	}
	return lines.Err()
}

// put takes in a line. A later line about the same round replaces the earlier one, as when a fork healed; a round that
// turns up late takes the place of what was granted for it.
func (w *workLog) put(l workLine) {
	if l.Granted != nil {
		maps.Copy(w.granted, l.Granted)
		return
	}
	old, known := w.rounds[l.Round]
	for id, n := range old {
		w.seen[id] -= n
		w.sum -= n
	}
	w.rounds[l.Round] = l.Work
	for id, n := range l.Work {
		w.seen[id] += n
		w.sum += n
		if !known && l.Round < w.top {
			w.granted[id] -= min(w.granted[id], n)
		}
	}
	if l.State != "" {
		w.states[l.Round+1] = l.State
	}
	if l.Round+1 >= w.top {
		w.top, w.total = l.Round+1, l.Total
	}
}

// add records a committed round before anything is paid for it.
func (w *workLog) add(r worker.Report) error {
	l := workLine{Round: r.Round, Total: r.Total, State: r.Next.String(), Work: map[string]uint64{}}
	for id, n := range r.Work {
		l.Work[id.String()] = n
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(l)
	return w.write(l)
}

// encode is the line as it stands in the log. A leading newline ends a line that a crash tore, so that only the torn one
// is lost.
func (l workLine) encode() ([]byte, error) {
	b, err := json.Marshal(l)
	return append(append([]byte{'\n'}, b...), '\n'), err
}

// write appends a line durably; mu is held.
func (w *workLog) write(l workLine) error {
	b, err := l.encode()
	if err != nil {
		return fmt.Errorf("work log: %w", err)
	}
	_, err = os.Stat(w.path)
	fresh := errors.Is(err, os.ErrNotExist)
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("work log: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil && fresh {
		err = syncDir(filepath.Dir(w.path))
	}
	if err != nil {
		return fmt.Errorf("work log: %w", err)
	}
	return nil
}

// verified returns how many of the tokens that a member claims are committed.
func (w *workLog) verified(id peer.ID, claimed uint64) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := id.String()
	seen := w.seen[name]
	if claimed <= seen {
		return claimed, nil
	}
	share := saturated(w.cap, w.top-uint64(len(w.rounds))) // of the unseen rounds
	known := w.sum
	for other, n := range w.granted {
		if other != name {
			known += n
		}
	}
	grant := min(claimed-seen, share, w.total-min(w.total, known))
	if grant > w.granted[name] {
		l := workLine{Granted: map[string]uint64{name: grant}}
		if err := w.write(l); err != nil {
			return 0, err
		}
		w.put(l)
	}
	return seen + min(claimed-seen, share, w.granted[name]), nil
}

// state returns the agreed state after so many rounds, empty when that was not seen.
func (w *workLog) state(rounds uint64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.states[rounds]
}

// saturated is a × b, or the largest number when that does not fit.
func saturated(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	if hi > 0 {
		return math.MaxUint64
	}
	return lo
}
