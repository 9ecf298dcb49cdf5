package meter

import (
	"bytes"
	"fmt"
	"time"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
)

// slackPercent is how much faster than the requester's clock the provider's may run: 2 %, plus one tick.
const slackPercent = 2

// Judgement is what the requester knows when it judges a tick.
type Judgement struct {
	Terms    lease.Terms
	Newest   *Signed       // newest receipt of the lease, nil for none
	Elapsed  time.Duration // since ACTIVE on the requester's monotonic clock
	Verified uint64        // cumulative work units that the requester itself computed
	Left     credit.Micro  // what the run's budget leaves for this lease in all, its newest receipt included
}

// Precheck judges what needs no verified work: order, repetition, regress and speed. When the tick is old news, it returns
// the receipt to repeat.
func (j Judgement) Precheck(t Tick) (repeat *Signed, err error) {
	if n := j.Newest; n != nil {
		if t.Nonce < n.Nonce {
			return n, nil
		}
		if t.Nonce == n.Nonce {
			if t.SlotMs != n.SlotMs || t.Tokens != n.Tokens || t.Rounds != n.Rounds || t.Units < n.Units || !bytes.Equal(t.State, n.State) {
				return nil, fmt.Errorf("meter: tick %d of lease %s: %w", t.Nonce, t.Lease.Short(), ErrConflict)
			}
			return n, nil
		}
		if !t.covers(n.Counters) {
			return nil, fmt.Errorf("meter: tick %d of lease %s: %w", t.Nonce, t.Lease.Short(), ErrRegress)
		}
	}
	bound := uint64(j.Elapsed.Milliseconds())*(100+slackPercent)/100 + uint64(j.Terms.TickSeconds)*1000
	if t.SlotMs > bound {
		return nil, fmt.Errorf("meter: tick %d of lease %s claims %d ms, at most %d: %w", t.Nonce, t.Lease.Short(), t.SlotMs, bound, ErrTooFast)
	}
	return nil, nil
}

// Receipt is the receipt that answers a tick which passed [Judgement.Precheck]. Work that the requester has not verified
// is not paid; the budget caps of the terms and of the run hold.
func (j Judgement) Receipt(t Tick) (Receipt, error) {
	r := Receipt{Lease: t.Lease, Nonce: t.Nonce, Counters: t.Counters, State: t.State}
	r.Units = min(t.Units, j.Verified)
	if n := j.Newest; n != nil {
		r.Units = max(r.Units, n.Units)
		r.PrevNonce, r.Prev = n.Nonce, n.Hash[:]
	}
	amount, err := Amount(j.Terms, r.Counters)
	if err != nil {
		return Receipt{}, err
	}
	if limit := min(j.Terms.Budget, j.Left); amount > limit {
		return Receipt{}, fmt.Errorf("meter: tick %d of lease %s: %s of %s credits: %w", t.Nonce, t.Lease.Short(), amount, limit, ErrBudget)
	}
	r.Amount = amount
	return r, nil
}

// CheckReceipt is how the provider judges a receipt, given the newest one that it has, nil for none, and its newest tick.
func CheckReceipt(terms lease.Terms, newest *Signed, last Tick, r Signed) error {
	if r.Lease != last.Lease {
		return fmt.Errorf("meter: receipt of lease %s: %w", r.Lease.Short(), ErrMalformed)
	}
	if r.Nonce > last.Nonce || !last.covers(r.Counters) {
		return fmt.Errorf("meter: receipt %d of lease %s covers more than tick %d: %w", r.Nonce, r.Lease.Short(), last.Nonce, ErrTariff)
	}
	amount, err := Amount(terms, r.Counters)
	if err != nil {
		return err
	}
	if amount != r.Amount {
		return fmt.Errorf("meter: receipt %d of lease %s says %s, tariff says %s: %w", r.Nonce, r.Lease.Short(), r.Amount, amount, ErrTariff)
	}
	if newest == nil {
		return nil
	}
	if r.Nonce < newest.Nonce || !r.covers(newest.Counters) {
		return fmt.Errorf("meter: receipt %d of lease %s after %d: %w", r.Nonce, r.Lease.Short(), newest.Nonce, ErrRegress)
	}
	return Link(*newest, r)
}

// Link checks that next continues the chain of receipts after prev. Receipts in between may be missing: a lost receipt is
// harmless, because amounts are cumulative.
func Link(prev, next Signed) error {
	switch {
	case next.Nonce == prev.Nonce && next.Hash != prev.Hash:
		return fmt.Errorf("meter: two receipts %d of lease %s: %w", next.Nonce, next.Lease.Short(), ErrChain)
	case next.Nonce != prev.Nonce && next.PrevNonce < prev.Nonce:
		return fmt.Errorf("meter: receipt %d of lease %s skips receipt %d: %w", next.Nonce, next.Lease.Short(), prev.Nonce, ErrChain)
	case next.PrevNonce == prev.Nonce && !bytes.Equal(next.Prev, prev.Hash[:]):
		return fmt.Errorf("meter: receipt %d of lease %s: hash of receipt %d: %w", next.Nonce, next.Lease.Short(), prev.Nonce, ErrChain)
	}
	return nil
}
