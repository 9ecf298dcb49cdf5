package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// RunState says how far a run of this home is.
type RunState string

// The states of a run.
const (
	RunPlanned  RunState = "planned"
	RunTraining RunState = "training"
	RunDone     RunState = "done"
	RunStopped  RunState = "stopped"
	RunFailed   RunState = "failed"
)

// Run is what a home remembers of one run that it requested or works for.
type Run struct {
	ID         string    `json:"run"`
	Name       string    `json:"name"`
	Role       string    `json:"role"` // requester or provider
	State      RunState  `json:"state"`
	Reason     string    `json:"reason,omitempty"` // why it stopped or failed
	Started    time.Time `json:"started"`
	Updated    time.Time `json:"updated"`
	Round      uint64    `json:"round"`
	Rounds     uint64    `json:"rounds"`
	Tokens     uint64    `json:"tokens"`
	Loss       float64   `json:"loss"`
	Spent      float64   `json:"spent"` // credits
	Checkpoint string    `json:"checkpoint,omitempty"`
	Dataset    string    `json:"dataset,omitempty"`
	Out        string    `json:"out,omitempty"`
	Attempt    uint64    `json:"attempt"`
}

// runs keeps the run folders of a home: runs/<run CID>/run.json and metrics.jsonl.
type runs struct{ dir string }

func (r runs) path(id, name string) string { return filepath.Join(r.dir, id, name) }

// save writes a run's record durably.
func (r runs) save(run Run) error {
	run.Updated = time.Now().UTC().Truncate(time.Millisecond)
	b, err := json.MarshalIndent(run, "", "  ")
	if err != nil {
		return fmt.Errorf("run %s: %w", run.ID, err)
	}
	if err := os.MkdirAll(filepath.Join(r.dir, run.ID), 0o700); err != nil {
		return fmt.Errorf("run %s: %w", run.ID, err)
	}
	if err := writeFile(r.path(run.ID, "run.json"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("run %s: %w", run.ID, err)
	}
	return nil
}

// list returns all runs, the newest first.
func (r runs) list() ([]Run, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("runs: %w", err)
	}
	var all []Run
	for _, e := range entries {
		run, err := r.load(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // a folder whose record was not yet written
		}
		if err != nil {
			return nil, err
		}
		all = append(all, run)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Started.After(all[j].Started) })
	return all, nil
}

func (r runs) load(id string) (Run, error) {
	b, err := os.ReadFile(r.path(id, "run.json"))
	if errors.Is(err, os.ErrNotExist) {
		return Run{}, fmt.Errorf("run %s: %w; `capanode job list` shows the runs of this home", id, ErrNotFound)
	}
	var run Run
	if err == nil {
		err = json.Unmarshal(b, &run)
	}
	if err != nil {
		return Run{}, fmt.Errorf("run %s: %w", id, err)
	}
	return run, nil
}

// find returns the run whose ID or name is given, or whose ID starts with it.
func (r runs) find(what string) (Run, error) {
	all, err := r.list()
	if err != nil {
		return Run{}, err
	}
	var hit []Run
	for _, run := range all {
		if run.ID == what {
			return run, nil
		}
		if run.Name == what || len(what) >= 6 && strings.HasPrefix(run.ID, what) {
			hit = append(hit, run)
		}
	}
	if len(hit) == 0 || what == "" {
		return Run{}, fmt.Errorf("run %q: %w; `capanode job list` shows the runs of this home", what, ErrNotFound)
	}
	return hit[0], nil // the newest of that name
}

// metrics appends one JSON line to the run's metrics.jsonl, the truth that reports derive from. The line is written
// whole; a torn last line after a crash is skipped by readers.
func (r runs) metrics(id string, event any) error {
	b, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("run %s: metrics: %w", id, err)
	}
	f, err := os.OpenFile(r.path(id, "metrics.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("run %s: metrics: %w", id, err)
	}
	_, err = f.Write(append(b, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
