package lease

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/market/internal/golden"
	"github.com/capacloud/capanode/p2p/peertest"
	"github.com/capacloud/capanode/p2p/wire"
)

var noon = time.UnixMilli(1_800_000_000_000)

func terms(t testing.TB) Terms {
	return Terms{
		Version: 1, Run: wire.Link{Cid: wire.RecordCID([]byte{0xa0})}, Requester: peertest.ID(t, "requester"), Provider: peertest.ID(t, "provider"),
		Nonce: 42, Slot: 1, Price: 400_000, WorkRate: 12, MaxSeconds: 3600, Budget: 5_000_000, TickSeconds: 15,
		StartByMs: noon.Add(time.Minute).UnixMilli(),
	}
}

func start(t testing.TB) Lease {
	l, err := New(Seller, terms(t), noon)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestGoldenRecords(t *testing.T) {
	tt := terms(t)
	encoded, err := wire.Marshal(tt)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "terms", encoded)
	lid, err := tt.ID()
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "id", lid[:])
	seal := func(name string, who crypto.PrivKey, record any) []byte {
		domain := map[string]string{"accept": string(AcceptDomain), "grant": string(GrantDomain), "ack": string(AckDomain), "close": string(CloseDomain)}[name]
		env, err := Seal(who, signedDomain(domain), record)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, env)
		return env
	}
	accept := seal("accept", peertest.Key(t, "requester"), AcceptRecord{tt, noon.UnixMilli()})
	grant := seal("grant", peertest.Key(t, "provider"), GrantRecord{lid, 1, 9, noon.UnixMilli(), noon.Add(time.Hour).UnixMilli()})
	ack := seal("ack", peertest.Key(t, "requester"), AckRecord{lid, 9, noon.UnixMilli()})
	end := seal("close", peertest.Key(t, "requester"), CloseRecord{lid, RequesterDone, 4, 3, noon.UnixMilli()})

	if a, err := OpenAccept(accept, tt.Requester); err != nil || a.Terms != tt {
		t.Errorf("accept: %+v, %v", a, err)
	}
	l := start(t)
	if g, err := OpenGrant(grant, l); err != nil || g.Epoch != 9 {
		t.Errorf("grant: %+v, %v", g, err)
	}
	l.Epoch = 9
	if _, err := OpenAck(ack, l); err != nil {
		t.Errorf("ack: %v", err)
	}
	if c, err := OpenClose(end, l); err != nil || c.Reason != RequesterDone {
		t.Errorf("close: %+v, %v", c, err)
	}
}

func TestSignedRecordsRefuseOthers(t *testing.T) {
	l := start(t)
	l.Epoch = 1
	good := GrantRecord{l.ID, 1, 1, 5, 6}
	for name, c := range map[string]struct {
		who    string
		record GrantRecord
		want   error
	}{
		"other signer": {"stranger", good, ErrWrongPeer},
		"other lease":  {"provider", GrantRecord{ID{1}, 1, 1, 5, 6}, ErrMalformed},
		"other slot":   {"provider", GrantRecord{l.ID, 2, 1, 5, 6}, ErrMalformed},
		"no epoch":     {"provider", GrantRecord{l.ID, 1, 0, 5, 6}, ErrMalformed},
		"no time":      {"provider", GrantRecord{l.ID, 1, 1, 6, 6}, ErrMalformed},
	} {
		env, err := Seal(peertest.Key(t, c.who), GrantDomain, c.record)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenGrant(env, l); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	env, err := Seal(peertest.Key(t, "stranger"), AcceptDomain, AcceptRecord{Terms: terms(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAccept(env, peertest.ID(t, "stranger")); !errors.Is(err, ErrWrongPeer) {
		t.Errorf("accept of somebody else's terms: %v", err)
	}
	env, err = Seal(peertest.Key(t, "requester"), CloseDomain, CloseRecord{Lease: l.ID, Reason: "because"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenClose(env, l); !errors.Is(err, ErrMalformed) {
		t.Errorf("close for an unknown reason: %v", err)
	}
}

func TestTermsValidate(t *testing.T) {
	for name, change := range map[string]func(*Terms){
		"version":  func(x *Terms) { x.Version = 2 },
		"run":      func(x *Terms) { x.Run = wire.Link{} },
		"self":     func(x *Terms) { x.Provider = x.Requester },
		"nobody":   func(x *Terms) { x.Requester = "" },
		"slot":     func(x *Terms) { x.Slot = 1 << 20 },
		"price":    func(x *Terms) { x.Price = 1 << 60 },
		"rate":     func(x *Terms) { x.WorkRate = 1 << 60 },
		"time":     func(x *Terms) { x.MaxSeconds = 0 },
		"long":     func(x *Terms) { x.MaxSeconds = 1 << 31 },
		"tick":     func(x *Terms) { x.TickSeconds = 301 },
		"budget":   func(x *Terms) { x.Budget = MaxBudget + 1 },
		"start by": func(x *Terms) { x.StartByMs = -1 },
	} {
		x := terms(t)
		change(&x)
		if err := x.Validate(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := terms(t).Validate(); err != nil {
		t.Error(err)
	}
}

// moves are the transitions by name, each to the phase it leads to.
var moves = map[Phase]func(Lease, time.Time) (Lease, error){
	Held:       func(l Lease, now time.Time) (Lease, error) { return l.Hold(now) },
	Accepted:   func(l Lease, now time.Time) (Lease, error) { return l.Accepted([]byte("a"), now) },
	Granted:    func(l Lease, now time.Time) (Lease, error) { return l.Granted([]byte("g"), 3, now) },
	Active:     func(l Lease, now time.Time) (Lease, error) { return l.Activate([]byte("k"), now) },
	Reclaiming: func(l Lease, now time.Time) (Lease, error) { return l.Reclaim(Thermal, time.Minute, now) },
	Draining:   func(l Lease, now time.Time) (Lease, error) { return l.Drain(RequesterDone, now) },
	Disputed:   func(l Lease, now time.Time) (Lease, error) { return l.Dispute("", now) },
	Closed:     func(l Lease, now time.Time) (Lease, error) { return l.Close(Shutdown, nil, now) },
}

// walk returns a lease in the phase, by the shortest way.
func walk(t *testing.T, to Phase) Lease {
	l, now := start(t), noon
	var err error
	for _, p := range []Phase{Held, Accepted, Granted, Active} {
		if l.Phase == to {
			return l
		}
		if l, err = moves[p](l, now); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if l.Phase != to && (to == Suspect || to == Detached) {
			due, _ := l.Due()
			l, _ = l.Expire(due)
		}
	}
	if l.Phase != to {
		if l, err = moves[to](l, now); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestTransitionGraph(t *testing.T) {
	all := []Phase{RFQ, Held, Accepted, Granted, Active, Suspect, Detached, Reclaiming, Draining, Disputed, Closed}
	allowed := map[Phase]string{
		RFQ: "held closed", Held: "accepted closed", Accepted: "granted closed", Granted: "active closed",
		Active: "reclaiming draining disputed closed", Suspect: "active reclaiming draining disputed closed",
		Detached: "active reclaiming draining disputed closed", Reclaiming: "draining disputed closed", Draining: "disputed closed",
		Disputed: "closed", Closed: "",
	}
	for _, from := range all {
		for to, move := range moves {
			l := walk(t, from)
			before := fmt.Sprint(l)
			got, err := move(l, noon)
			want := slices.Contains(strings.Fields(allowed[from]), string(to))
			if (err == nil) != want {
				t.Errorf("%s → %s: %v, want allowed = %v", from, to, err, want)
			}
			if err != nil && (!errors.Is(err, ErrTransition) || fmt.Sprint(got) != before) {
				t.Errorf("%s → %s: refused move changed the lease or has another error: %v", from, to, err)
			}
			if err == nil && got.Phase != to {
				t.Errorf("%s → %s: ended in %s", from, to, got.Phase)
			}
			if fmt.Sprint(l) != before {
				t.Errorf("%s → %s: changed the receiver", from, to)
			}
		}
	}
}

func TestTimers(t *testing.T) {
	for _, c := range []struct {
		from   Phase
		after  time.Duration
		to     Phase
		reason Reason
	}{
		{Held, HoldTime, Closed, NotCompleted},
		{Accepted, GrantTime, Closed, NotCompleted},
		{Granted, AckTime, Closed, NotCompleted},
		{Active, SilenceTime, Suspect, ""},
		{Suspect, SilenceTime + SuspectTime, Detached, ""},
		{Detached, SilenceTime + SuspectTime + AutonomyTime, Closed, Unresponsive},
		{Reclaiming, time.Minute, Closed, Thermal},
		{Draining, DrainTime, Closed, RequesterDone},
		{Disputed, DisputeTime, Closed, DisputeOver},
	} {
		l := walk(t, c.from)
		if c.from == Disputed {
			l.EndMs = 0 // a dispute outlives the leased time
		}
		due, armed := l.Due()
		if !armed || !due.Equal(noon.Add(c.after)) {
			t.Errorf("%s: due %v, want %v", c.from, due.Sub(noon), c.after)
		}
		if _, changed := l.Expire(due.Add(-time.Millisecond)); changed {
			t.Errorf("%s: fired early", c.from)
		}
		got, changed := l.Expire(due)
		if !changed || got.Phase != c.to || got.Reason != c.reason {
			t.Errorf("%s: became %s for %q, want %s for %q", c.from, got.Phase, got.Reason, c.to, c.reason)
		}
	}
	if _, armed := walk(t, Closed).Due(); armed {
		t.Error("a closed lease has a timer")
	}
}

func TestLeasedTimeEnds(t *testing.T) {
	l := walk(t, Active)
	l, _ = l.Heard(noon.Add(time.Hour - time.Second))
	got, changed := l.Expire(noon.Add(time.Hour))
	if !changed || got.Phase != Closed || got.Reason != TimeUp || got.Elapsed(noon.Add(2*time.Hour)) != time.Hour {
		t.Errorf("became %s for %q after %v", got.Phase, got.Reason, got.Elapsed(noon.Add(2*time.Hour)))
	}
	if !got.Metered(noon.Add(time.Hour+SettleTime)) || got.Metered(noon.Add(time.Hour+SettleTime+time.Second)) {
		t.Error("the last tick is not paid for exactly the settle time")
	}
}

func TestStartBy(t *testing.T) {
	l := walk(t, Held)
	if _, err := l.Accepted(nil, noon.Add(time.Minute+time.Millisecond)); !errors.Is(err, ErrStartBy) {
		t.Errorf("got %v", err)
	}
}

// TestRandomTraces drives a lease by random events and checks what must hold in every trace.
func TestRandomTraces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, now := startRapid(t), noon
		names := []Phase{Held, Accepted, Granted, Active, Reclaiming, Draining, Disputed, Closed}
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			before := l
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				l, _ = l.Heard(now)
			case 1, 2:
				now = now.Add(time.Duration(rapid.IntRange(0, 60_000).Draw(t, "ms")) * time.Millisecond)
				l, _ = l.Expire(now)
			default:
				l, _ = moves[rapid.SampledFrom(names).Draw(t, "move")](l, now)
			}
			b, err := wire.Marshal(l)
			if err != nil {
				t.Fatal(err)
			}
			var back Lease
			if err := wire.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back.Rearm(now).History, l.History) {
				t.Fatalf("a lease does not survive the log: %v", err)
			}
			if before.Phase == Closed && !reflect.DeepEqual(l, before) {
				t.Fatal("a closed lease changed")
			}
			if l.Phase == Closed && !l.Reason.Known() {
				t.Fatalf("closed for %q", l.Reason)
			}
			if _, armed := l.Due(); l.Phase != Closed && l.Phase != RFQ && !armed {
				t.Fatalf("%s has no timer, so nothing forces progress", l.Phase)
			}
			if l.Live() != (l.ActiveMs > 0 && l.Phase != Closed && l.Phase != Disputed) {
				t.Fatalf("%s: live %v, active since %d", l.Phase, l.Live(), l.ActiveMs)
			}
		}
		for range 10 { // left alone, every lease ends
			if due, armed := l.Due(); armed {
				l, _ = l.Expire(due)
			}
		}
		if l.Phase != Closed && l.Phase != RFQ {
			t.Fatalf("left alone, the lease stays %s", l.Phase)
		}
	})
}

func startRapid(t *rapid.T) Lease {
	tt := Terms{
		Version: 1, Run: wire.Link{Cid: wire.RecordCID([]byte{0xa0})}, Requester: "\x00\x01r", Provider: "\x00\x01p", MaxSeconds: 600, TickSeconds: 5,
		StartByMs: noon.Add(time.Minute).UnixMilli(),
	}
	l, err := New(Buyer, tt, noon)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRefusalsTravel(t *testing.T) {
	for _, r := range refusals {
		err := FromCode(CodeOf(fmt.Errorf("wrapped: %w", r)), "detail")
		if !errors.Is(err, r) {
			t.Errorf("%s came back as %v", r.Code, err)
		}
	}
	if FromCode("", "") != nil || FromCode("new-in-2030", "x") == nil {
		t.Error("empty code is success, unknown code is an error")
	}
	secret := Refuse(errors.New("open /home/owner/db: disk full"))
	if secret.Detail != "" || secret.Code != "internal" {
		t.Errorf("an internal error leaves home: %+v", secret)
	}
	long := Refuse(fmt.Errorf("%s: %w", strings.Repeat("ä", 300), ErrPrice))
	if _, err := wire.Marshal(long); err != nil || len(long.Detail) > maxDetail {
		t.Errorf("%d bytes of detail: %v", len(long.Detail), err)
	}
	b, _ := wire.Marshal(long)
	if err := wire.Unmarshal(b, &Reply{}); err != nil {
		t.Errorf("cut detail does not decode: %v", err)
	}
}

func FuzzRecords(f *testing.F) {
	tt := terms(f)
	accept, err := Seal(peertest.Key(f, "requester"), AcceptDomain, AcceptRecord{tt, noon.UnixMilli()})
	if err != nil {
		f.Fatal(err)
	}
	request, _ := wire.Marshal(Request{Op: OpQuote, Terms: &tt})
	reply, _ := wire.Marshal(Reply{Code: "price", Terms: &tt})
	record, _ := wire.Marshal(AcceptRecord{tt, 5})
	for _, seed := range [][]byte{accept, request, reply, record} {
		f.Add(seed)
	}
	who, pid := peertest.Key(f, "requester"), peertest.ID(f, "requester")
	l := Lease{ID: ID{1}, Terms: tt, Epoch: 1}
	f.Fuzz(func(t *testing.T, data []byte) {
		var req Request
		if wire.Unmarshal(data, &req) == nil && req.Terms != nil && req.Terms.Validate() == nil {
			if _, err := req.Terms.ID(); err != nil {
				t.Errorf("valid terms without an ID: %v", err)
			}
		}
		var rep Reply
		if wire.Unmarshal(data, &rep) == nil && rep.Code != "" && rep.Err() == nil {
			t.Errorf("code %q is no error", rep.Code)
		}
		OpenAccept(data, pid)
		env, err := Seal(who, AcceptDomain, rawCBOR(data))
		if err != nil {
			return
		}
		if a, err := OpenAccept(env, pid); err == nil && a.Terms.Validate() != nil {
			t.Errorf("invalid terms were opened: %+v", a.Terms)
		}
		for _, d := range []string{string(GrantDomain), string(AckDomain), string(CloseDomain)} {
			env, err := Seal(who, signedDomain(d), rawCBOR(data))
			if err != nil {
				continue
			}
			OpenGrant(env, l)
			OpenAck(env, l)
			OpenClose(env, l)
		}
	})
}
