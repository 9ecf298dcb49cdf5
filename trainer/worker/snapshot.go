package worker

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/capacloud/capanode/trainer/round"
)

// ErrSnapshot reports a snapshot file that is damaged or of another run.
var ErrSnapshot = errors.New("invalid snapshot")

// keepSnapshots is how many snapshots stay: the newest, and the one before in case the newest does not read back.
const keepSnapshots = 2

// snapshot is what a worker needs to go on after kill -9: the replicated state and what is its own.
type snapshot struct {
	state    *round.State
	steps    uint64    // optimiser steps of the inner AdamW
	seq      uint64    // of the last heartbeat, and room for those until the next snapshot
	m, v     []float32 // its moments
	residual []float32 // error feedback

	components bool      // the residual is of gradients' cosine components, not of weights
	fast       []float32 // fast weights where they are not the state's: when the weights travel in fragments
}

var snapshotMagic = [8]byte{'C', 'A', 'P', 'S', 'N', 'A', 'P', '4'}

func snapshotName(rounds uint64) string { return fmt.Sprintf("round-%012d.snap", rounds) }

// save writes the snapshot into the folder so that a crash at any instant leaves either the old files or the new one, and
// removes older ones.
func (s snapshot) save(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("worker: save snapshot of round %d in %s: %w", s.state.Round, dir, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "new-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once the file is renamed
	if err := errors.Join(s.write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, snapshotName(s.state.Round))); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return err
	}
	files, err := listSnapshots(dir)
	if err != nil {
		return err
	}
	// A heal can go back in rounds: what is newer than this state belongs to a fork that lost.
	for _, name := range files {
		if name > snapshotName(s.state.Round) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
	}
	files = slices.DeleteFunc(files, func(name string) bool { return name > snapshotName(s.state.Round) })
	for _, name := range files[:max(0, len(files)-keepSnapshots)] {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	return err
}

// write writes magic, size of the state, state, counters, moments and residual, and the SHA-256 of all that.
func (s snapshot) write(w io.Writer) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	sum := sha256.New()
	out := io.MultiWriter(buf, sum)
	if _, err := out.Write(binary.LittleEndian.AppendUint64(snapshotMagic[:len(snapshotMagic):len(snapshotMagic)], uint64(s.state.Size()))); err != nil {
		return err
	}
	if _, err := s.state.WriteTo(out); err != nil {
		return err
	}
	arrays := [][]float32{s.m, s.v, s.residual}
	if s.fast != nil {
		arrays = append(arrays, s.fast)
	}
	kind := uint64(0)
	if s.components {
		kind = 1
	}
	if err := binary.Write(out, binary.LittleEndian, []uint64{s.steps, s.seq, kind, uint64(len(arrays))}); err != nil {
		return err
	}
	for _, array := range arrays {
		if _, err := round.WriteFloats(out, array); err != nil {
			return err
		}
	}
	if _, err := buf.Write(sum.Sum(nil)); err != nil {
		return err
	}
	return buf.Flush()
}

// listSnapshots lists the snapshot files, oldest first, and removes what a crash left half written.
func listSnapshots(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch {
		case strings.HasSuffix(e.Name(), ".snap"):
			names = append(names, e.Name())
		case strings.HasSuffix(e.Name(), ".tmp"):
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return names, nil
}

// loadSnapshot reads the newest snapshot of the folder that is whole and fits the run; nil when there is none. The error
// lists the files that had to be passed over.
func loadSnapshot(dir string, shape round.Shape) (*snapshot, error) {
	names, err := listSnapshots(dir)
	if err != nil {
		return nil, fmt.Errorf("worker: load snapshot: %w", err)
	}
	var damaged error
	for _, name := range slices.Backward(names) {
		s, err := readSnapshot(filepath.Join(dir, name), shape)
		if err == nil {
			return s, damaged
		}
		damaged = errors.Join(damaged, err)
	}
	return nil, damaged
}

func readSnapshot(path string, shape round.Shape) (*snapshot, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("worker: load snapshot: %w", err)
	}
	if most := maxSnapshot(shape); info.Size() > most {
		return nil, fmt.Errorf("worker: load snapshot %s: %d bytes, limit %d: %w", path, info.Size(), most, ErrSnapshot)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("worker: load snapshot: %w", err)
	}
	return decodeSnapshot(path, b, shape)
}

// tail is the bytes between the state and the arrays: four counters.
const tail = 4 * 8

// maxSnapshot returns the size of the largest snapshot: one with fast weights and a full view.
func maxSnapshot(shape round.Shape) int64 {
	return int64(len(snapshotMagic)) + 8 + shape.MaxSize() + tail + 4*4*int64(shape.Params) + sha256.Size
}

// decodeSnapshot reads a snapshot's bytes.
func decodeSnapshot(path string, b []byte, shape round.Shape) (*snapshot, error) {
	n := shape.Params
	before := len(snapshotMagic) + 8
	if len(b) < before+tail+sha256.Size {
		return nil, fmt.Errorf("worker: load snapshot %s: %d bytes: %w", path, len(b), ErrSnapshot)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) || !bytes.HasPrefix(body, snapshotMagic[:]) {
		return nil, fmt.Errorf("worker: load snapshot %s: checksum or magic is wrong: %w", path, ErrSnapshot)
	}
	stateSize := binary.LittleEndian.Uint64(body[len(snapshotMagic):])
	body = body[before:]
	if left := uint64(len(body)) - tail; stateSize > left || (left-stateSize)%uint64(4*n) != 0 || (left-stateSize)/uint64(4*n) > 4 {
		return nil, fmt.Errorf("worker: load snapshot %s: state of %d bytes in %d: %w", path, stateSize, len(b), ErrSnapshot)
	}
	state, err := round.DecodeState(body[:stateSize], shape)
	if err != nil {
		return nil, fmt.Errorf("worker: load snapshot %s: %w: %w", path, ErrSnapshot, err)
	}
	body = body[stateSize:]
	s := &snapshot{state: state, steps: binary.LittleEndian.Uint64(body), seq: binary.LittleEndian.Uint64(body[8:])}
	kind, count := binary.LittleEndian.Uint64(body[16:]), binary.LittleEndian.Uint64(body[24:])
	if s.components = kind == 1; kind > 1 {
		return nil, fmt.Errorf("worker: load snapshot %s: residual of kind %d, want 0 or 1: %w", path, kind, ErrSnapshot)
	}
	body = body[tail:]
	arrays := []*[]float32{&s.m, &s.v, &s.residual, &s.fast}[:len(body)/(4*n)]
	if uint64(len(arrays)) != count || count < 3 {
		return nil, fmt.Errorf("worker: load snapshot %s: %d arrays, it says %d: %w", path, len(arrays), count, ErrSnapshot)
	}
	for _, array := range arrays {
		*array = make([]float32, n)
		if !round.ReadFloats(*array, body) {
			return nil, fmt.Errorf("worker: load snapshot %s: not finite: %w", path, ErrSnapshot)
		}
		body = body[4*n:]
	}
	return s, nil
}
