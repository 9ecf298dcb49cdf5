package transfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// banAfter is how many bad blocks, one per fetch at most, ban a source.
	banAfter = 3
	// banTime is how long a ban lasts, and how long a bad block is remembered.
	banTime = 24 * time.Hour
	// maxBans bounds the sources that are remembered; the oldest are forgotten first. maxBanFile bounds their file in bytes.
	maxBans    = 4096
	maxBanFile = 4 << 20
)

// ErrBanned reports a source that has sent too many bad blocks.
var ErrBanned = errors.New("source sent bad blocks")

// Bans remembers, over restarts, which sources sent blocks that did not match their hash. A nil *Bans remembers nothing: a
// bad block then ends the use of a source for the one fetch. Methods are safe for concurrent use.
type Bans struct {
	path string
	now  func() time.Time

	mu   sync.Mutex
	list map[string]strikes
}

// strikes are the bad blocks of one source.
type strikes struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// OpenBans reads the file at path, which need not exist; an empty path remembers until the program ends. now is the clock,
// nil means [time.Now]. A file that cannot be read as bans is an error: remove it to start afresh.
func OpenBans(path string, now func() time.Time) (*Bans, error) {
	if now == nil {
		now = time.Now
	}
	b := &Bans{path: path, now: now, list: map[string]strikes{}}
	if path == "" {
		return b, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("transfer: bans: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBanFile+1))
	if err == nil && len(text) > maxBanFile {
		err = errors.New("the file is too large")
	}
	if err == nil {
		b.list, err = parseBans(text)
	}
	if err != nil {
		return nil, fmt.Errorf("transfer: bans %s: %w; remove the file to forget who sent bad blocks", path, err)
	}
	return b, nil
}

// parseBans reads the bytes of a file of bans.
func parseBans(text []byte) (map[string]strikes, error) {
	list := map[string]strikes{}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if list == nil || len(list) > maxBans {
		return nil, fmt.Errorf("%d entries, limit %d", len(list), maxBans)
	}
	for name, s := range list {
		if s.Count < 1 || s.Last.IsZero() {
			return nil, fmt.Errorf("entry %q has %d bad blocks at %s", name, s.Count, s.Last)
		}
	}
	return list, nil
}

// Banned tells whether a source is banned, and until when.
func (b *Bans) Banned(source string) (until time.Time, banned bool) {
	if b == nil {
		return time.Time{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.list[source]
	until = s.Last.Add(banTime)
	return until, s.Count >= banAfter && b.now().Before(until)
}

// Bad counts a bad block of a source and tells whether it is banned now. The error is about remembering it over a restart.
func (b *Bans) Bad(source string) (banned bool, err error) {
	if b == nil {
		return false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	s := b.list[source]
	if now.Sub(s.Last) >= banTime {
		s.Count = 0
	}
	s.Count, s.Last = s.Count+1, now
	b.list[source] = s
	b.trim(now)
	return s.Count >= banAfter, b.save()
}

// trim forgets what is over, and the oldest of what is too much. It is called with mu held.
func (b *Bans) trim(now time.Time) {
	var names []string
	for name, s := range b.list {
		if now.Sub(s.Last) >= banTime {
			delete(b.list, name)
			continue
		}
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int { return b.list[x].Last.Compare(b.list[y].Last) })
	for i := 0; len(b.list) > maxBans; i++ {
		delete(b.list, names[i])
	}
}

// save writes the file: a new one beside it, synced and renamed. It is called with mu held.
func (b *Bans) save() error {
	if b.path == "" {
		return nil
	}
	text, err := json.MarshalIndent(b.list, "", " ")
	if err != nil {
		return fmt.Errorf("transfer: bans: %w", err)
	}
	dir := filepath.Dir(b.path)
	f, err := os.CreateTemp(dir, ".bans-*")
	if err != nil {
		return fmt.Errorf("transfer: bans: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), b.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("transfer: bans: %w", err), os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("transfer: bans: %w", err)
	}
	return nil
}
