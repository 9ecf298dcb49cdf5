package round

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

var update = flag.Bool("update", false, "rewrite golden files")

// testKey returns the same ed25519 key for the same name.
func testKey(t testing.TB, name string) (crypto.PrivKey, peer.ID) {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

func testRun(t testing.TB) cid.Cid { t.Helper(); return wire.RecordCID([]byte("job")) }

func testHash(s string) Hash { return Hash(sha256.Sum256([]byte(s))) }

// samples returns one valid record of each kind.
func samples(t testing.TB) map[string]Record {
	run := wire.Link{Cid: testRun(t)}
	_, a := testKey(t, "a")
	_, b := testKey(t, "b")
	members := []peer.ID{a, b}
	if b < a {
		members = []peer.ID{b, a}
	}
	set := union([]Hash{testHash("one")}, []Hash{testHash("two")})
	return map[string]Record{
		"header": Header{
			Version: Version, Run: run, Round: 7, Parent: testHash("parent"), View: HashView(members), Codec: "int8/1",
			Blob: wire.Link{Cid: wire.RecordCID([]byte("blob"))}, Size: 4711, Ranges: []Range{{0, 160, 240}, {3, 80, 160}},
			Seed: 42, Steps: 20, Tokens: 10240, Loss: 2_345_678, Before: testHash("before"), After: testHash("after"),
			Precision: "native/1", Budget: 9500, Least: 12, Lag: 3, Fragments: 4,
			Merge: &Merge{Base: testHash("base"), Tokens: 99, State: testHash("lost")},
		},
		"seen": Seen{Version: Version, Run: run, Round: 7, Parent: testHash("parent"), Headers: set, Hellos: set[:1]},
		"commit": Commit{
			Version: Version, Run: run, Round: 7, Parent: testHash("parent"), Set: set, Next: testHash("next"), Total: 163840, Steps: 160,
			Tokens: 20480, Loss: -1, Up: 4711, Down: 9422, Compute: 1500, Comm: 80,
		},
		"heartbeat": Heartbeat{
			Version: Version, Run: run, Seq: 99, Round: 7, State: testHash("parent"), Tokens: 143360, Steps: 140, Phase: PhaseTraining, Elapsed: 1250,
			Speed: 3000,
		},
		"roster": Roster{Version: Version, Run: run, Epoch: 3, Members: members},
	}
}

func (m Message) record() Record {
	switch m.Kind {
	case KindHeader:
		return *m.Header
	case KindSeen:
		return *m.Seen
	case KindCommit:
		return *m.Commit
	case KindHeartbeat:
		return *m.Heartbeat
	default:
		return *m.Roster
	}
}

func TestMessagesGolden(t *testing.T) {
	key, id := testKey(t, "a")
	for name, rec := range samples(t) {
		raw, err := Seal(key, rec)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		path := filepath.Join("testdata", "messages", name+".hex")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(hex.EncodeToString(raw)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(raw); got != strings.TrimSpace(string(text)) {
			t.Errorf("%s: bytes changed: %s", name, got)
		}
		m, err := Open(testRun(t), raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if m.From != id || !reflect.DeepEqual(m.record(), rec) {
			t.Errorf("%s: got %+v of %s, want %+v of %s", name, m.record(), m.From, rec, id)
		}
		if again, err := Read(raw); err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%s: read %+v, %v, opened %+v", name, again, err, m)
		}
	}
	if _, err := Read(nil); err == nil {
		t.Error("read nothing")
	}
}

func TestOpenRefuses(t *testing.T) {
	key, _ := testKey(t, "a")
	run := wire.Link{Cid: testRun(t)}
	beat := samples(t)["heartbeat"].(Heartbeat)
	good, err := Seal(key, beat)
	if err != nil {
		t.Fatal(err)
	}
	seal := func(kind Kind, v any) []byte {
		data, err := wire.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		env, err := signed.Seal(key, kinds[kind].domain, data)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{byte(kind), 0, 0, 0, 0}, env...)
	}
	header := samples(t)["header"].(Header)
	with := func(f func(*Header)) Header { h := header; f(&h); return h }
	var many []Range
	for i := range MaxRanges + 1 {
		many = append(many, Range{uint32(i), 0, 1})
	}
	for name, raw := range map[string][]byte{
		"empty":          {},
		"unknown kind":   append([]byte{77}, good[1:]...),
		"other kind":     append([]byte{byte(KindSeen)}, good[1:]...),
		"cut":            good[:len(good)-5],
		"flipped":        append(append([]byte{}, good[:60]...), append([]byte{good[60] ^ 1}, good[61:]...)...),
		"too large":      make([]byte, MaxMessage+1),
		"version":        seal(KindHeartbeat, Heartbeat{Version: Version + 1, Run: run}),
		"phase":          seal(KindHeartbeat, Heartbeat{Version: Version, Run: run, Phase: 99}),
		"no run":         seal(KindHeartbeat, Heartbeat{Version: Version}),
		"other run":      seal(KindHeartbeat, Heartbeat{Version: Version, Run: wire.Link{Cid: wire.RecordCID([]byte("x"))}}),
		"round":          seal(KindSeen, Seen{Version: Version, Run: run, Round: 1 << 40}),
		"unsorted seen":  seal(KindSeen, Seen{Version: Version, Run: run, Headers: []Hash{testHash("b"), testHash("b")}}),
		"empty commit":   seal(KindCommit, Commit{Version: Version, Run: run}),
		"empty roster":   seal(KindRoster, Roster{Version: Version, Run: run}),
		"short hash":     seal(KindSeen, map[string]any{"version": Version, "run": run, "parent": []byte{1, 2}}),
		"empty range":    seal(KindHeader, with(func(h *Header) { h.Ranges = []Range{{0, 5, 5}} })),
		"shard twice":    seal(KindHeader, with(func(h *Header) { h.Ranges = []Range{{1, 0, 5}, {1, 5, 6}} })),
		"many ranges":    seal(KindHeader, with(func(h *Header) { h.Ranges = many })),
		"no blob":        seal(KindHeader, with(func(h *Header) { h.Blob = wire.Link{} })),
		"huge loss":      seal(KindHeader, with(func(h *Header) { h.Loss = 1 << 62 })),
		"lag":            seal(KindHeader, with(func(h *Header) { h.Lag = h.Steps + 1 })),
		"fragments":      seal(KindHeader, with(func(h *Header) { h.Fragments = MaxFragments + 1 })),
		"no fragments":   seal(KindHeader, with(func(h *Header) { h.Fragments = 0 })),
		"no steps":       seal(KindHeader, with(func(h *Header) { h.Steps, h.Lag, h.Merge = 0, 0, nil })),
		"no tokens":      seal(KindHeader, with(func(h *Header) { h.Tokens = 0 })),
		"long precision": seal(KindHeader, with(func(h *Header) { h.Precision = strings.Repeat("x", 65) })),
	} {
		if m, err := Open(testRun(t), raw); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
	if _, err := Seal(key, with(func(h *Header) { h.Ranges, h.Merge = nil, nil })); !errors.Is(err, ErrRecord) {
		t.Errorf("sealing an invalid header: %v, want ErrRecord", err)
	}
}

func TestSalt(t *testing.T) {
	key, _ := testKey(t, "a")
	raw, err := Seal(key, samples(t)["header"])
	if err != nil {
		t.Fatal(err)
	}
	again := Salt(raw, 7)
	if bytes.Equal(again, raw) {
		t.Error("the bytes are the same")
	}
	a, err1 := Open(testRun(t), raw)
	b, err2 := Open(testRun(t), again)
	if err1 != nil || err2 != nil || a.Hash != b.Hash || !reflect.DeepEqual(a, b) {
		t.Errorf("the salt changed what is said: %+v, %+v, %v, %v", a, b, err1, err2)
	}
	Salt(nil, 1)
}

// A header copied under another signature must not pass for the original.
func TestHeaderHashBindsAuthor(t *testing.T) {
	_, a := testKey(t, "a")
	_, b := testKey(t, "b")
	data := []byte("the same record")
	if HashHeader(a, data) == HashHeader(b, data) {
		t.Error("two authors share a header hash")
	}
}

func FuzzOpen(f *testing.F) {
	key, _ := testKey(f, "a")
	for _, rec := range samples(f) {
		raw, err := Seal(key, rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	run := testRun(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Open(run, raw)
		if err == nil && m.record().check() != nil {
			t.Errorf("accepted a record that breaks its rules: %+v", m.record())
		}
		if again, unread := Read(raw); err == nil && (unread != nil || !reflect.DeepEqual(again, m)) {
			t.Errorf("opened %+v, read %+v: %v", m, again, unread)
		}
	})
}

// FuzzRecord fuzzes the records behind the signature, which random bytes never pass.
func FuzzRecord(f *testing.F) {
	for _, rec := range samples(f) {
		data, err := wire.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(rec.kind()), data)
	}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		m := Message{Kind: Kind(kind), From: "author"}
		if _, ok := kinds[m.Kind]; !ok {
			return
		}
		rec, _, err := m.decode(data)
		if err != nil || rec.check() != nil {
			return
		}
		again, err := wire.Marshal(m.record())
		if err != nil {
			t.Fatalf("%v of %+v", err, m.record())
		}
		n := Message{Kind: m.Kind, From: m.From}
		if _, _, err := n.decode(again); err != nil || !reflect.DeepEqual(n.record(), m.record()) {
			t.Errorf("second decoding differs: %+v, %+v, %v", n.record(), m.record(), err)
		}
	})
}

func ExampleTopic() {
	fmt.Println(Topic(wire.RecordCID([]byte("job"))))
	// Output: /capanode/run/bafyreic6rsmqeid27lvxcicdbrmfurc7ehussmqidvslzgpybzeslpfqai/4
}
