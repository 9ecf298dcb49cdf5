package journal

import (
	"bytes"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/wire"
)

// disk returns the keys and values of a database with a lease, a tick, receipts and a budget.
func disk(f *testing.F) map[string][]byte {
	db := ok[*DB](f)(OpenFS("db", vfs.NewMem()))
	defer db.Close()
	l := granted(f, 1, 1)
	if err := db.PutGrant(l); err != nil {
		f.Fatal(err)
	}
	for _, r := range chain(f, l, 2) {
		if err := db.PutReceipt(l.Terms, r, noon); err != nil {
			f.Fatal(err)
		}
	}
	if err := db.SetBudget(l.Terms.Run, 7); err != nil {
		f.Fatal(err)
	}
	ok[uint64](f)(db.NextSeq(noon))
	all := map[string][]byte{}
	it := ok[*pebble.Iterator](f)(db.kv.NewIter(nil))
	for it.First(); it.Valid(); it.Next() {
		all[string(it.Key())] = bytes.Clone(it.Value())
	}
	if err := it.Close(); err != nil {
		f.Fatal(err)
	}
	return all
}

// stable checks that a record that was read is the same after it was written and read again.
func stable[T any](t *testing.T, v T) {
	t.Helper()
	first := ok[[]byte](t)(wire.Marshal(v))
	var again T
	if err := wire.Unmarshal(first, &again); err != nil {
		t.Fatalf("%+v cannot be read back: %v", v, err)
	}
	if second := ok[[]byte](t)(wire.Marshal(again)); !bytes.Equal(first, second) {
		t.Fatalf("%x came back as %x", first, second)
	}
}

// FuzzKeys puts one key and value on disk and reads everything: no reader may panic or hand out a slot that no offer has,
// a number or name that is read from a key gives the same key, and a record that is read can be written.
func FuzzKeys(f *testing.F) {
	for k, v := range disk(f) {
		f.Add([]byte(k), v)
	}
	f.Add([]byte(slotPrefix+"\xff\xff\xff\xff"), []byte{0xa0})
	f.Add([]byte(slotPrefix), []byte{0xa0})
	db := ok[*DB](f)(OpenFS("db", vfs.NewMem()))
	f.Cleanup(func() { db.Close() })
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if len(k) == 0 {
			return
		}
		if err := db.kv.Set(k, v, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		defer db.kv.Delete(k, pebble.NoSync)
		slots, _ := db.Slots()
		for i, s := range slots {
			if i >= offer.MaxSlots || !bytes.Equal(slotKey(i), k) {
				t.Fatalf("key %q gives slot %d", k, i)
			}
			stable(t, s)
		}
		balances, _ := db.Balances()
		for account, micro := range balances {
			if balancePrefix+string(account) != string(k) {
				t.Fatalf("key %q gives account %q", k, account)
			}
			stable(t, micro)
		}
		entries, _ := db.Entries()
		for _, e := range entries {
			stable(t, e)
		}
		leases, _ := db.Leases()
		for _, l := range leases {
			stable(t, l)
			db.Newest(l)
			db.Lease(l.ID)
			db.Tick(l.ID)
			db.Receipts(l.ID)
			db.Budget(l.Terms.Run)
		}
		ledger.Verify(db)
		if string(k) == versionKey {
			db.checkVersion()
		}
	})
}
