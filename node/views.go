package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"sort"
	"strconv"
	"time"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/ledger"
)

// views lists the questions that a node answers about itself, running or not.
func (n *Node) views() map[string]view {
	return map[string]view{
		"status":      func(ctx context.Context, _ url.Values) (any, error) { return n.status(ctx) },
		"jobs":        func(context.Context, url.Values) (any, error) { return n.runs.list() },
		"job":         func(_ context.Context, q url.Values) (any, error) { return n.runs.find(q.Get("run")) },
		"leases":      func(context.Context, url.Values) (any, error) { return n.leaseLines() },
		"lease":       func(_ context.Context, q url.Values) (any, error) { return n.leaseShow(q.Get("lease")) },
		"ledger":      func(context.Context, url.Values) (any, error) { return n.ledgerShow() },
		"verify":      func(context.Context, url.Values) (any, error) { return ledger.Verify(n.db) },
		"statement":   func(_ context.Context, q url.Values) (any, error) { return n.statement(q.Get("from"), q.Get("to")) },
		"checkpoints": func(ctx context.Context, _ url.Values) (any, error) { return n.weighed(ctx) },
		"offers":      func(_ context.Context, q url.Values) (any, error) { return n.offers(q) },
		"objects":     func(ctx context.Context, _ url.Values) (any, error) { return n.objects(ctx) },
	}
}

// Status is a node at a glance.
type Status struct {
	Peer      string   `json:"peer"`
	Home      string   `json:"home"`
	Running   bool     `json:"running"` // a process serves this home
	Network   string   `json:"network"`
	Addresses []string `json:"addresses,omitempty"`
	Peers     int      `json:"peers"`  // connected
	Offers    int      `json:"offers"` // in the book
	Leases    int      `json:"leases"` // open
	Runs      int      `json:"runs"`
	Objects   int      `json:"objects"`
	Bytes     int64    `json:"bytes"` // stored
	Quota     int64    `json:"quota"`
	Earned    string   `json:"earned"` // credits
	Owed      string   `json:"owed"`
}

func (n *Node) status(ctx context.Context) (Status, error) {
	s := Status{Peer: n.id.String(), Home: n.home.dir, Network: n.cfg.Network, Running: n.net != nil, Addresses: n.addresses()}
	if n.net != nil {
		s.Peers, s.Offers = len(n.net.Connected()), n.exchange.Book().Len()
	}
	leases, err := n.db.Leases()
	if err != nil {
		return s, err
	}
	for _, l := range leases {
		if l.Live() {
			s.Leases++
		}
	}
	all, err := n.runs.list()
	if err != nil {
		return s, err
	}
	objects, err := n.store.List(ctx)
	if err != nil {
		return s, err
	}
	use := n.store.Usage()
	s.Runs, s.Objects, s.Bytes, s.Quota = len(all), len(objects), use.Used, use.Quota
	balances, err := n.db.Balances()
	s.Earned, s.Owed = amountOf(balances[ledger.Earned(n.id)]), amountOf(-balances[ledger.Owed(n.id)])
	return s, err
}

func amountOf(micro int64) string {
	if micro < 0 {
		return "-" + credit.Micro(-micro).String()
	}
	return credit.Micro(micro).String()
}

// LeaseLine is one lease of this home.
type LeaseLine struct {
	Lease   string      `json:"lease"`
	Role    string      `json:"role"`
	Other   string      `json:"other"` // the peer at the other end
	Run     string      `json:"run"`
	Slot    uint32      `json:"slot"`
	Epoch   uint64      `json:"epoch"`
	State   string      `json:"state"`
	Reason  string      `json:"reason,omitempty"`
	Price   string      `json:"price"`  // credits per slot-hour
	Amount  string      `json:"amount"` // credits, by the newest receipt
	Tokens  uint64      `json:"tokens"`
	Units   uint64      `json:"work_units"`
	Receipt uint64      `json:"receipt"` // nonce of the newest
	History []LeaseStep `json:"history,omitempty"`
}

// LeaseStep is one line of a lease's timeline.
type LeaseStep struct {
	At    time.Time `json:"at"`
	State string    `json:"state"`
	Note  string    `json:"note,omitempty"`
}

func (n *Node) leaseLine(l lease.Lease) (LeaseLine, error) {
	line := LeaseLine{Lease: l.ID.String(), Role: string(l.Role), Other: l.Other().String(), Run: l.Terms.Run.String(), Slot: l.Terms.Slot,
		Epoch: l.Epoch, State: string(l.Phase), Reason: string(l.Reason), Price: l.Terms.Price.String(), Amount: credit.Micro(0).String()}
	newest, err := n.db.Newest(l)
	if err == nil && newest != nil {
		line.Amount, line.Tokens, line.Units, line.Receipt = newest.Amount.String(), newest.Tokens, newest.Units, newest.Nonce
	}
	return line, err
}

// leaseLines lists the leases of this home, the newest first.
func (n *Node) leaseLines() ([]LeaseLine, error) {
	all, err := n.db.Leases()
	if err != nil {
		return nil, err
	}
	sort.Slice(all, func(i, j int) bool { return started(all[i]) > started(all[j]) })
	lines := make([]LeaseLine, 0, len(all))
	for _, l := range all {
		line, err := n.leaseLine(l)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func started(l lease.Lease) int64 {
	if len(l.History) == 0 {
		return 0
	}
	return l.History[0].AtMs
}

// leaseShow is one lease with its timeline, by ID or the start of one.
func (n *Node) leaseShow(what string) (LeaseLine, error) {
	all, err := n.db.Leases()
	if err != nil {
		return LeaseLine{}, err
	}
	for _, l := range all {
		if id := l.ID.String(); what == "" || len(what) < 4 || len(what) > len(id) || id[:len(what)] != what {
			continue
		}
		line, err := n.leaseLine(l)
		for _, s := range l.History {
			line.History = append(line.History, LeaseStep{time.UnixMilli(s.AtMs).UTC(), string(s.Phase), s.Note})
		}
		return line, err
	}
	return LeaseLine{}, fmt.Errorf("lease %q: %w; `capanode lease list` shows the leases of this home", what, ErrNotFound)
}

// Balance is one account of the ledger.
type Balance struct {
	Account string `json:"account"`
	Credits string `json:"credits"`
}

func (n *Node) ledgerShow() ([]Balance, error) {
	all, err := n.db.Balances()
	if err != nil {
		return nil, err
	}
	out := make([]Balance, 0, len(all))
	for account, micro := range all {
		out = append(out, Balance{string(account), amountOf(micro)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Account < out[j].Account })
	return out, nil
}

// StatementRow is one booked receipt.
type StatementRow struct {
	At        time.Time `json:"at"`
	Lease     string    `json:"lease"`
	Receipt   uint64    `json:"receipt"`
	Requester string    `json:"requester"`
	Provider  string    `json:"provider"`
	Added     string    `json:"added"` // credits
	Total     string    `json:"total"` // of the lease so far
}

// statement lists the booked receipts between two dates, RFC 3339 or YYYY-MM-DD; empty means open.
func (n *Node) statement(from, to string) ([]StatementRow, error) {
	a, err := parseTime(from)
	if err != nil {
		return nil, err
	}
	b, err := parseTime(to)
	if err != nil {
		return nil, err
	}
	rows, err := ledger.Statement(n.db, a, b)
	out := make([]StatementRow, 0, len(rows))
	for _, r := range rows {
		out = append(out, StatementRow{r.At.UTC(), r.Lease.String(), r.Nonce, string(r.Requester), string(r.Provider), r.Added.String(), r.Total.String()})
	}
	return out, err
}

func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: %q is no time; write 2026-11-23 or 2026-11-23T10:00:00Z", ErrUsage, text)
}

// Object is one stored object.
type Object struct {
	CID     string    `json:"cid"`
	Kind    string    `json:"kind"`
	Class   string    `json:"class"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	Pins    []string  `json:"pins,omitempty"`
	Damaged bool      `json:"damaged,omitempty"`
	Path    string    `json:"path,omitempty"` // of a file in place
}

func (n *Node) objects(ctx context.Context) ([]Object, error) {
	pins, err := n.store.Pins(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string][]string{}
	for _, p := range pins {
		names[p.CID.String()] = append(names[p.CID.String()], p.Name)
	}
	all, err := n.store.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Object, 0, len(all))
	for _, o := range all {
		c := o.CID.String()
		out = append(out, Object{c, o.Kind.String(), o.Class.String(), o.Size, o.Created.UTC(), names[c], o.Damaged, o.Path})
	}
	return out, nil
}

// View asks a home one question and decodes the answer. A running node answers for its home; otherwise the home is opened.
func View[T any](ctx context.Context, home string, cfg Config, name string, q url.Values) (out T, err error) {
	answer, err := ask(ctx, home, cfg, name, q)
	if err != nil {
		return out, err
	}
	if typed, ok := answer.(T); ok {
		return typed, nil
	}
	raw, ok := answer.(json.RawMessage)
	if !ok {
		return out, fmt.Errorf("view %s: got %T", name, answer)
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, fmt.Errorf("view %s: %w; the running node may be of another version", name, err)
	}
	return out, nil
}

// atoi reads a count from a query string; empty is 0.
func atoi(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %q is no count", ErrUsage, text)
	}
	return n, nil
}
