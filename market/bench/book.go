package bench

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/capacloud/capanode/market/book"
	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
)

// searched is the query that is timed: three conditions that about one offer in six meets. scan says the same in Go.
const searched = "vram>=16GiB price<0.3 region in [eu, us]"

func matches(b offer.Beacon) bool {
	return b.Free > 0 && b.VRAMMiB >= 16<<10 && b.Price < 3*credit.PerCredit/10 && (b.Region == "eu" || b.Region == "us")
}

// envelopes makes so many valid offers of as many providers, from a fixed seed.
func envelopes(n int, now time.Time) ([][]byte, error) {
	rng, keys := rand.New(rand.NewPCG(1, 1)), rand.NewChaCha8([32]byte{1})
	classes, regions := []string{"RTX 3060", "RTX 3090", "RTX 4090", "A100", "H100"}, []string{"eu", "us", "asia", ""}
	out := make([][]byte, n)
	for i := range out {
		key, _, err := crypto.GenerateEd25519Key(keys)
		if err != nil {
			return nil, err
		}
		total := 1 + rng.Uint32N(8)
		asked := credit.Micro(50_000 + rng.Uint64N(950_000))
		out[i], err = offer.Seal(key, offer.Beacon{
			Version: offer.Version, Seq: uint64(now.UnixMilli()) - rng.Uint64N(1e6), IssuedMs: now.UnixMilli() - rng.Int64N(60_000), TTL: offer.MaxTTL,
			Class: classes[rng.IntN(len(classes))], VRAMMiB: (8 + 8*rng.Uint32N(10)) << 10, PerfMFLOPS: 10_000_000 + rng.Uint64N(990_000_000),
			Price: asked, Floor: asked / 2, Rate: credit.Micro(rng.Uint64N(100)), Free: uint16(1 + rng.Uint32N(total)), Total: uint16(total),
			MaxLease: 3600 + rng.Uint32N(86_400), Region: regions[rng.IntN(len(regions))],
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// measureBook fills a book with offers and queries it, all on one core.
func (f *Figures) measureBook(ctx context.Context, envs [][]byte, repeats int) (err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, env := range envs {
		f.OfferBytes += float64(len(env)) / float64(len(envs))
	}
	if f.Baseline.Signatures, err = signatures(envs); err != nil {
		return err
	}
	b := book.New(nil)
	f.Beacons, err = rate(len(envs), func(i int) error {
		_, err := b.Apply(envs[i])
		return err
	})
	if err != nil {
		return err
	}
	f.Duplicates, err = rate(len(envs), func(i int) error {
		if _, err := b.Apply(envs[i]); !errors.Is(err, offer.ErrDuplicate) {
			return fmt.Errorf("offer %d for the second time: %w", i, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.QueryP50, f.QueryP99, err = queries(ctx, b, repeats)
	if err != nil {
		return err
	}
	f.Baseline.Scan, err = scans(ctx, b, repeats)
	return err
}

// measureLargeBook queries a book of many more offers.
func (f *Figures) measureLargeBook(ctx context.Context, envs [][]byte, repeats int) (err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	b := book.New(nil)
	for _, env := range envs {
		if _, err := b.Apply(env); err != nil {
			return err
		}
	}
	f.LargeP50, f.LargeP99, err = queries(ctx, b, repeats)
	return err
}

// queries times the query over a book.
func queries(ctx context.Context, b *book.Book, repeats int) (p50, p99 float64, err error) {
	q, err := query.Parse(searched)
	if err != nil {
		return 0, 0, err
	}
	times, err := repeat(ctx, repeats, func() (time.Time, error) {
		b.Query(q)
		return time.Now(), nil
	})
	if err != nil {
		return 0, 0, err
	}
	return percentile(times, 0.5), percentile(times, 0.99), nil
}

// scans times the query as a loop, which must find as many.
func scans(ctx context.Context, b *book.Book, repeats int) (p50 float64, err error) {
	q, err := query.Parse(searched)
	if err != nil {
		return 0, err
	}
	offers, found := b.Offers(), b.Query(q).Matched
	times, err := repeat(ctx, repeats, func() (time.Time, error) {
		if n := scan(offers); n != found {
			return time.Time{}, fmt.Errorf("the query finds %d offers, a loop over them %d", found, n)
		}
		return time.Now(), nil
	})
	if err != nil {
		return 0, err
	}
	return percentile(times, 0.5), nil
}

// scan is the query as a loop: it returns the number of matches, which it has sorted by price.
func scan(offers []offer.Offer) int {
	var found []offer.Offer
	for i := range offers {
		if matches(offers[i].Beacon) {
			found = append(found, offers[i])
		}
	}
	slices.SortFunc(found, func(a, b offer.Offer) int {
		return cmp.Or(cmp.Compare(a.Beacon.Price, b.Beacon.Price), cmp.Compare(a.Peer, b.Peer))
	})
	return len(found)
}

// signatures is the rate at which bare Ed25519 checks as many messages of the same sizes.
func signatures(envs [][]byte) (float64, error) {
	public, private, err := ed25519.GenerateKey(rand.NewChaCha8([32]byte{2}))
	if err != nil {
		return 0, err
	}
	signed := make([][]byte, len(envs))
	for i, env := range envs {
		signed[i] = ed25519.Sign(private, env)
	}
	return rate(len(envs), func(i int) error {
		if !ed25519.Verify(public, envs[i], signed[i]) {
			return fmt.Errorf("signature %d does not verify", i)
		}
		return nil
	})
}

// rate calls f for 0 to n-1 and returns calls per second.
func rate(n int, f func(i int) error) (float64, error) {
	start := time.Now()
	for i := range n {
		if err := f(i); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
