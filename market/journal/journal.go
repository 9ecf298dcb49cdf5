// Package journal owns what the market must not forget: leases, slot epochs, ticks, receipts, ledger entries, budgets and
// the beacon's sequence, in one pebble database. Every write is synced before it returns, and things that belong together
// are one atomic batch. It refuses to judge what it stores. docs/protocol/ledger.md lists the keys.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/wire"
)

// Version is the version of the key layout. A database of another version is not opened.
const Version = 1

// Errors of opening a database.
var (
	// ErrLocked reports a database that is open already, here or in another process.
	ErrLocked = errors.New("market database is in use")
	// ErrVersion reports a database of another layout.
	ErrVersion = errors.New("market database has another version")
	// ErrDamaged reports a database that does not hold what it should.
	ErrDamaged = errors.New("market database is damaged")
)

// Key prefixes. Numbers in keys are big-endian, so that they sort.
const (
	versionKey    = "version"
	seqKey        = "beacon/seq"
	leasePrefix   = "lease/"   // + ID → lease.Lease
	slotPrefix    = "slot/"    // + slot → Slot
	tickPrefix    = "tick/"    // + ID → tick envelope, newest
	receiptPrefix = "receipt/" // + ID + nonce → receipt envelope
	entryPrefix   = "entry/"   // + ID + nonce → ledger.Entry
	balancePrefix = "balance/" // + account → CBOR integer
	budgetPrefix  = "budget/"  // + run CID → CBOR integer
)

// DB is the market's database. It is safe for concurrent use and implements [ledger.Source].
type DB struct {
	kv   *pebble.DB
	lock *pebble.Lock
	mu   sync.Mutex // one writer at a time, for reads that a write depends on
}

// Open opens or creates the database in a folder of its own.
func Open(dir string) (*DB, error) { return OpenFS(dir, vfs.Default) }

// OpenFS opens the database on a file system; tests pass one that can crash.
func OpenFS(dir string, fs vfs.FS) (*DB, error) {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: open %s: %w", dir, err)
	}
	lock, err := pebble.LockDirectory(dir, fs)
	if err != nil {
		return nil, fmt.Errorf("journal: open %s: %w: %w", dir, ErrLocked, err)
	}
	kv, err := pebble.Open(dir, &pebble.Options{
		FS:                 fs,
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             quiet{},
		MemTableSize:       4 << 20,
		Lock:               lock,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: open %s: %w", dir, damaged(dir, err)), lock.Close())
	}
	db := &DB{kv: kv, lock: lock}
	if err := db.checkVersion(); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: open %s: %w", dir, err), db.Close())
	}
	return db, nil
}

// damaged says what to do about files that pebble does not open. What the operating system refuses is no damage, unless it
// is that a file is gone.
func damaged(dir string, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.ENOENT {
		return err
	}
	return fmt.Errorf("%w: %w; nothing was removed: restore %s from a backup, or move it away, which forgets leases and ledger", ErrDamaged, err, dir)
}

func (db *DB) checkVersion() error {
	var v uint64
	found, err := db.get([]byte(versionKey), &v)
	if err != nil {
		return err
	}
	if !found {
		return db.write(func(b *pebble.Batch) error { return put(b, []byte(versionKey), uint64(Version)) })
	}
	if v != Version {
		return fmt.Errorf("version %d, this program knows %d: %w", v, Version, ErrVersion)
	}
	return nil
}

// Close closes the database.
func (db *DB) Close() error {
	if err := errors.Join(db.kv.Close(), db.lock.Close()); err != nil {
		return fmt.Errorf("journal: close: %w", err)
	}
	return nil
}

// write runs one batch and syncs it.
func (db *DB) write(fill func(*pebble.Batch) error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.writeLocked(fill)
}

func (db *DB) writeLocked(fill func(*pebble.Batch) error) error {
	b := db.kv.NewBatch()
	defer b.Close()
	if err := fill(b); err != nil {
		return err
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("journal: write: %w", err)
	}
	return nil
}

func put(b *pebble.Batch, key []byte, v any) error {
	data, err := wire.Marshal(v)
	if err != nil {
		return fmt.Errorf("journal: %s: %w", key[:min(len(key), 8)], err)
	}
	return b.Set(key, data, nil)
}

func (db *DB) raw(key []byte) (data []byte, found bool, err error) {
	v, closer, err := db.kv.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("journal: read: %w", err)
	}
	defer closer.Close()
	return append([]byte(nil), v...), true, nil
}

func (db *DB) get(key []byte, v any) (found bool, err error) {
	data, found, err := db.raw(key)
	if err != nil || !found {
		return false, err
	}
	return true, wire.Unmarshal(data, v)
}

// scan calls visit for each key with the prefix, in order; the slices are only valid during the call.
func (db *DB) scan(prefix []byte, visit func(rest, value []byte) error) error {
	upper := append([]byte(nil), prefix...)
	for i := len(upper) - 1; ; i-- { // the first byte is a letter, so the carry ends
		if upper[i]++; upper[i] != 0 {
			break
		}
	}
	it, err := db.kv.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("journal: scan: %w", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := visit(it.Key()[len(prefix):], it.Value()); err != nil {
			return errors.Join(err, it.Close())
		}
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("journal: scan: %w", err)
	}
	return nil
}

func leaseKey(id lease.ID) []byte { return append([]byte(leasePrefix), id[:]...) }
func tickKey(id lease.ID) []byte  { return append([]byte(tickPrefix), id[:]...) }
func slotKey(slot uint32) []byte  { return binary.BigEndian.AppendUint32([]byte(slotPrefix), slot) }

func nonceKey(prefix string, id lease.ID, nonce uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(prefix), id[:]...), nonce)
}

// NextSeq returns a beacon sequence number that was never returned before, and stays above earlier ones even if the
// database is lost, because it is at least the wall clock in milliseconds.
func (db *DB) NextSeq(now time.Time) (uint64, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	var last uint64
	if _, err := db.get([]byte(seqKey), &last); err != nil {
		return 0, err
	}
	seq := max(last+1, uint64(max(now.UnixMilli(), 1)))
	return seq, db.writeLocked(func(b *pebble.Batch) error { return put(b, []byte(seqKey), seq) })
}

// PutLease records a lease as it is now.
func (db *DB) PutLease(l lease.Lease) error {
	return db.write(func(b *pebble.Batch) error { return put(b, leaseKey(l.ID), l) })
}

// Slot is the durable state of one slot: how often it was granted, and the last lease it was granted to.
type Slot struct {
	Epoch uint64   `cbor:"epoch"`
	Lease lease.ID `cbor:"lease"`
}

// PutGrant records a granted lease and the new epoch of its slot, in one batch. A grant whose epoch is not exactly one
// above the recorded epoch is refused: a slot is never granted twice in one epoch.
func (db *DB) PutGrant(l lease.Lease) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var s Slot
	if _, err := db.get(slotKey(l.Terms.Slot), &s); err != nil {
		return err
	}
	if l.Epoch != s.Epoch+1 {
		return fmt.Errorf("journal: grant of slot %d at epoch %d, recorded epoch %d: %w", l.Terms.Slot, l.Epoch, s.Epoch, lease.ErrNoSlot)
	}
	return db.writeLocked(func(b *pebble.Batch) error {
		if err := put(b, slotKey(l.Terms.Slot), Slot{l.Epoch, l.ID}); err != nil {
			return err
		}
		return put(b, leaseKey(l.ID), l)
	})
}

// Slots returns the durable state of every slot that was ever granted.
func (db *DB) Slots() (map[uint32]Slot, error) {
	out := make(map[uint32]Slot)
	err := db.scan([]byte(slotPrefix), func(rest, value []byte) error {
		slot, err := slotOf(rest)
		if err != nil {
			return err
		}
		var s Slot
		if err := wire.Unmarshal(value, &s); err != nil {
			return fmt.Errorf("journal: slot record: %w", err)
		}
		out[slot] = s
		return nil
	})
	return out, err
}

// slotOf reads the number of a slot from its key. Whoever restores the slots makes room up to the highest, so one that no
// offer can have is not let through.
func slotOf(rest []byte) (uint32, error) {
	if len(rest) == 4 {
		if slot := binary.BigEndian.Uint32(rest); slot < offer.MaxSlots {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("journal: no slot has the key %x: %w", rest[:min(len(rest), 8)], ErrDamaged)
}

// Lease returns one lease.
func (db *DB) Lease(id lease.ID) (l lease.Lease, found bool, err error) {
	found, err = db.get(leaseKey(id), &l)
	return l, found, err
}

// Leases returns every lease, in the order of their IDs.
func (db *DB) Leases() ([]lease.Lease, error) {
	var out []lease.Lease
	err := db.scan([]byte(leasePrefix), func(_, value []byte) error {
		var l lease.Lease
		if err := wire.Unmarshal(value, &l); err != nil {
			return fmt.Errorf("journal: lease record: %w", err)
		}
		out = append(out, l)
		return nil
	})
	return out, err
}

// PutTick records the newest tick of a lease, before it is sent.
func (db *DB) PutTick(id lease.ID, env []byte) error {
	return db.write(func(b *pebble.Batch) error { return b.Set(tickKey(id), env, nil) })
}

// Tick returns the newest tick of a lease as an envelope.
func (db *DB) Tick(id lease.ID) (env []byte, found bool, err error) { return db.raw(tickKey(id)) }

// PutReceipt records a receipt with its ledger entry and balances, in one batch, before it is sent or acknowledged. A
// receipt that is already recorded changes nothing.
func (db *DB) PutReceipt(t lease.Terms, r meter.Signed, at time.Time) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	key := nonceKey(receiptPrefix, r.Lease, r.Nonce)
	if _, found, err := db.raw(key); err != nil || found {
		return err
	}
	var booked credit.Micro
	newest, err := db.newest(r.Lease, t)
	if err != nil {
		return err
	}
	if newest != nil {
		booked = newest.Amount
	}
	entry, err := ledger.Book(t, booked, r.Receipt, at)
	if err != nil {
		return err
	}
	return db.writeLocked(func(b *pebble.Batch) error {
		for _, p := range entry.Postings {
			var balance int64
			k := []byte(balancePrefix + string(p.Account))
			if _, err := db.get(k, &balance); err != nil {
				return err
			}
			if err := put(b, k, balance+p.Micro); err != nil {
				return err
			}
		}
		if err := put(b, nonceKey(entryPrefix, r.Lease, r.Nonce), entry); err != nil {
			return err
		}
		return b.Set(key, r.Envelope, nil)
	})
}

// Receipts returns the receipts of a lease as envelopes, oldest first.
func (db *DB) Receipts(id lease.ID) ([][]byte, error) {
	var out [][]byte
	err := db.scan(append([]byte(receiptPrefix), id[:]...), func(_, value []byte) error {
		out = append(out, append([]byte(nil), value...))
		return nil
	})
	return out, err
}

// Newest returns the newest receipt of a lease, nil for none.
func (db *DB) Newest(l lease.Lease) (*meter.Signed, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.newest(l.ID, l.Terms)
}

func (db *DB) newest(id lease.ID, t lease.Terms) (*meter.Signed, error) {
	lower := append([]byte(receiptPrefix), id[:]...)
	it, err := db.kv.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: append(nonceKey(receiptPrefix, id, 1<<64-1), 0)})
	if err != nil {
		return nil, fmt.Errorf("journal: newest receipt: %w", err)
	}
	var env []byte
	if it.Last() {
		env = append(env, it.Value()...)
	}
	if err := it.Close(); err != nil {
		return nil, fmt.Errorf("journal: newest receipt: %w", err)
	}
	if env == nil {
		return nil, nil
	}
	r, err := meter.OpenReceipt(env, t.Requester)
	if err != nil {
		return nil, fmt.Errorf("journal: newest receipt of lease %s: %w", id.Short(), err)
	}
	return &r, nil
}

// Entries returns every ledger entry.
func (db *DB) Entries() ([]ledger.Entry, error) {
	var out []ledger.Entry
	err := db.scan([]byte(entryPrefix), func(_, value []byte) error {
		var e ledger.Entry
		if err := wire.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("journal: entry: %w", err)
		}
		out = append(out, e)
		return nil
	})
	return out, err
}

// Balances returns the balance of every account in micro-credits.
func (db *DB) Balances() (map[ledger.Account]int64, error) {
	out := make(map[ledger.Account]int64)
	err := db.scan([]byte(balancePrefix), func(rest, value []byte) error {
		var micro int64
		if err := wire.Unmarshal(value, &micro); err != nil {
			return fmt.Errorf("journal: balance: %w", err)
		}
		out[ledger.Account(rest)] = micro
		return nil
	})
	return out, err
}

// SetBudget records the budget of a run over all its leases.
func (db *DB) SetBudget(run wire.Link, micro credit.Micro) error {
	return db.write(func(b *pebble.Batch) error {
		return put(b, append([]byte(budgetPrefix), run.Bytes()...), uint64(micro))
	})
}

// Budget returns the budget of a run over all its leases; false when none was set.
func (db *DB) Budget(run wire.Link) (micro credit.Micro, found bool, err error) {
	found, err = db.get(append([]byte(budgetPrefix), run.Bytes()...), &micro)
	return micro, found, err
}

// quiet sends the database's chatter to the debug log.
type quiet struct{}

func (quiet) Infof(format string, args ...any) { slog.Debug(fmt.Sprintf(format, args...)) }
func (quiet) Errorf(format string, args ...any) {
	slog.Error("market database", "err", fmt.Sprintf(format, args...))
}

// Fatalf is called by pebble when it can no longer keep its promises, such as a full disk; it must not return.
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf("market database: "+format, args...))
}
