package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/capacloud/capanode/market/book"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/p2p"
)

// Offer is one line of the book.
type Offer struct {
	Peer     string  `json:"peer"`
	Class    string  `json:"class"`
	Slots    int     `json:"slots_free"`
	Total    int     `json:"slots_total"`
	VRAMMiB  uint32  `json:"vram_mib"`
	MFLOPS   uint64  `json:"mflops"`
	Measured bool    `json:"measured"`
	Price    float64 `json:"price"`                // credits per slot-hour
	Floor    float64 `json:"floor"`                // the same, interruptible
	Rate     float64 `json:"work_rate"`            // credits per million work units
	PerTFLOP float64 `json:"price_per_tflop_hour"` // price for each measured TFLOP/s
	Region   string  `json:"region,omitempty"`     //
	Age      float64 `json:"age_seconds"`          //
	Rejected string  `json:"rejected,omitempty"`   // why the query does not match
	Issued   int64   `json:"issued_unix_ms"`       //
	MaxLease uint32  `json:"max_lease_seconds"`    //
}

// Book is the answer to a query over the offers.
type Book struct {
	Offers   []Offer        `json:"offers"`
	Known    int            `json:"known"`    // offers in the book
	Matched  int            `json:"matched"`  // before the limit
	Rejected map[string]int `json:"rejected"` // by reason; with matched they add up to known
	Query    string         `json:"query"`
	Clock    string         `json:"clock,omitempty"` // what is wrong with this clock, or with those of others
}

// clockHint says that offers are refused for their times, and what to do; it is empty when none is.
func clockHint(b *book.Book) string {
	peers, ahead := b.Skewed()
	if peers == 0 {
		return ""
	}
	way := "ahead of"
	if ahead < 0 {
		ahead, way = -ahead, "behind"
	}
	return fmt.Sprintf("%d offers were refused because their clocks are about %s %s this one: set the clock (NTP), here when it is all of them",
		peers, ahead.Round(time.Second), way)
}

// offers answers a query: q, sort, limit and explain (which lists rejected offers with their reason).
func (n *Node) offers(v url.Values) (Book, error) {
	b := Book{Rejected: map[string]int{}, Query: v.Get("q"), Offers: []Offer{}}
	q, err := parseQuery(v)
	if err != nil || n.exchange == nil {
		return b, err
	}
	known := n.exchange.Book()
	found := known.Query(q)
	b.Known, b.Matched, b.Clock = known.Len(), found.Matched, clockHint(known)
	for _, o := range found.Offers {
		b.Offers = append(b.Offers, offerLine(o.Peer.String(), o.Beacon, ""))
	}
	for _, c := range found.Rejected {
		b.Rejected[c.Reason.String()] += c.Offers
	}
	if v.Get("explain") != "" {
		for _, r := range known.Explain(q) {
			b.Offers = append(b.Offers, offerLine(r.Offer.Peer.String(), r.Offer.Beacon, r.Reason.String()))
		}
	}
	return b, nil
}

func parseQuery(v url.Values) (query.Query, error) {
	q, err := query.Parse(v.Get("q"))
	if err == nil && v.Get("sort") != "" {
		q, err = q.SortBy(v.Get("sort"))
	}
	if err != nil {
		return q, fmt.Errorf("%w: query: %w", ErrUsage, err)
	}
	limit, err := atoi(v.Get("limit"))
	return q.Limit(limit), err
}

// OffersOptions says how to look at the book.
type OffersOptions struct {
	Home    string
	Config  Config
	Log     *slog.Logger
	Query   string
	Sort    string
	Limit   int
	Explain bool
	Wait    int           // matches to wait for
	Timeout time.Duration // at most so long
}

func (o OffersOptions) values() url.Values {
	v := url.Values{"q": {o.Query}, "sort": {o.Sort}, "limit": {fmt.Sprint(o.Limit)}}
	if o.Explain {
		v.Set("explain", "1")
	}
	return v
}

// Offers shows the book: that of the node that runs on this home, or what connected peers know right now.
func Offers(ctx context.Context, o OffersOptions) (Book, error) {
	if _, err := parseQuery(o.values()); err != nil {
		return Book{}, err
	}
	look := func() (Book, error) { return View[Book](ctx, o.Home, o.Config, "offers", o.values()) }
	if _, err := callAPI(ctx, o.Home, "status", nil); errors.Is(err, errNoAPI) {
		n, err := openNode(ctx, o.Home, o.Config, o.Log)
		if err != nil {
			return Book{}, err
		}
		defer n.Close()
		if err := n.join(ctx, p2p.Researcher); err != nil {
			return Book{}, err
		}
		if err := n.reach(ctx); err != nil {
			return Book{}, err
		}
		look = func() (Book, error) { return n.offers(o.values()) }
	}
	deadline := time.Now().Add(o.Timeout)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		b, err := look()
		if err != nil || b.Matched >= max(o.Wait, 1) {
			return b, err
		}
		if !time.Now().Before(deadline) {
			if b.Matched < o.Wait {
				err = fmt.Errorf("%w: %d of %d offers match, waited for %d%s", ErrNoOffers, b.Matched, b.Known, o.Wait, and(b.Clock))
			}
			return b, err
		}
		select {
		case <-ctx.Done():
			return b, ctx.Err()
		case <-ticker.C:
		}
	}
}

// and adds a clause to a sentence, if there is one.
func and(clause string) string {
	if clause == "" {
		return ""
	}
	return "; " + clause
}

func offerLine(id string, b offer.Beacon, rejected string) Offer {
	return Offer{
		Peer: id, Class: b.Class, Slots: int(b.Free), Total: int(b.Total), VRAMMiB: b.VRAMMiB, MFLOPS: b.PerfMFLOPS, Measured: !b.Claimed,
		Price: credits(b.Price), Floor: credits(b.Floor), Rate: credits(b.Rate), PerTFLOP: credits(b.Price) / (float64(max(b.PerfMFLOPS, 1)) / 1e6),
		Region: b.Region, Age: seconds(time.Since(b.Issued())), Rejected: rejected, Issued: b.IssuedMs, MaxLease: b.MaxLease,
	}
}
