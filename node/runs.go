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
	Rounds     uint64    `json:"rounds"` // expected in all
	Step       uint64    `json:"step"`   // nominal optimiser steps committed
	Steps      uint64    `json:"steps"`  // of the run
	Tokens     uint64    `json:"tokens"`
	Loss       float64   `json:"loss"`
	Bytes      uint64    `json:"bytes,omitempty"`      // of updates that the members fetched
	RingBytes  uint64    `json:"ring_bytes,omitempty"` // that data-parallel training would have moved in the same steps
	Spent      float64   `json:"spent"`                // credits
	Checkpoint string    `json:"checkpoint,omitempty"`
	Dataset    string    `json:"dataset,omitempty"`
	Init       string    `json:"init,omitempty"` // CID of the model that it started from
	Out        string    `json:"out,omitempty"`
	Attempt    uint64    `json:"attempt"`

	// Of a provider: the newest lease of the run, and the own work in it that was committed.
	Lease     string `json:"lease,omitempty"`
	OwnTokens uint64 `json:"own_tokens,omitempty"`
	OwnRounds uint64 `json:"own_rounds,omitempty"`
}

// encode is the text of run.json.
func (r Run) encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	return append(b, '\n'), err
}

// decodeRun reads the text of run.json.
func decodeRun(b []byte) (run Run, err error) { return run, json.Unmarshal(b, &run) }

// runs keeps the run folders of a home: runs/<run CID>/run.json and metrics.jsonl.
type runs struct{ dir string }

func (r runs) path(id, name string) string { return filepath.Join(r.dir, id, name) }

// Folders that hold a copy of a model for a moment: one that is read, and one that is published.
const (
	readingDir  = ".model-"
	publishDirs = "checkpoint-"
)

// sweep removes the copies of models that a process that was killed left behind. Nobody else uses the home now.
func (r runs) sweep() error {
	err := removeBelow(r.dir, readingDir)
	entries, rerr := os.ReadDir(r.dir)
	err = errors.Join(err, rerr)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeBelow(filepath.Join(r.dir, e.Name()), publishDirs))
		}
	}
	if err != nil {
		return fmt.Errorf("runs: %w", err)
	}
	return nil
}

// removeBelow removes what has a name with the prefix in a folder.
func removeBelow(dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// save writes a run's record durably.
func (r runs) save(run Run) error {
	run.Updated = time.Now().UTC().Truncate(time.Millisecond)
	b, err := run.encode()
	if err != nil {
		return fmt.Errorf("run %s: %w", run.ID, err)
	}
	if err := os.MkdirAll(filepath.Join(r.dir, run.ID), 0o700); err != nil {
		return fmt.Errorf("run %s: %w", run.ID, err)
	}
	if err := writeFile(r.path(run.ID, "run.json"), b, 0o600); err != nil {
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
		if !e.IsDir() {
			continue
		}
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
		run, err = decodeRun(b)
	}
	if err != nil {
		return Run{}, fmt.Errorf("run %s: its record %s cannot be read: %w; restore it, or move the folder away: store and ledger do without it", id, r.path(id, "run.json"), err)
	}
	return run, nil
}

// find returns the run whose ID or name is given, or whose ID starts with it.
func (r runs) find(what string) (Run, error) {
	all, err := r.list()
	if err != nil {
		return Run{}, err
	}
	for _, run := range all {
		if run.ID == what {
			return run, nil
		}
	}
	var begin []Run
	for _, run := range all {
		if run.Name == what {
			return run, nil // the newest of that name
		}
		if len(what) >= 6 && strings.HasPrefix(run.ID, what) {
			begin = append(begin, run)
		}
	}
	switch len(begin) {
	case 0:
		return Run{}, fmt.Errorf("run %q: %w; `capanode job list` shows the runs of this home", what, ErrNotFound)
	case 1:
		return begin[0], nil
	}
	return Run{}, fmt.Errorf("%w: %d runs begin with %q, such as %s and %s: write more of the ID", ErrUsage, len(begin), what, begin[0].ID, begin[1].ID)
}

// metrics appends one JSON line to the run's metrics.jsonl, the truth that reports derive from. Readers skip a line that a
// crash tore; the next one starts on a line of its own.
func (r runs) metrics(id string, event any) error {
	b, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("run %s: metrics: %w", id, err)
	}
	f, err := os.OpenFile(r.path(id, "metrics.jsonl"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("run %s: metrics: %w", id, err)
	}
	b = append(b, '\n')
	last := []byte{'\n'}
	if info, serr := f.Stat(); serr == nil && info.Size() > 0 {
		_, err = f.ReadAt(last, info.Size()-1)
	}
	if last[0] != '\n' {
		b = append([]byte{'\n'}, b...)
	}
	if err == nil {
		_, err = f.Write(b)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("run %s: metrics: %w", id, err)
	}
	return nil
}
