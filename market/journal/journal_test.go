package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/internal/golden"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/p2p/peertest"
	"github.com/capacloud/capanode/p2p/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.UnixMilli(1_800_000_000_000)

func ok[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func granted(t testing.TB, nonce, epoch uint64) lease.Lease {
	requester, provider := peertest.ID(t, "requester"), peertest.ID(t, "provider")
	l := ok[lease.Lease](t)(lease.New(lease.Seller, lease.Terms{
		Version: 1, Run: wire.Link{Cid: wire.RecordCID([]byte{0xa0})}, Requester: requester, Provider: provider, Nonce: nonce,
		Price: 3_600_000, WorkRate: 7, MaxSeconds: 3600, Budget: 50_000_000, TickSeconds: 15, StartByMs: noon.Add(time.Minute).UnixMilli(),
	}, noon))
	l = ok[lease.Lease](t)(l.Hold(noon))
	l = ok[lease.Lease](t)(l.Accepted([]byte("accept"), noon))
	return ok[lease.Lease](t)(l.Granted([]byte("grant"), epoch, noon))
}

// chain signs n receipts of a lease.
func chain(t testing.TB, l lease.Lease, n int) []meter.Signed {
	k := peertest.Key(t, "requester")
	var out []meter.Signed
	for i := range uint64(n) {
		j := meter.Judgement{Terms: l.Terms, Verified: 1 << 40, Left: credit.Max}
		if i > 0 {
			j.Newest = &out[i-1]
		}
		r := ok[meter.Receipt](t)(j.Receipt(meter.Tick{Lease: l.ID, Nonce: i + 1, Counters: meter.Counters{SlotMs: 15_000 * (i + 1), Units: 1_234_567 * (i + 1)}}))
		out = append(out, ok[meter.Signed](t)(meter.SealReceipt(k, r)))
	}
	return out
}

func TestReceiptsBookDeltasOnce(t *testing.T) {
	db := ok[*DB](t)(OpenFS("db", vfs.NewMem()))
	defer db.Close()
	l := granted(t, 1, 1)
	if err := db.PutGrant(l); err != nil {
		t.Fatal(err)
	}
	rs := chain(t, l, 4)
	for _, i := range []int{0, 1, 1, 3, 3, 0} { // receipt 3 is lost, others come twice
		if err := db.PutReceipt(l.Terms, rs[i], noon.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := ledger.Verify(db)
	if err != nil || rep.Total != rs[3].Amount || rep.Receipts != 3 || rep.Entries != 3 || rep.Gaps != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	balances := ok[map[ledger.Account]int64](t)(db.Balances())
	if balances[ledger.Earned(l.Terms.Provider)] != int64(rs[3].Amount) || balances[ledger.Owed(l.Terms.Requester)] != -int64(rs[3].Amount) {
		t.Errorf("balances %v, want ± %d", balances, rs[3].Amount)
	}
	rows := ok[[]ledger.Row](t)(ledger.Statement(db, noon.Add(time.Minute), time.Time{}))
	if len(rows) != 2 || rows[0].Nonce != 2 || rows[1].Nonce != 4 || rows[1].Total != rs[3].Amount || rows[1].Added != rs[3].Amount-rs[1].Amount {
		t.Errorf("statement %+v", rows)
	}
	if rows[0].Provider != ledger.Earned(l.Terms.Provider) || rows[0].Requester != ledger.Owed(l.Terms.Requester) {
		t.Errorf("statement names %+v", rows[0])
	}
	if rows := ok[[]ledger.Row](t)(ledger.Statement(db, time.Time{}, noon.Add(time.Minute))); len(rows) != 1 {
		t.Errorf("until is not exclusive: %+v", rows)
	}
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	l := granted(t, 1, 1)
	rs := chain(t, l, 3)
	k := peertest.Key(t, "provider")
	forged := rs[1].Receipt
	forged.Amount++
	fork := rs[2].Receipt
	fork.Prev = make([]byte, 32)
	payer := peertest.Key(t, "requester")
	entry := ledger.Entry{Lease: l.ID, Nonce: 3, Postings: []ledger.Posting{{Account: "x", Micro: 5}}}
	for name, damage := range map[string]func(*pebble.Batch) error{
		"signature": func(b *pebble.Batch) error {
			return b.Set(nonceKey(receiptPrefix, l.ID, 2), ok[meter.Signed](t)(meter.SealReceipt(k, rs[1].Receipt)).Envelope, nil)
		},
		"tariff": func(b *pebble.Batch) error {
			return b.Set(nonceKey(receiptPrefix, l.ID, 2), ok[meter.Signed](t)(meter.SealReceipt(payer, forged)).Envelope, nil)
		},
		"chain": func(b *pebble.Batch) error {
			return b.Set(nonceKey(receiptPrefix, l.ID, 3), ok[meter.Signed](t)(meter.SealReceipt(payer, fork)).Envelope, nil)
		},
		"lost receipt": func(b *pebble.Batch) error { return b.Delete(nonceKey(receiptPrefix, l.ID, 3), nil) },
		"lost entry":   func(b *pebble.Batch) error { return b.Delete(nonceKey(entryPrefix, l.ID, 2), nil) },
		"unbalanced":   func(b *pebble.Batch) error { return put(b, nonceKey(entryPrefix, l.ID, 3), entry) },
		"balance": func(b *pebble.Batch) error {
			return put(b, []byte(balancePrefix+string(ledger.Earned(l.Terms.Provider))), int64(1))
		},
		"lost balance": func(b *pebble.Batch) error {
			return b.Delete([]byte(balancePrefix+string(ledger.Earned(l.Terms.Provider))), nil)
		},
		"unknown lease": func(b *pebble.Batch) error { return b.Delete(leaseKey(l.ID), nil) },
		"other terms": func(b *pebble.Batch) error {
			other := l
			other.Terms.Budget++
			return put(b, leaseKey(l.ID), other)
		},
	} {
		db := ok[*DB](t)(OpenFS("db", vfs.NewMem()))
		if err := db.PutGrant(l); err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			if err := db.PutReceipt(l.Terms, r, noon); err != nil {
				t.Fatal(err)
			}
		}
		if rep, err := ledger.Verify(db); err != nil || rep.Receipts != 3 {
			t.Fatalf("sound books: %+v, %v", rep, err)
		}
		if err := db.write(damage); err != nil {
			t.Fatal(err)
		}
		if _, err := ledger.Verify(db); !errors.Is(err, ledger.ErrUnsound) {
			t.Errorf("%s: got %v", name, err)
		}
		db.Close()
	}
}

func TestGrantsNeverRepeatAnEpoch(t *testing.T) {
	db := ok[*DB](t)(OpenFS("db", vfs.NewMem()))
	defer db.Close()
	if err := db.PutGrant(granted(t, 1, 1)); err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []uint64{0, 1, 3} {
		if err := db.PutGrant(granted(t, 2, epoch)); !errors.Is(err, lease.ErrNoSlot) {
			t.Errorf("grant at epoch %d after 1: %v", epoch, err)
		}
	}
	if err := db.PutGrant(granted(t, 2, 2)); err != nil {
		t.Error(err)
	}
}

func TestSequenceGrowsEvenWithoutTheDatabase(t *testing.T) {
	fs := vfs.NewMem()
	db := ok[*DB](t)(OpenFS("db", fs))
	a := ok[uint64](t)(db.NextSeq(noon))
	b := ok[uint64](t)(db.NextSeq(noon.Add(-time.Hour))) // the wall clock was stepped back
	db.Close()
	db = ok[*DB](t)(OpenFS("db", fs))
	c := ok[uint64](t)(db.NextSeq(noon))
	db.Close()
	db = ok[*DB](t)(OpenFS("fresh", fs))
	d := ok[uint64](t)(db.NextSeq(noon.Add(time.Second)))
	db.Close()
	if !(a < b && b < c && c < d) {
		t.Errorf("sequence %d %d %d %d", a, b, c, d)
	}
}

func TestOpenRefusesOtherVersionAndSecondProcess(t *testing.T) {
	dir := t.TempDir()
	db := ok[*DB](t)(Open(dir))
	if _, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := db.write(func(b *pebble.Batch) error { return put(b, []byte(versionKey), uint64(99)) }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := Open(dir); !errors.Is(err, ErrVersion) {
		t.Errorf("other version: %v", err)
	}
}

// TestKeysSortAndScan holds for lease IDs whose last byte is the largest: the end of their range needs a carry.
func TestKeysSortAndScan(t *testing.T) {
	db := ok[*DB](t)(OpenFS("db", vfs.NewMem()))
	defer db.Close()
	var id lease.ID
	for i := range id {
		id[i] = 0xff
	}
	for _, nonce := range []uint64{1, 255, 256, 1 << 40} {
		err := db.write(func(b *pebble.Batch) error {
			return b.Set(nonceKey(receiptPrefix, id, nonce), []byte(fmt.Sprint(nonce)), nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	got := ok[[][]byte](t)(db.Receipts(id))
	if s := string(bytes.Join(got, []byte(" "))); s != "1 255 256 1099511627776" {
		t.Errorf("got %q", s)
	}
}

// crash is the state of the disk at one moment, and what had been acknowledged by then.
type crash struct {
	fs    *vfs.MemFS
	acked int
}

// act is one step of the scripted life, with what must hold on disk once it has been acknowledged.
type act struct {
	do    func(*DB) error
	check func(*DB) error
}

func life(t *testing.T) []act {
	var acts []act
	for n := uint64(1); n <= 3; n++ {
		l := granted(t, n, n)
		acts = append(acts, act{
			func(db *DB) error { return db.PutGrant(l) },
			func(db *DB) error {
				if err := db.PutGrant(granted(t, 100+n, n)); !errors.Is(err, lease.ErrNoSlot) {
					return fmt.Errorf("slot granted twice at epoch %d: %v", n, err)
				}
				return nil
			},
		})
		for i, r := range chain(t, l, 5) {
			k := peertest.Key(t, "provider")
			tick := ok[[]byte](t)(meter.SealTick(k, meter.Tick{Lease: l.ID, Nonce: uint64(i + 1)}))
			acts = append(acts, act{func(db *DB) error { return db.PutTick(l.ID, tick) }, func(db *DB) error {
				env, found, err := db.Tick(l.ID)
				if err != nil || !found {
					return fmt.Errorf("tick %d is lost: %w", i+1, err)
				}
				if got, err := meter.OpenTick(env, l.Terms.Provider); err != nil || got.Nonce < uint64(i+1) {
					return fmt.Errorf("tick %d came back as %d: %w", i+1, got.Nonce, err)
				}
				return nil
			}}, act{func(db *DB) error { return db.PutReceipt(l.Terms, r, noon) }, func(db *DB) error {
				all, err := db.Receipts(l.ID)
				if err != nil || !slices.ContainsFunc(all, func(e []byte) bool { return bytes.Equal(e, r.Envelope) }) {
					return fmt.Errorf("receipt %d is lost: %w", i+1, err)
				}
				return nil
			}})
		}
		done, err := l.Close(lease.RequesterDone, nil, noon)
		if err != nil {
			t.Fatal(err)
		}
		acts = append(acts, act{func(db *DB) error { return db.PutLease(done) }, func(db *DB) error {
			if got, found, err := db.Lease(l.ID); err != nil || !found || got.Phase != lease.Closed {
				return fmt.Errorf("close is lost: %s, %w", got.Phase, err)
			}
			return nil
		}})
	}
	return acts
}

// TestCrashAtEveryWrite takes the disk as it is at each write of a scripted life, with all, some or none of what was not
// synced, and checks that everything acknowledged by then is there and that the books are sound.
func TestCrashAtEveryWrite(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := vfs.NewCrashableMem()
	var acked atomic.Int64
	var mu sync.Mutex
	var crashes []crash
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		n := int(acked.Load())
		cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[len(crashes)%3], RNG: rng}
		crashes = append(crashes, crash{mem.CrashClone(cfg), n})
		return nil
	}))
	acts := life(t)
	db := ok[*DB](t)(OpenFS("db", fs))
	for _, a := range acts {
		if err := a.do(db); err != nil {
			t.Fatal(err)
		}
		acked.Add(1)
	}
	db.Close()
	t.Logf("%d crashes over %d acknowledged steps", len(crashes), len(acts))
	if len(crashes) < 2*len(acts) {
		t.Errorf("only %d crash points for %d steps: the file system is not watched", len(crashes), len(acts))
	}
	for i, c := range crashes {
		db, err := OpenFS("db", c.fs)
		if err != nil {
			t.Fatalf("crash %d after %d steps: %v", i, c.acked, err)
		}
		if _, err := ledger.Verify(db); err != nil {
			t.Errorf("crash %d after %d steps: %v", i, c.acked, err)
		}
		for n, a := range acts[:c.acked] {
			if err := a.check(db); err != nil {
				t.Errorf("crash %d after %d steps: step %d: %v", i, c.acked, n, err)
			}
		}
		db.Close()
	}
}

// TestGoldenDisk pins the layout on disk: the same life gives the same keys and values.
func TestGoldenDisk(t *testing.T) {
	db := ok[*DB](t)(OpenFS("db", vfs.NewMem()))
	defer db.Close()
	l := granted(t, 1, 1)
	if err := db.PutGrant(l); err != nil {
		t.Fatal(err)
	}
	if err := db.PutReceipt(l.Terms, chain(t, l, 1)[0], noon); err != nil {
		t.Fatal(err)
	}
	if err := db.SetBudget(l.Terms.Run, 77); err != nil {
		t.Fatal(err)
	}
	ok[uint64](t)(db.NextSeq(noon))
	var b strings.Builder
	for _, prefix := range []string{"b", "e", "l", "r", "s", "t", "v"} {
		err := db.scan([]byte(prefix), func(rest, value []byte) error {
			fmt.Fprintf(&b, "%x %x\n", append([]byte(prefix), rest...), value)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	golden.Check(t, "disk", []byte(b.String()))
}
