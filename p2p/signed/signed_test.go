package signed_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"

	"github.com/capacloud/capanode/p2p/signed"
)

var update = flag.Bool("update", false, "rewrite the golden vectors in testdata")

const domain signed.Domain = "capanode-test/1"

// keyOf returns the Ed25519 key of a seed of 32 equal bytes.
func keyOf(t testing.TB, seed byte) crypto.PrivKey {
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(bytes.Repeat([]byte{seed}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func seal(t testing.TB, key crypto.PrivKey, data []byte) []byte {
	raw, err := signed.Seal(key, domain, data)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestGoldenEnvelope(t *testing.T) {
	const path = "testdata/envelope.golden"
	key := keyOf(t, 7)
	raw := seal(t, key, []byte{0xa1, 0x61, 'n', 7})
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Appendf(nil, "signer %s\ndomain %s\ndata a1616e07\nenvelope %x\n", id, domain, raw)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the envelope changed.\ngot:\n%swant:\n%s", got, want)
	}
}

func TestOpenReturnsSignerAndData(t *testing.T) {
	for _, data := range [][]byte{{1}, bytes.Repeat([]byte{2}, 64<<10)} {
		id, got, err := signed.Open(domain, seal(t, keyOf(t, 1), data))
		if err != nil || !bytes.Equal(got, data) || !id.MatchesPrivateKey(keyOf(t, 1)) {
			t.Errorf("%s, %d bytes, %v", id, len(got), err)
		}
	}
}

func TestOtherDomain(t *testing.T) {
	raw := seal(t, keyOf(t, 1), []byte("x"))
	for _, other := range []signed.Domain{"capanode-test/2", "capanode-test/", "", "capanode-test/1 "} {
		if _, _, err := signed.Open(other, raw); !errors.Is(err, signed.ErrInvalid) {
			t.Errorf("domain %q: %v", other, err)
		}
	}
}

// TestEveryFlippedBit also shows that no byte of an envelope is free.
func TestEveryFlippedBit(t *testing.T) {
	raw := seal(t, keyOf(t, 1), []byte("a few bytes"))
	for i := range 8 * len(raw) {
		bad := bytes.Clone(raw)
		bad[i/8] ^= 1 << (i % 8)
		if id, data, err := signed.Open(domain, bad); !errors.Is(err, signed.ErrInvalid) {
			t.Fatalf("bit %d: %s, %q, %v", i, id, data, err)
		}
	}
	for n := range raw {
		if _, _, err := signed.Open(domain, raw[:n]); !errors.Is(err, signed.ErrInvalid) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// TestSecondEncoding appends what protobuf readers skip: an unknown field, and a field that repeats.
func TestSecondEncoding(t *testing.T) {
	raw := seal(t, keyOf(t, 1), []byte("x"))
	for _, tail := range [][]byte{{0x7a, 0}, {0x78, 1}, {0x1a, 1, 'x'}} {
		if _, _, err := signed.Open(domain, append(bytes.Clone(raw), tail...)); !errors.Is(err, signed.ErrInvalid) {
			t.Errorf("tail %x: %v", tail, err)
		}
	}
}

type foreign struct{ codec, data []byte }

func (f *foreign) Domain() string                 { return string(domain) }
func (f *foreign) Codec() []byte                  { return f.codec }
func (f *foreign) MarshalRecord() ([]byte, error) { return f.data, nil }
func (f *foreign) UnmarshalRecord([]byte) error   { return nil }

func TestForeignEnvelopes(t *testing.T) {
	other, _, err := crypto.GenerateKeyPair(crypto.Secp256k1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for why, c := range map[string]struct {
		key   crypto.PrivKey
		codec byte
	}{"payload type": {keyOf(t, 1), 0x70}, "key type": {other, 0x71}} {
		env, err := record.Seal(&foreign{[]byte{c.codec}, []byte("x")}, c.key)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := env.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := signed.Open(domain, raw); !errors.Is(err, signed.ErrInvalid) {
			t.Errorf("%s: %v", why, err)
		}
	}
	if _, err := signed.Seal(other, domain, []byte("x")); err == nil {
		t.Error("sealed with a key that opening refuses")
	}
}

func TestSize(t *testing.T) {
	if _, err := signed.Seal(keyOf(t, 1), domain, make([]byte, signed.MaxEnvelope)); !errors.Is(err, signed.ErrTooLarge) {
		t.Errorf("seal: %v", err)
	}
	if _, _, err := signed.Open(domain, make([]byte, signed.MaxEnvelope+1)); !errors.Is(err, signed.ErrInvalid) {
		t.Errorf("open: %v", err)
	}
	if _, err := signed.Seal(keyOf(t, 1), "", []byte("x")); err == nil {
		t.Error("sealed for no domain")
	}
}

// FuzzOpen checks that only what Seal makes is accepted.
func FuzzOpen(f *testing.F) {
	raw := seal(f, keyOf(f, 1), []byte("x"))
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add(append(bytes.Clone(raw), 0x7a, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		id, data, err := signed.Open(domain, in)
		if err != nil {
			if !errors.Is(err, signed.ErrInvalid) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		if !id.MatchesPrivateKey(keyOf(t, 1)) || !bytes.Equal(seal(t, keyOf(t, 1), data), in) {
			t.Fatalf("%x opens as %q of %s", in, data, id)
		}
		if who, what, err := signed.Peek(in); err != nil || who != id || !bytes.Equal(what, data) {
			t.Fatalf("%x opens as %q of %s and peeks as %q of %s: %v", in, data, id, what, who, err)
		}
	})
}
