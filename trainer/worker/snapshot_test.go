package worker

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/round"
)

func testSnapshot(rounds uint64) snapshot {
	s := round.NewState(wire.RecordCID([]byte("run")), 2, []float32{1, 2, 3})
	s.Round, s.Tokens = rounds, 10*rounds
	return snapshot{state: s, steps: 20 * rounds, seq: 7 * rounds, m: []float32{4, 5, 6}, v: []float32{7, 8, 9}, residual: []float32{0.5, 0, -1}, components: rounds%2 == 0}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func save(t *testing.T, dir string, rounds ...uint64) {
	t.Helper()
	for _, r := range rounds {
		if err := testSnapshot(r).save(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	if s, err := loadSnapshot(dir, testSnapshot(1).state.Shape()); s != nil || err != nil {
		t.Errorf("no folder: %v, %v", s, err)
	}
	save(t, dir, 1, 2, 3, 4)
	if got := names(t, dir); !reflect.DeepEqual(got, []string{snapshotName(3), snapshotName(4)}) {
		t.Errorf("files %v", got)
	}
	want := testSnapshot(4)
	got, err := loadSnapshot(dir, want.state.Shape())
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// A damaged newest file costs one round, not the run; a half-written one costs nothing.
func TestSnapshotDamage(t *testing.T) {
	shape := testSnapshot(1).state.Shape()
	for name, damage := range map[string]func(b []byte) []byte{
		"cut": func(b []byte) []byte { return b[:len(b)/2] }, "empty": func([]byte) []byte { return nil },
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
	} {
		dir := t.TempDir()
		save(t, dir, 1, 2)
		path := filepath.Join(dir, snapshotName(2))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, damage(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "new-1.tmp"), b[:10], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadSnapshot(dir, shape)
		if !errors.Is(err, ErrSnapshot) || s == nil || s.state.Round != 1 {
			t.Errorf("%s: got %v, %v, want the snapshot of round 1 and ErrSnapshot", name, s, err)
		}
		if got := names(t, dir); len(got) != 2 {
			t.Errorf("%s: files %v", name, got)
		}
	}
	other := shape
	other.Params++
	dir := t.TempDir()
	save(t, dir, 1)
	if s, err := loadSnapshot(dir, other); s != nil || !errors.Is(err, ErrSnapshot) {
		t.Errorf("other shape: %v, %v", s, err)
	}
}

// A heal can lead back to an earlier round; what was saved of the lost fork must not come back at the next start.
func TestSnapshotAfterHeal(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, 5, 6, 4)
	s, err := loadSnapshot(dir, testSnapshot(1).state.Shape())
	if err != nil || s.state.Round != 4 {
		t.Errorf("got %v, %v, want round 4", s, err)
	}
}

func FuzzSnapshot(f *testing.F) {
	s := testSnapshot(3)
	var b bytes.Buffer
	if err := s.write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	shape := s.state.Shape()
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decodeSnapshot("fuzz", raw, shape)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := s.write(&again); err != nil || !bytes.Equal(again.Bytes(), raw) {
			t.Error("accepted bytes that are not canonical")
		}
	})
}

func FuzzStateResponse(f *testing.F) {
	good, err := wire.Marshal(stateResponse{Version: round.Version, Round: 2, Blob: wire.Link{Cid: wire.RecordCID([]byte("state"))}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var res stateResponse
		var req stateRequest
		_ = wire.Unmarshal(raw, &req)
		if wire.Unmarshal(raw, &res) == nil {
			if _, err := wire.Marshal(res); err != nil {
				t.Errorf("%+v does not encode: %v", res, err)
			}
		}
	})
}

func TestSchedule(t *testing.T) {
	s := Schedule{Peak: 1, Floor: 0.1, Warmup: 4, Total: 104}
	for step, want := range map[uint64]float64{0: 0.25, 3: 1, 4: 1, 54: 0.55, 104: 0.1, 1000: 0.1} {
		if got := s.At(step); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("step %d: %g, want %g", step, got, want)
		}
	}
	if got := (Schedule{Peak: 2, Total: 1}).At(0); got != 2 {
		t.Errorf("no warm-up: %g", got)
	}
}
