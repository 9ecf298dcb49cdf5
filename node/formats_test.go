package node

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Values whose files docs/protocol/home.md refers to.
var (
	goldenRun = Run{
		ID: "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", Name: "tiny", Role: "provider", State: RunStopped, Reason: "requester done",
		Started: time.Date(2026, 11, 1, 9, 0, 0, 0, time.UTC), Updated: time.Date(2026, 11, 1, 9, 30, 0, 125e6, time.UTC),
		Round: 12, Rounds: 40, Tokens: 98304, Loss: 2.375, Spent: 0.004321,
		Checkpoint: "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", Dataset: "bafyreiaaa", Out: "/home/me/tiny-model", Attempt: 1,
		Lease: "7f2bfafa90d3", OwnTokens: 49152, OwnRounds: 11,
	}
	goldenWork = []workLine{
		{Round: 0, Total: 150, State: "0102", Work: map[string]uint64{"12D3KooWA": 100, "12D3KooWB": 50}},
		{Round: 1, Total: 150, State: "0304", Work: map[string]uint64{}},
		{Granted: map[string]uint64{"12D3KooWB": 25}},
	}
	goldenEndpoint = endpoint{Address: "127.0.0.1:40123", Token: "000102030405060708090a0b0c0d0e0f"}
	goldenSpeed    = measured{Device: "cpu", Numerics: "native/1", Threads: 2, MFLOPS: 41_000, At: time.Date(2026, 11, 1, 9, 0, 0, 0, time.UTC)}
)

// encodeWork is the text of a whole log.
func encodeWork(t testing.TB, lines []workLine) []byte {
	var all []byte
	for _, l := range lines {
		b, err := l.encode()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func decodeWork(b []byte) (lines []workLine, err error) {
	err = readWork(bytes.NewReader(b), func(l workLine) { lines = append(lines, l) })
	return lines, err
}

func mustJSON(t testing.TB, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustEncode(t testing.TB, r Run) []byte {
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The files of a home stay readable for programs of other versions: their bytes are fixed, and read back as what was written.
func TestHomeGolden(t *testing.T) {
	for name, got := range map[string][]byte{
		"run.json": mustEncode(t, goldenRun), "work.jsonl": encodeWork(t, goldenWork),
		"api.json": mustJSON(t, goldenEndpoint), "speed.json": mustJSON(t, goldenSpeed),
	} {
		path := filepath.Join("testdata", "home", name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
	if run, err := decodeRun(mustEncode(t, goldenRun)); err != nil || !reflect.DeepEqual(run, goldenRun) {
		t.Errorf("run came back as %+v, %v", run, err)
	}
	if lines, err := decodeWork(encodeWork(t, goldenWork)); err != nil || !reflect.DeepEqual(lines, goldenWork) {
		t.Errorf("work came back as %+v, %v", lines, err)
	}
}

// FuzzRun checks that a run record is an error or comes back as it was written.
func FuzzRun(f *testing.F) {
	f.Add(mustEncode(f, goldenRun))
	f.Add([]byte(`{"run":"a","state":"planned","started":"2026-11-01T09:00:00+02:00","loss":-0}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		run, err := decodeRun(raw)
		if err != nil {
			return
		}
		text := mustEncode(t, run)
		again, err := decodeRun(text)
		if err != nil || !bytes.Equal(mustEncode(t, again), text) {
			t.Fatalf("%s came back as %+v, %v", text, again, err)
		}
	})
}

// FuzzSmallFiles checks that what is taken from api.json and speed.json is what they say, and that no token goes to
// another machine.
func FuzzSmallFiles(f *testing.F) {
	f.Add(mustJSON(f, goldenEndpoint))
	f.Add(mustJSON(f, goldenSpeed))
	f.Add([]byte(`{"address":"192.0.2.1:80","token":"a"}`))
	f.Add([]byte(`{"address":"[::1%]]:1","token":"a"}`))
	f.Add([]byte(`{"address":"[::1%lo]:1","token":"a","mflops":1,"at":"9999-12-31T23:59:59Z"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if e, ok := decodeEndpoint(raw); ok {
			host, _, err := net.SplitHostPort(e.Address)
			if ip := net.ParseIP(strings.Split(host, "%")[0]); err != nil || !ip.IsLoopback() {
				t.Fatalf("%q is taken for an address on this machine", e.Address)
			}
		}
		if m, ok := decodeSpeed(raw); ok {
			again, ok := decodeSpeed(mustJSON(t, m))
			if !ok || again.MFLOPS != m.MFLOPS || !again.At.Equal(m.At) || m.At.After(time.Now()) && m.fresh(time.Now()) {
				t.Fatalf("%+v came back as %+v", m, again)
			}
		}
	})
}

// FuzzWorkLog checks that a log, whatever is in it, comes back as what was taken in, and that no claim on it is granted
// more than it asks for.
func FuzzWorkLog(f *testing.F) {
	f.Add(encodeWork(f, goldenWork))
	f.Add([]byte(`{"round":18446744073709551615,"total":1,"work":{"a":1}}`))
	f.Add([]byte("{\"round\":3,\"total\":9,\"work\":{\"a\":18446744073709551615}}\n{\"round\":3,\"total\":9,\"wo"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		lines, err := decodeWork(raw)
		if err != nil {
			return // a line is too long
		}
		again, err := decodeWork(encodeWork(t, lines))
		if err != nil || len(lines) > len(raw) || !slices.EqualFunc(lines, again, func(a, b workLine) bool { return reflect.DeepEqual(a, b) }) {
			t.Fatalf("%+v came back as %+v, %v", lines, again, err)
		}
		w := openLog(t, filepath.Join(t.TempDir(), "work.jsonl"))
		for _, l := range lines {
			w.put(l)
		}
		if uint64(len(w.rounds)) > w.top {
			t.Fatalf("%d rounds known of %d", len(w.rounds), w.top)
		}
		for name := range maps.Keys(w.seen) {
			if id, err := peer.Decode(name); err == nil {
				if got := mustVerify(t, w, id, math.MaxUint64); got < w.seen[name] {
					t.Fatalf("%s: verified %d of %d seen", name, got, w.seen[name])
				}
			}
		}
	})
}
