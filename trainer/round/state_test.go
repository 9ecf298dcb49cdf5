package round

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
)

func testState(t testing.TB) *State {
	return &State{
		Run: testRun(t), Round: 5, Tokens: 1234, Steps: 100, Pulse: Pulse{Loss: -7, Budget: 9500, Least: 12}, History: testHash("history"), Apart: true, Mixed: 1,
		View: []Seat{{"peer a", false}, {"peer b", true}}, Cursors: []uint64{7, 0, 99},
		Weights: []float32{1, -2.5, 0, 1e-30}, Momentum: []float32{0, 0.125, -1, 3},
	}
}

func TestStateGolden(t *testing.T) {
	s := testState(t)
	path := filepath.Join("testdata", "state.hex")
	got := hex.EncodeToString(s.Bytes()) + "\n" + s.Hash().String() + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("bytes or hash changed: %s", got)
	}
	raw, err := hex.DecodeString(strings.SplitN(got, "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(raw)) != s.Size() {
		t.Errorf("%d bytes, Size says %d", len(raw), s.Size())
	}
	back, err := DecodeState(raw, s.Shape())
	if err != nil || !reflect.DeepEqual(back, s) {
		t.Errorf("decoded %+v, %v, want %+v", back, err, s)
	}
}

func TestDecodeStateRefuses(t *testing.T) {
	s := testState(t)
	raw, shape := s.Bytes(), s.Shape()
	other := shape
	other.Run = cid.NewCidV1(cid.Raw, shape.Run.Hash())
	nan := append([]byte{}, raw...)
	copy(nan[len(nan)-4:], []byte{0, 0, 0xc0, 0x7f})
	magic := append([]byte{}, raw...)
	magic[0]++
	for name, c := range map[string]struct {
		raw   []byte
		shape Shape
	}{
		"empty": {nil, shape}, "short": {raw[1:], shape}, "long": {append(raw[:len(raw):len(raw)], 0), shape},
		"other run": {raw, other}, "huge": {raw, Shape{shape.Run, 1, math.MaxInt32}}, "nan": {nan, shape}, "magic": {magic, shape},
	} {
		if _, err := DecodeState(c.raw, c.shape); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v, want ErrState", name, err)
		}
	}
}

// A proof ties weights to a state, and nothing else of the state can change under it.
func TestProof(t *testing.T) {
	s := testState(t)
	raw, n := s.Bytes(), len(s.Weights)
	parts := [][]byte{raw[:len(raw)-8*n], raw[len(raw)-8*n : len(raw)-4*n], raw[len(raw)-4*n:]}
	all := []byte("capanode-state/1\x00")
	for _, p := range parts {
		sum := sha256.Sum256(p)
		all = append(all, sum[:]...)
	}
	if want := Hash(sha256.Sum256(all)); s.Hash() != want || s.Proof().State(s.Weights) != want {
		t.Errorf("hash %s, by the proof %s, want %s", s.Hash(), s.Proof().State(s.Weights), want)
	}
	if back, err := ParseHash(s.Hash().String()); err != nil || back != s.Hash() {
		t.Errorf("parsed %s, %v", back, err)
	}
	for i := range raw[len(raw)-8*n:] {
		for _, bit := range []byte{1, 0x80} {
			changed := slices.Clone(raw)
			changed[len(raw)-8*n+i] ^= bit
			other, err := DecodeState(changed, s.Shape())
			if err == nil && (other.Hash() == s.Hash() || s.Proof().State(other.Weights) == s.Hash() && i < 4*n) {
				t.Fatalf("bit %x of byte %d changes nothing", bit, i)
			}
		}
	}
	for _, bad := range []string{"", "zz", s.Hash().String()[2:], s.Hash().String() + "00"} {
		if _, err := ParseHash(bad); !errors.Is(err, ErrRecord) {
			t.Errorf("parsed %q: %v", bad, err)
		}
	}
}

func TestAdvance(t *testing.T) {
	a, b := testState(t), testState(t)
	h := Header{Tokens: 100, Ranges: []Range{{0, 7, 20}, {2, 99, 105}}}
	x, y := []Signed{{h, "peer a", testHash("x")}}, []Signed{{h, "peer a", testHash("y")}}
	a.Advance(x, x, Turn{Steps: 20})
	b.Advance(y, y, Turn{Steps: 20})
	if a.Round != 6 || a.Steps != 120 || a.Tokens != 1334 || !reflect.DeepEqual(a.Cursors, []uint64{20, 0, 105}) {
		t.Errorf("advanced to %+v", a)
	}
	if a.Hash() == b.Hash() {
		t.Error("the history does not tell two sets apart")
	}
}

func FuzzDecodeState(f *testing.F) {
	s := testState(f)
	f.Add(s.Bytes())
	shape := s.Shape()
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := DecodeState(raw, shape)
		if err == nil && string(s.Bytes()) != string(raw) {
			t.Error("accepted bytes that are not canonical")
		}
	})
}
