// Package ledger owns the books: double entries that follow from receipts, balances, statements and the checker that the
// command line and the tests share. Debts are bilateral promises ("iou"): an entry says who owes whom, and nothing here
// moves money. It refuses to know how entries are stored; that is [Source].
package ledger

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
)

// Account names one account, such as "provider:12D3…:earned".
type Account string

// Earned is the account of what a provider has earned; its balance is positive.
func Earned(provider peer.ID) Account { return Account("provider:" + provider.String() + ":earned") }

// Owed is the account of what a requester owes; its balance is negative.
func Owed(requester peer.ID) Account { return Account("requester:" + requester.String() + ":owed") }

// Posting changes one account by a signed number of micro-credits.
type Posting struct {
	Account Account `cbor:"account"`
	Micro   int64   `cbor:"micro"`
}

// Entry books what one receipt adds to the one before. Its postings sum to zero.
type Entry struct {
	AtMs     int64     `cbor:"at"` // when this node booked it, Unix ms
	Lease    lease.ID  `cbor:"lease"`
	Nonce    uint64    `cbor:"nonce"` // of the receipt
	Postings []Posting `cbor:"postings"`
}

// Book turns a receipt into the entry for what it adds to the amount already booked for the lease.
func Book(t lease.Terms, booked credit.Micro, r meter.Receipt, at time.Time) (Entry, error) {
	if r.Amount < booked || r.Amount > credit.Max {
		return Entry{}, fmt.Errorf("ledger: lease %s: receipt %d of %s after %s booked: %w", r.Lease.Short(), r.Nonce, r.Amount, booked, ErrUnsound)
	}
	added := int64(r.Amount - booked)
	return Entry{AtMs: at.UnixMilli(), Lease: r.Lease, Nonce: r.Nonce, Postings: []Posting{
		{Owed(t.Requester), -added},
		{Earned(t.Provider), added},
	}}, nil
}

// Source is where the ledger reads.
type Source interface {
	// Leases returns every lease that has been recorded.
	Leases() ([]lease.Lease, error)
	// Receipts returns the stored receipts of a lease in the order of their nonces, as envelopes.
	Receipts(id lease.ID) ([][]byte, error)
	// Entries returns every entry.
	Entries() ([]Entry, error)
	// Balances returns the stored balance of every account in micro-credits.
	Balances() (map[Account]int64, error)
}

// ErrUnsound reports books that contradict themselves or the signed receipts.
var ErrUnsound = errors.New("ledger is unsound")

// Report says what [Verify] looked at.
type Report struct {
	Leases, Receipts, Entries int
	Gaps                      int          // receipts known to be missing between two stored ones; harmless
	Total                     credit.Micro // sum of the newest receipts
}

// Verify checks the books against the signed receipts: each signature, tariff and link of the hash chain; that entries
// balance; that the entries of a lease sum to its newest receipt; that stored balances are the sums of the entries. The
// error joins everything that is wrong.
func Verify(src Source) (Report, error) {
	var rep Report
	leases, err := src.Leases()
	if err != nil {
		return rep, fmt.Errorf("ledger: verify: %w", err)
	}
	entries, err := src.Entries()
	if err != nil {
		return rep, fmt.Errorf("ledger: verify: %w", err)
	}
	balances, err := src.Balances()
	if err != nil {
		return rep, fmt.Errorf("ledger: verify: %w", err)
	}
	rep.Leases, rep.Entries = len(leases), len(entries)
	problems := checkEntries(entries, balances)
	booked := make(map[lease.ID]int64)
	for _, e := range entries {
		for _, p := range e.Postings {
			booked[e.Lease] += max(p.Micro, 0)
		}
	}
	for _, l := range leases {
		newest, err := checkLease(src, l, &rep)
		if err == nil && booked[l.ID] != int64(newest) {
			err = fmt.Errorf("ledger: lease %s: booked %d, newest receipt %d micro-credits: %w", l.ID.Short(), booked[l.ID], newest, ErrUnsound)
		}
		delete(booked, l.ID)
		rep.Total += newest
		problems = append(problems, err)
	}
	for id := range booked {
		problems = append(problems, fmt.Errorf("ledger: entries of unknown lease %s: %w", id.Short(), ErrUnsound))
	}
	return rep, errors.Join(problems...)
}

func checkEntries(entries []Entry, balances map[Account]int64) (problems []error) {
	sums := make(map[Account]int64)
	for _, e := range entries {
		total := int64(0)
		for _, p := range e.Postings {
			total += p.Micro
			sums[p.Account] += p.Micro
		}
		if total != 0 {
			problems = append(problems, fmt.Errorf("ledger: entry %d of lease %s is off by %d: %w", e.Nonce, e.Lease.Short(), total, ErrUnsound))
		}
	}
	for account, balance := range balances {
		if sums[account] != balance {
			problems = append(problems, fmt.Errorf("ledger: %s has balance %d, entries sum to %d: %w", account, balance, sums[account], ErrUnsound))
		}
		delete(sums, account)
	}
	for account, sum := range sums {
		if sum != 0 {
			problems = append(problems, fmt.Errorf("ledger: %s has no balance, entries sum to %d: %w", account, sum, ErrUnsound))
		}
	}
	return problems
}

// checkLease verifies the receipts of one lease and returns the amount of the newest.
func checkLease(src Source, l lease.Lease, rep *Report) (credit.Micro, error) {
	envelopes, err := src.Receipts(l.ID)
	if err != nil {
		return 0, fmt.Errorf("ledger: lease %s: %w", l.ID.Short(), err)
	}
	if id, err := l.Terms.ID(); err != nil || id != l.ID {
		return 0, fmt.Errorf("ledger: lease %s: terms hash to %s: %w", l.ID.Short(), id.Short(), ErrUnsound)
	}
	var newest *meter.Signed
	for _, env := range envelopes {
		r, err := meter.OpenReceipt(env, l.Terms.Requester)
		if err != nil {
			return 0, fmt.Errorf("ledger: lease %s: %w: %w", l.ID.Short(), ErrUnsound, err)
		}
		amount, err := meter.Amount(l.Terms, r.Counters)
		if err != nil || amount != r.Amount || r.Lease != l.ID || r.Amount > l.Terms.Budget {
			return 0, fmt.Errorf("ledger: lease %s: receipt %d says %s, tariff %s: %w", l.ID.Short(), r.Nonce, r.Amount, amount, ErrUnsound)
		}
		if newest != nil {
			if err := meter.Link(*newest, r); err != nil || r.Amount < newest.Amount {
				return 0, fmt.Errorf("ledger: lease %s: receipt %d after %d: %w: %v", l.ID.Short(), r.Nonce, newest.Nonce, ErrUnsound, err)
			}
			if r.PrevNonce != newest.Nonce {
				rep.Gaps++
			}
		} else if r.PrevNonce != 0 {
			rep.Gaps++
		}
		newest = &r
		rep.Receipts++
	}
	if newest == nil {
		return 0, nil
	}
	return newest.Amount, nil
}

// Row is one line of a statement.
type Row struct {
	At        time.Time
	Lease     lease.ID
	Nonce     uint64
	Requester Account // pays
	Provider  Account // earns
	Added     credit.Micro
	Total     credit.Micro // of the lease, this row included
}

// Statement lists the entries booked in [from, to), oldest first. Zero times are open ends.
func Statement(src Source, from, to time.Time) ([]Row, error) {
	entries, err := src.Entries()
	if err != nil {
		return nil, fmt.Errorf("ledger: statement: %w", err)
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.AtMs, b.AtMs), bytes.Compare(a.Lease[:], b.Lease[:]), cmp.Compare(a.Nonce, b.Nonce))
	})
	totals := make(map[lease.ID]credit.Micro)
	var rows []Row
	for _, e := range entries {
		row := Row{At: time.UnixMilli(e.AtMs), Lease: e.Lease, Nonce: e.Nonce}
		for _, p := range e.Postings {
			if p.Micro > 0 {
				row.Added += credit.Micro(p.Micro)
			}
			if strings.HasPrefix(string(p.Account), "provider:") {
				row.Provider = p.Account
			} else {
				row.Requester = p.Account
			}
		}
		totals[e.Lease] += row.Added
		row.Total = totals[e.Lease]
		if !from.IsZero() && row.At.Before(from) || !to.IsZero() && !row.At.Before(to) {
			continue
		}
		rows = append(rows, row)
	}
	return rows, nil
}
