package offer

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/market/internal/golden"
	"github.com/capacloud/capanode/p2p/peertest"
	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

var noon = time.UnixMilli(1_800_000_000_000)

func sample() Beacon {
	return Beacon{
		Version: 1, Seq: 7, IssuedMs: noon.UnixMilli(), TTL: 300, Class: "RTX 4090", VRAMMiB: 24564, PerfMFLOPS: 80_000_000,
		Price: 400_000, Floor: 200_000, Rate: 12, Free: 1, Total: 2, MaxLease: 86400, Region: "eu",
	}
}

func seal(t testing.TB, k crypto.PrivKey, b Beacon) Offer {
	env, err := Seal(k, b)
	if err != nil {
		t.Fatal(err)
	}
	o, err := Open(env)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestBeaconGoldenAndSize(t *testing.T) {
	o := seal(t, peertest.Key(t, "provider"), sample())
	golden.Check(t, "beacon", o.Envelope)
	if len(o.Envelope) > 320 {
		t.Errorf("a usual beacon takes %d bytes, more than 320", len(o.Envelope))
	}
	if o.Beacon != sample() {
		t.Errorf("round trip changed the beacon: %+v", o.Beacon)
	}
	big := sample()
	big.Seq, big.Class, big.Region = 1<<62, strings.Repeat("x", MaxClass), strings.Repeat("y", MaxRegion)
	big.PerfMFLOPS, big.Price, big.Floor, big.Rate = MaxPerfMFLOPS, MaxPrice, MaxPrice, MaxPrice
	big.VRAMMiB, big.Free, big.Total, big.MaxLease, big.TTL, big.Claimed = MaxVRAMMiB, MaxSlots, MaxSlots, MaxLeaseSeconds, MaxTTL, true
	if n := len(seal(t, peertest.Key(t, "provider"), big).Envelope); n > MaxEnvelope {
		t.Errorf("the largest valid beacon takes %d bytes, more than %d", n, MaxEnvelope)
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Beacon)
		want   error
	}{
		"ok":            {func(b *Beacon) {}, nil},
		"withdrawn":     {func(b *Beacon) { b.Free = 0 }, nil},
		"free":          {func(b *Beacon) { b.Price, b.Floor, b.Rate = 0, 0, 0 }, nil},
		"ttl long":      {func(b *Beacon) { b.TTL = 901 }, ErrTTL},
		"ttl short":     {func(b *Beacon) { b.TTL = 9 }, ErrTTL},
		"version":       {func(b *Beacon) { b.Version = 2 }, ErrRange},
		"seq":           {func(b *Beacon) { b.Seq = 0 }, ErrRange},
		"slots":         {func(b *Beacon) { b.Free = 3 }, ErrRange},
		"no slots":      {func(b *Beacon) { b.Total = 0; b.Free = 0 }, ErrRange},
		"many slots":    {func(b *Beacon) { b.Total = MaxSlots + 1 }, ErrRange},
		"vram":          {func(b *Beacon) { b.VRAMMiB = MaxVRAMMiB + 1 }, ErrRange},
		"perf":          {func(b *Beacon) { b.PerfMFLOPS = MaxPerfMFLOPS + 1 }, ErrRange},
		"price":         {func(b *Beacon) { b.Price = MaxPrice + 1 }, ErrRange},
		"floor":         {func(b *Beacon) { b.Floor = b.Price + 1 }, ErrRange},
		"rate":          {func(b *Beacon) { b.Rate = MaxPrice + 1 }, ErrRange},
		"lease":         {func(b *Beacon) { b.MaxLease = 0 }, ErrRange},
		"class empty":   {func(b *Beacon) { b.Class = "" }, ErrRange},
		"class long":    {func(b *Beacon) { b.Class = strings.Repeat("x", 33) }, ErrRange},
		"class control": {func(b *Beacon) { b.Class = "RTX\x1b[31m" }, ErrRange},
		"region":        {func(b *Beacon) { b.Region = "a\nb" }, ErrRange},
		"issued":        {func(b *Beacon) { b.IssuedMs = -1 }, ErrRange},
	} {
		b := sample()
		c.change(&b)
		if err := b.Validate(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	k := peertest.Key(t, "provider")
	known := seal(t, k, sample())
	with := func(change func(*Beacon)) Offer {
		b := sample()
		change(&b)
		return seal(t, k, b)
	}
	for name, c := range map[string]struct {
		known *Offer
		next  Offer
		now   time.Time
		want  error
	}{
		"first":               {nil, known, noon, nil},
		"newer":               {&known, with(func(b *Beacon) { b.Seq = 8 }), noon, nil},
		"older":               {&known, with(func(b *Beacon) { b.Seq = 6 }), noon, ErrStale},
		"same":                {&known, known, noon, ErrDuplicate},
		"almost future":       {nil, known, noon.Add(-Skew), nil},
		"future":              {nil, known, noon.Add(-Skew - time.Millisecond), ErrFuture},
		"at the end":          {nil, known, noon.Add(300*time.Second + Skew), nil},
		"expired":             {nil, known, noon.Add(300*time.Second + Skew + time.Millisecond), ErrExpired},
		"expired but newer":   {&known, with(func(b *Beacon) { b.Seq, b.IssuedMs = 8, b.IssuedMs-400_000 }), noon, ErrExpired},
		"clock far behind us": {nil, known, noon.Add(time.Hour), ErrExpired},
	} {
		if err := Check(c.known, c.next, c.now); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestEquivocationIsSelfContained(t *testing.T) {
	k := peertest.Key(t, "provider")
	a := seal(t, k, sample())
	b := sample()
	b.Price = 399_999
	var proof *Equivocation
	if err := Check(&a, seal(t, k, b), noon); !errors.As(err, &proof) {
		t.Fatalf("got %v", err)
	}
	if err := proof.Verify(); err != nil {
		t.Errorf("true proof: %v", err)
	}
	same := Equivocation{a.Peer, 7, a.Envelope, a.Envelope}
	if err := same.Verify(); !errors.Is(err, ErrMalformed) {
		t.Errorf("two equal beacons: %v", err)
	}
	other := Equivocation{a.Peer, 7, a.Envelope, seal(t, peertest.Key(t, "another"), b).Envelope}
	if err := other.Verify(); !errors.Is(err, ErrMalformed) {
		t.Errorf("two signers: %v", err)
	}
	broken := Equivocation{a.Peer, 7, a.Envelope, []byte("garbage")}
	if err := broken.Verify(); !errors.Is(err, ErrMalformed) {
		t.Errorf("garbage: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	k := peertest.Key(t, "provider")
	foreign, err := signed.Seal(k, "capanode-other/1", must(wire.Marshal(sample())))
	if err != nil {
		t.Fatal(err)
	}
	huge := sample()
	huge.TTL = 5000
	bad, err := signed.Seal(k, Domain, must(wire.Marshal(huge)))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(seal(t, k, sample()).Envelope)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		env  []byte
		want error
	}{
		"oversize":      {make([]byte, MaxEnvelope+1), ErrOversize},
		"empty":         {nil, ErrMalformed},
		"other domain":  {foreign, ErrMalformed},
		"bad field":     {bad, ErrTTL},
		"bad signature": {flipped, ErrMalformed},
	} {
		if _, err := Open(c.env); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestBucketKeepsTheRate checks against a plain count: in any window, at most burst + window/every events pass.
func TestBucketKeepsTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Bucket
		var passed []time.Time
		now := noon
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.IntRange(0, 15_000).Draw(t, "gap")) * time.Millisecond)
			wait := b.Wait(now, RateEvery, RateBurst)
			next, ok := b.Take(now, RateEvery, RateBurst)
			if ok != (wait <= 0) {
				t.Fatalf("Wait says %v, Take says %v", wait, ok)
			}
			if b = next; ok {
				passed = append(passed, now)
			}
		}
		for i := range passed {
			for j := i; j < len(passed); j++ {
				if most := RateBurst + int(passed[j].Sub(passed[i])/RateEvery); j-i+1 > most {
					t.Fatalf("%d events in %v", j-i+1, passed[j].Sub(passed[i]))
				}
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	o := seal(f, peertest.Key(f, "provider"), sample())
	f.Add(o.Envelope)
	f.Add(o.Envelope[:len(o.Envelope)/2])
	f.Add([]byte{})
	k := peertest.Key(f, "fuzz")
	f.Fuzz(func(t *testing.T, data []byte) {
		if o, err := Open(data); err == nil && o.Beacon.Validate() != nil {
			t.Errorf("opened an invalid beacon %+v", o.Beacon)
		}
		// The same bytes under a valid signature reach the decoder.
		env, err := signed.Seal(k, Domain, data)
		if err != nil {
			return
		}
		if o, err := Open(env); err == nil && (o.Beacon.Validate() != nil || len(env) > MaxEnvelope) {
			t.Errorf("opened an invalid beacon %+v", o.Beacon)
		}
	})
}
