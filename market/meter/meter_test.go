package meter

import (
	"bytes"
	"errors"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/internal/golden"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/p2p/peertest"
	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

var (
	lid   = lease.ID{1, 2, 3}
	terms = lease.Terms{Price: 400_000, WorkRate: 12, Budget: 5_000_000, TickSeconds: 15}
)

func receipt(t testing.TB, r Receipt) Signed {
	k := peertest.Key(t, "requester")
	s, err := SealReceipt(k, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAmountIsExact(t *testing.T) {
	for _, c := range []struct {
		counters Counters
		want     credit.Micro
	}{
		{Counters{}, 0},
		{Counters{SlotMs: 3_600_000}, 400_000},
		{Counters{SlotMs: 8}, 0}, // 0.888… rounds down
		{Counters{SlotMs: 9}, 1},
		{Counters{Units: 83_333}, 0},
		{Counters{Units: 83_334}, 1},
		{Counters{SlotMs: 15_000, Units: 1_000_000_000, Tokens: 1 << 60}, 1666 + 12_000},
	} {
		if got, err := Amount(terms, c.counters); err != nil || got != c.want {
			t.Errorf("%+v: %d, %v; want %d", c.counters, got, err, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		tt := lease.Terms{Price: credit.Micro(rapid.Uint64().Draw(t, "price")), WorkRate: credit.Micro(rapid.Uint64().Draw(t, "rate"))}
		c := Counters{SlotMs: rapid.Uint64().Draw(t, "ms"), Units: rapid.Uint64().Draw(t, "units")}
		part := func(rate, count uint64, per int64) *big.Int {
			p := new(big.Int).Mul(new(big.Int).SetUint64(rate), new(big.Int).SetUint64(count))
			return p.Div(p, big.NewInt(per))
		}
		want := part(uint64(tt.Price), c.SlotMs, 3_600_000)
		want.Add(want, part(uint64(tt.WorkRate), c.Units, 1_000_000))
		got, err := Amount(tt, c)
		if fits := want.Cmp(new(big.Int).SetUint64(uint64(credit.Max))) <= 0; fits != (err == nil) {
			t.Fatalf("%v: error %v", want, err)
		}
		if err == nil && want.Cmp(new(big.Int).SetUint64(uint64(got))) != 0 {
			t.Fatalf("got %d, want %v", got, want)
		}
	})
}

func TestGoldenRecords(t *testing.T) {
	k, id := peertest.Key(t, "provider"), peertest.ID(t, "provider")
	tick := Tick{Lease: lid, Nonce: 4, Counters: Counters{SlotMs: 60_000, Tokens: 4096, Units: 77, Rounds: 3}, State: []byte("state")}
	env, err := SealTick(k, tick)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "tick", env)
	back, err := OpenTick(env, id)
	if err != nil || back.Counters != tick.Counters || back.Nonce != 4 || !bytes.Equal(back.State, tick.State) {
		t.Errorf("%+v, %v", back, err)
	}
	first := receipt(t, Receipt{Lease: lid, Nonce: 3, Counters: Counters{SlotMs: 45_000}, Amount: 5000})
	second := receipt(t, Receipt{Lease: lid, Nonce: 4, Counters: tick.Counters, Amount: 6666, PrevNonce: 3, Prev: first.Hash[:], State: tick.State})
	golden.Check(t, "receipt", second.Envelope)
	payer := peertest.ID(t, "requester")
	if r, err := OpenReceipt(second.Envelope, payer); err != nil || r.Amount != 6666 || r.Hash != second.Hash {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := OpenReceipt(second.Envelope, id); !errors.Is(err, lease.ErrWrongPeer) {
		t.Errorf("receipt of another signer: %v", err)
	}
	if _, err := OpenTick(second.Envelope, payer); !errors.Is(err, ErrMalformed) {
		t.Errorf("a receipt passes for a tick: %v", err)
	}
}

func TestJudgement(t *testing.T) {
	newest := receipt(t, Receipt{Lease: lid, Nonce: 3, Counters: Counters{SlotMs: 45_000, Tokens: 100, Units: 50, Rounds: 2}, Amount: 5000})
	at := func(nonce uint64, ms, units uint64) Tick {
		return Tick{Lease: lid, Nonce: nonce, Counters: Counters{SlotMs: ms, Tokens: 100, Units: units, Rounds: 2}}
	}
	j := Judgement{Terms: terms, Newest: &newest, Elapsed: time.Minute, Verified: 1000, Left: credit.Max}
	for name, c := range map[string]struct {
		tick   Tick
		repeat bool
		want   error
	}{
		"next":                 {at(4, 60_000, 60), false, nil},
		"gap":                  {at(9, 60_000, 60), false, nil},
		"same again":           {at(3, 45_000, 50), true, nil},
		"same, more claimed":   {at(3, 45_000, 70), true, nil}, // its work was verified only in part
		"same, other time":     {at(3, 45_001, 50), false, ErrConflict},
		"same, fewer units":    {at(3, 45_000, 49), false, ErrConflict},
		"late":                 {at(2, 30_000, 20), true, nil},
		"time goes back":       {at(4, 44_999, 60), false, ErrRegress},
		"units go back":        {at(4, 60_000, 49), false, ErrRegress},
		"as fast as allowed":   {at(4, 76_200, 60), false, nil}, // 60 s × 1.02 + 15 s
		"faster than possible": {at(4, 76_201, 60), false, ErrTooFast},
	} {
		repeat, err := j.Precheck(c.tick)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || (repeat != nil) != c.repeat {
			t.Errorf("%s: repeat %v, %v; want %v, %v", name, repeat != nil, err, c.repeat, c.want)
		}
	}
	r, err := j.Receipt(at(4, 60_000, 60))
	if err != nil || r.Units != 60 || r.Amount != 6666 || r.PrevNonce != 3 || !bytes.Equal(r.Prev, newest.Hash[:]) {
		t.Errorf("%+v, %v", r, err)
	}
	j.Verified = 55
	if r, err := j.Receipt(at(4, 60_000, 60)); err != nil || r.Units != 55 {
		t.Errorf("unverified work was paid: %d units, %v", r.Units, err)
	}
	j.Verified = 0
	if r, err := j.Receipt(at(4, 60_000, 60)); err != nil || r.Units != 50 {
		t.Errorf("a receipt was taken back: %d units, %v", r.Units, err)
	}
	j.Left = 6666
	if _, err := j.Receipt(at(4, 60_000, 60)); err != nil {
		t.Errorf("exactly the budget: %v", err)
	}
	j.Left = 6665
	if _, err := j.Receipt(at(4, 60_000, 60)); !errors.Is(err, ErrBudget) {
		t.Errorf("over the run's budget: %v", err)
	}
	j.Left, j.Terms.Budget = credit.Max, 6665
	if _, err := j.Receipt(at(4, 60_000, 60)); !errors.Is(err, ErrBudget) {
		t.Errorf("over the lease's budget: %v", err)
	}
}

func TestCheckReceipt(t *testing.T) {
	last := Tick{Lease: lid, Nonce: 5, Counters: Counters{SlotMs: 60_000, Tokens: 10, Units: 100, Rounds: 1}}
	newest := receipt(t, Receipt{Lease: lid, Nonce: 3, Counters: Counters{SlotMs: 45_000}, Amount: 5000})
	next := func(change func(*Receipt)) Signed {
		r := Receipt{Lease: lid, Nonce: 5, Counters: last.Counters, Amount: 6666, PrevNonce: 3, Prev: newest.Hash[:]}
		change(&r)
		return receipt(t, r)
	}
	for name, c := range map[string]struct {
		r    Signed
		want error
	}{
		"good":             {next(func(r *Receipt) {}), nil},
		"newest again":     {newest, nil},
		"after a lost one": {next(func(r *Receipt) { r.PrevNonce, r.Prev = 4, make([]byte, 32) }), nil},
		"fewer units":      {next(func(r *Receipt) { r.Units = 3 }), nil},
		"other lease":      {next(func(r *Receipt) { r.Lease = lease.ID{9} }), ErrMalformed},
		"short-changed":    {next(func(r *Receipt) { r.Amount-- }), ErrTariff},
		"overpaid":         {next(func(r *Receipt) { r.Amount++ }), ErrTariff},
		"unasked time":     {next(func(r *Receipt) { r.SlotMs++ }), ErrTariff},
		"from the future":  {next(func(r *Receipt) { r.Nonce = 6 }), ErrTariff},
		"older":            {receipt(t, Receipt{Lease: lid, Nonce: 2, Counters: Counters{SlotMs: 30_000}, Amount: 3333}), ErrRegress},
		"takes back":       {next(func(r *Receipt) { r.SlotMs, r.Amount = 44_000, 4888 }), ErrRegress},
		"wrong hash":       {next(func(r *Receipt) { r.Prev = make([]byte, 32) }), ErrChain},
		"forked":           {next(func(r *Receipt) { r.PrevNonce, r.Prev = 2, make([]byte, 32) }), ErrChain},
		"two of a number":  {next(func(r *Receipt) { r.Nonce, r.PrevNonce, r.Prev = 3, 0, nil }), ErrChain},
	} {
		if err := CheckReceipt(terms, &newest, last, c.r); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestBothSidesAgree plays random ticks, with losses and repeats, and compares the two ends.
func TestBothSidesAgree(t *testing.T) {
	k, payer := peertest.Key(t, "requester"), peertest.ID(t, "requester")
	rapid.Check(t, func(t *rapid.T) {
		var mine, theirs *Signed // newest receipt at the requester and at the provider
		var tick Tick
		tick.Lease = lid
		elapsed := time.Duration(0)
		for range rapid.IntRange(1, 30).Draw(t, "ticks") {
			elapsed += time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond
			tick.Nonce++
			tick.SlotMs = uint64(elapsed.Milliseconds())
			tick.Units += rapid.Uint64Range(0, 1_000_000).Draw(t, "units")
			if rapid.IntRange(0, 4).Draw(t, "tick lost") == 0 {
				continue
			}
			for range rapid.IntRange(1, 2).Draw(t, "copies") {
				j := Judgement{Terms: terms, Newest: mine, Elapsed: elapsed, Verified: tick.Units, Left: credit.Max}
				answer, err := j.Precheck(tick)
				if err != nil {
					t.Fatal(err)
				}
				if answer == nil {
					r, err := j.Receipt(tick)
					if errors.Is(err, ErrBudget) {
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					s, err := SealReceipt(k, r)
					if err != nil {
						t.Fatal(err)
					}
					mine, answer = &s, &s
				}
				if rapid.IntRange(0, 4).Draw(t, "receipt lost") == 0 {
					continue
				}
				got, err := OpenReceipt(answer.Envelope, payer)
				if err != nil {
					t.Fatal(err)
				}
				if err := CheckReceipt(terms, theirs, tick, got); err != nil {
					t.Fatal(err)
				}
				if theirs = &got; theirs.Amount != mine.Amount || theirs.Hash != mine.Hash {
					t.Fatalf("requester says %d, provider %d", mine.Amount, theirs.Amount)
				}
			}
		}
	})
}

func TestReplyCarriesRefusals(t *testing.T) {
	for _, want := range append(refusals, lease.ErrUnknown, lease.ErrWrongPeer) {
		if err := Refuse(want).Err(); !errors.Is(err, want) {
			t.Errorf("%s came back as %v", want.Code, err)
		}
	}
	if err := (Reply{Receipt: []byte{1}}).Err(); err != nil {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	k, id := peertest.Key(f, "requester"), peertest.ID(f, "requester")
	tick, _ := wire.Marshal(Tick{Lease: lid, Nonce: 4, Counters: Counters{SlotMs: 1}})
	rec, _ := wire.Marshal(Receipt{Lease: lid, Nonce: 4, PrevNonce: 3, Prev: make([]byte, 32)})
	reply, _ := wire.Marshal(Reply{Code: "budget", Detail: "no", Receipt: []byte{1}})
	for _, seed := range [][]byte{tick, rec, reply, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		OpenTick(data, id)
		OpenReceipt(data, id)
		var reply Reply
		if wire.Unmarshal(data, &reply) == nil && reply.Code != "" && reply.Err() == nil {
			t.Errorf("code %q is no error", reply.Code)
		}
		if env, err := signed.Seal(k, TickDomain, data); err == nil {
			if tick, err := OpenTick(env, id); err == nil {
				j := Judgement{Terms: terms, Elapsed: time.Hour, Verified: tick.Units, Left: credit.Max}
				if _, err := j.Precheck(tick); err == nil {
					j.Receipt(tick)
				}
			}
		}
		if env, err := signed.Seal(k, ReceiptDomain, data); err == nil {
			if r, err := OpenReceipt(env, id); err == nil {
				CheckReceipt(terms, nil, Tick{Lease: r.Lease, Nonce: r.Nonce, Counters: r.Counters}, r)
			}
		}
	})
}
