package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
)

// Times of the planner.
const (
	tickSeconds   = 10               // between two meter ticks
	offerWait     = 15 * time.Second // for enough offers to show up
	localWait     = 90 * time.Second // for local providers to start and time themselves
	leaseSlack    = 10               // a lease may take so many times longer than guessed
	minLeaseTime  = time.Hour
	roundOverhead = 1.2 // factor of a round's compute time that averaging and waiting add
)

// plan resolves the job against the book, shows the plan, and says whether to start. A run whose leases are still open from
// an earlier process needs no offers, nor does one whose model is here.
func (r *requester) plan(ctx context.Context) (start bool, err error) {
	r.planned = time.Now()
	if err := r.openBuyer(); err != nil {
		return false, err
	}
	manifest := r.data.Manifest()
	trained, params, err := r.rec.Trained()
	if err != nil {
		return false, err
	}
	plan, err := workerPlan(r.rec)
	if err != nil {
		return false, err
	}
	r.params = trained
	if r.log.Round == 0 {
		r.log.Rounds = plan.RoundsAfter(0)
	}
	r.worker = plan
	tokens := r.rec.TokensPerPeerRound() * r.rec.Peers * r.rec.Rounds
	units, err := r.rec.WorkUnits(tokens)
	if err != nil {
		return false, err
	}
	e := PlanEvent{
		Type: "plan", Run: r.run.String(), Name: r.rec.Name, Model: r.rec.Model.Family, Parameters: params, Trained: trained, Init: r.initName(), MemoryBytes: r.memory,
		Dataset: r.rec.Dataset.String(), TrainTokens: manifest.TrainTokens, HeldOut: manifest.ValTokens, Shards: r.data.Shards(),
		Rounds: plan.RoundsAfter(0), LocalSteps: (r.rec.Steps() + plan.RoundsAfter(0) - 1) / plan.RoundsAfter(0), Pace: r.rec.Pace, Bits: r.rec.Bits, Peers: r.rec.Peers, Tokens: tokens, WorkUnits: units,
		Budget: credits(r.budget()), Rejected: map[string]int{}, Resumed: r.log.Round > 0,
	}
	if open, err := r.openLeases(); err != nil || len(open) > 0 || r.trained() {
		e.Resumed = true
		r.emit(e)
		return err == nil && !r.o.DryRun, err
	}
	q, err := r.query(r.memory)
	if err != nil {
		return false, err
	}
	found, enough := r.gather(ctx, q)
	e.Offers, e.Matching = r.exchange.Book().Len(), found.Matched
	for _, c := range found.Rejected {
		e.Rejected[c.Reason.String()] += c.Offers
	}
	r.estimate(&e, found.Offers)
	r.emit(e)
	if !enough && !r.o.DryRun {
		return false, r.tooFew(ctx, e)
	}
	r.gang.candidates = market.Candidates(r.id, found.Offers)
	return !r.o.DryRun && (r.o.Confirm == nil || r.o.Confirm()), ctx.Err()
}

// trained tells whether an earlier process took in the model of the last round: nothing is left to lease for.
func (r *requester) trained() bool { return r.final.Defined() }

// tooFew says why a run cannot start with the offers that there are.
func (r *requester) tooFew(ctx context.Context, e PlanEvent) error {
	if r.local != nil {
		if err := r.local.Lost(int(r.rec.Peers)); err != nil {
			return err
		}
	}
	select {
	case <-r.o.Stop:
		return ErrInterrupted
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var rejected []string
	for reason, n := range e.Rejected {
		rejected = append(rejected, fmt.Sprintf("%d for %s", n, reason))
	}
	slices.Sort(rejected)
	why := ""
	if len(rejected) > 0 {
		why = ", rejected " + strings.Join(rejected, ", ")
	}
	return fmt.Errorf("%w: %d of %d match, the job needs %d%s: widen market.query or market.max_price, lower market.peers, or wait; "+
		"`capanode offers --explain` lists each%s", ErrNoOffers, e.Matching, e.Offers, r.rec.Peers, why, and(clockHint(r.exchange.Book())))
}

// query is the job's filter with what its model and its price ceiling add.
func (r *requester) query(memory int64) (query.Query, error) {
	parts := []string{fmt.Sprintf("vram>=%dMiB", memory>>20+1)}
	if r.file.Market.Query != "" {
		parts = append(parts, "("+r.file.Market.Query+")")
	}
	if p := r.maxPrice(); p > 0 {
		parts = append(parts, "price<="+p.String())
	}
	q, err := query.Parse(strings.Join(parts, " "))
	if err != nil {
		return q, fmt.Errorf("%w: market.query: %w", ErrUsage, err)
	}
	return q, nil
}

// gather waits until enough offers match.
func (r *requester) gather(ctx context.Context, q query.Query) (found query.Result, enough bool) {
	wait := offerWait
	if r.local != nil {
		wait = localWait
	}
	if r.o.DryRun && r.o.Local > 0 {
		wait = 0 // nobody was started
	}
	deadline := time.Now().Add(wait)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		found = r.exchange.Book().Query(q)
		if len(market.Candidates(r.id, found.Offers)) >= int(r.rec.Peers) {
			return found, true
		}
		lost := r.local != nil && r.local.Lost(int(r.rec.Peers)) != nil
		if lost || !time.Now().Before(deadline) {
			return found, false
		}
		select {
		case <-ctx.Done():
			return found, false
		case <-r.o.Stop:
			return found, false
		case <-ticker.C:
			r.planned = time.Now() // the time to the first lease counts from a book that has the offers
		}
	}
}

// estimate fills in time and cost from the offers that would be taken.
func (r *requester) estimate(e *PlanEvent, offers []offer.Offer) {
	chosen := market.Candidates(r.id, offers)
	if len(chosen) > int(r.rec.Peers) {
		chosen = chosen[:r.rec.Peers]
	}
	if len(chosen) == 0 {
		return
	}
	slowest := chosen[0].Beacon.PerfMFLOPS
	for _, o := range chosen {
		slowest = min(slowest, o.Beacon.PerfMFLOPS)
	}
	units := float64(e.WorkUnits) / float64(e.Peers)
	best := units * 1000 / float64(max(slowest, 1)) // a work unit is 1000 MFLOP
	e.SecondsGuess = best * roundOverhead
	r.guess = e.SecondsGuess
	var low, high float64
	for _, o := range chosen {
		at := func(seconds float64) float64 {
			t := lease.Terms{Price: o.Beacon.Price, WorkRate: o.Beacon.Rate}
			m, err := meter.Amount(t, meter.Counters{SlotMs: uint64(seconds * 1000), Units: uint64(units)})
			if err != nil {
				return 0
			}
			return credits(m)
		}
		low += at(best)
		high += at(best * 2)
	}
	e.CostLow, e.CostHigh = low, high
}

// budget is the cap on the run's cost; 0 is none.
func (r *requester) budget() credit.Micro {
	if r.o.Budget > 0 {
		return r.o.Budget
	}
	return credit.Micro(r.file.Market.Budget*float64(credit.PerCredit) + 0.5)
}

// maxPrice is the dearest price per slot-hour to pay; 0 is any.
func (r *requester) maxPrice() credit.Micro {
	if r.o.MaxPrice > 0 {
		return r.o.MaxPrice
	}
	return credit.Micro(r.file.Market.MaxPrice*float64(credit.PerCredit) + 0.5)
}

// ask is what the run asks of every provider.
func (r *requester) ask(guess float64) market.Ask {
	seconds := max(guess*leaseSlack, minLeaseTime.Seconds())
	budget := r.budget()
	if budget == 0 {
		budget = lease.MaxBudget
	}
	return market.Ask{
		Run: r.link(), MaxSeconds: uint32(min(seconds, offer.MaxLeaseSeconds)), TickSeconds: tickSeconds,
		Budget: budget, MaxPrice: r.maxPrice(),
	}
}

// openLeases lists the run's leases that an earlier process left open.
func (r *requester) openLeases() ([]lease.Lease, error) {
	all, err := r.buyer.Leases()
	if err != nil {
		return nil, err
	}
	var open []lease.Lease
	for _, l := range all {
		if l.Terms.Run.Equals(r.run) && l.Live() {
			open = append(open, l)
		}
	}
	return open, nil
}

// isBudget tells whether a refusal means that the money is spent.
func isBudget(err error) bool { return errors.Is(err, meter.ErrBudget) }
