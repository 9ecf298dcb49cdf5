package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/detect"
	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/worker"
)

// ProvideOptions says what a provider sells and how.
type ProvideOptions struct {
	Home   string
	Config Config
	Log    *slog.Logger
	Stop   <-chan struct{} // closed to finish the step, settle and end
	Emit   Emit

	Device   string // selector of package detect
	Slots    int    // 0 is one for each device
	Threads  int    // processors that one slot computes with; 0 is all
	Price    credit.Micro
	Floor    credit.Micro
	WorkRate credit.Micro
	MaxLease time.Duration
	Region   string
	MaxTemp  float64      // °C at which the slots are taken off the market; 0 is the default
	Schedule gpu.Schedule // weekly hours of sale; empty is always
}

// ProviderEvent tells what a provider does.
type ProviderEvent struct {
	Type    string  `json:"type"` // provider
	Peer    string  `json:"peer"`
	State   string  `json:"state"` // ready, leased, working, done, closed, paused, stopped
	Address string  `json:"address,omitempty"`
	Device  string  `json:"device,omitempty"`
	Slots   int     `json:"slots,omitempty"`
	Free    int     `json:"free"`
	MFLOPS  uint64  `json:"mflops,omitempty"` // measured speed of one slot
	Price   float64 `json:"price,omitempty"`  // credits per slot-hour
	Lease   string  `json:"lease,omitempty"`
	Run     string  `json:"run,omitempty"`
	Round   uint64  `json:"round,omitempty"`
	Loss    float64 `json:"loss,omitempty"`
	Tokens  uint64  `json:"tokens,omitempty"`
	Earned  float64 `json:"earned"` // credits, all leases
	Detail  string  `json:"detail,omitempty"`
}

// provider sells the slots of this machine and works for whoever leases them.
type provider struct {
	*Node
	o      ProvideOptions
	device gpu.Device
	engine gomlx.Device // how the engine computes on it
	limit  int64        // memory of one slot, bytes
	states *worker.States
	seller *market.Seller
	beacon offer.Beacon

	offering sync.Mutex // orders offers

	mu    sync.Mutex // orders events
	quit  chan struct{}
	tasks sync.Map // lease.ID → *task, while it works
}

// Provide sells slots until stop is closed (finish the step, settle, end) or the context ends (stop at once; leases are
// resumed by the next start).
func Provide(ctx context.Context, o ProvideOptions) (err error) {
	n, err := openNode(ctx, o.Home, o.Config, o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.Stop = n.stopWith(ctx, o.Stop)
	p := &provider{Node: n, o: o, quit: make(chan struct{})}
	twin := make(chan error, 1) // both look outside and take their time
	go func() { twin <- n.alone(ctx) }()
	err = p.prepare(ctx)
	if err = errors.Join(err, <-twin); err != nil {
		return err
	}
	if err := n.join(ctx, p2p.Provider); err != nil {
		return err
	}
	n.scrub()
	if err := n.reach(ctx); err != nil {
		return err
	}
	if err := p.open(); err != nil {
		return err
	}
	p.emit(ProviderEvent{State: "ready", Address: bestAddress(p.addresses()), Device: p.device.Info().Name,
		Slots: o.Slots, Free: p.seller.Free(), MFLOPS: p.beacon.PerfMFLOPS, Price: credits(o.Price)})
	p.watch(ctx)
	return p.finish(ctx)
}

// prepare opens and times the device.
func (p *provider) prepare(ctx context.Context) error {
	devices, finding, err := openDevice(ctx, p.o.Config, p.o.Device)
	if err != nil {
		return err
	}
	p.log.Info("device", "found", finding.Found)
	p.device = devices[0]
	for _, d := range devices {
		p.onClose(d.Close)
	}
	lock, err := gpu.Acquire(p.lockDir(), p.device.Info().ID)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	p.onClose(lock.Release)
	if p.o.Slots == 0 {
		p.o.Slots = 1
	}
	if p.o.Threads == 0 {
		p.o.Threads = max(1, runtime.NumCPU()/p.o.Slots)
	}
	info := p.device.Info()
	if p.engine, err = engineFor(p.o.Config, info); err != nil {
		return err
	}
	p.limit = engineMemory(ctx, p.device) / int64(p.o.Slots)
	speed, err := p.speed(ctx)
	if err != nil {
		return err
	}
	p.beacon = offer.Beacon{
		Class: info.Class, VRAMMiB: uint32(min(p.limit>>20, offer.MaxVRAMMiB)), PerfMFLOPS: speed,
		Price: p.o.Price, Floor: min(p.o.Floor, p.o.Price), Rate: p.o.WorkRate, Total: uint16(p.o.Slots),
		MaxLease: uint32(p.o.MaxLease / time.Second), Region: p.o.Region,
	}
	return nil
}

// lockDir is where device locks live: one folder per machine for cards, the home for processors, which homes may share.
func (p *provider) lockDir() string {
	if p.device.Info().Kind == gpu.KindCUDA {
		return filepath.Join(os.TempDir(), "capanode-devices")
	}
	return p.home.Path("devices")
}

// open puts the slots on the market and resumes the leases of an earlier process.
func (p *provider) open() (err error) {
	p.states = worker.NewStates(p.net)
	p.seller, err = market.NewSeller(market.SellerConfig{
		Net: p.net, DB: p.db, Slots: p.o.Slots, Prices: market.Prices{PerHour: p.o.Price, WorkRate: p.o.WorkRate},
		MaxSeconds: p.beacon.MaxLease, OnePerRun: true, Log: p.log,
		OnActive: p.work,
		OnDrain: func(l lease.Lease) {
			if t, ok := p.tasks.Load(l.ID); ok {
				t.(*task).stop(l.Reason)
			}
		},
		OnClose: func(l lease.Lease) {
			if err := p.left(context.Background(), l.Terms.Run); err != nil {
				p.log.Warn("release checkpoints", "err", err)
			}
			p.emit(ProviderEvent{State: "closed", Lease: l.ID.Short(), Run: l.Terms.Run.String(), Free: p.seller.Free(), Detail: string(l.Reason)})
		},
		OnFree: p.advertise,
	})
	if err != nil {
		return err
	}
	p.onClose(func() error { p.seller.Close(); return nil })
	if err := p.pruneSnapshots(); err != nil {
		return err
	}
	p.seller.Start()
	p.advertise()
	return nil
}

// left releases a run's checkpoints when no lease of it is live any more.
func (p *provider) left(ctx context.Context, run wire.Link) error {
	all, err := p.seller.Leases()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Live() && l.Terms.Run.Equals(run.Cid) {
			return nil
		}
	}
	return errors.Join(p.unpinAll(ctx, []string{initPin(run.String())}), p.releaseCheckpoints(ctx, run.String()))
}

// advertise announces the slots that are free now.
func (p *provider) advertise() {
	p.offering.Lock() // the newest count must go out last
	defer p.offering.Unlock()
	b := p.beacon
	b.Free = uint16(p.seller.Free())
	if err := p.exchange.Advertise(b); err != nil {
		p.log.Warn("advertise", "err", err)
	}
}

// watch runs until the provider is asked to stop, taking the slots off the market while the owner's limits say so.
func (p *provider) watch(ctx context.Context) {
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	governor := p.governor()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.o.Stop:
			return
		case <-ticker.C:
			governor = p.govern(ctx, governor)
		}
	}
}

// finish drains the leases: each worker ends its round, settles and closes. When the context ends, leases stay open for
// the next process.
func (p *provider) finish(ctx context.Context) error {
	p.seller.SetOpen(0)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	close(p.quit)
	all, err := p.seller.Leases()
	if err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, lease.DrainTime)
	defer cancel()
	for _, l := range all {
		if !l.Live() {
			continue
		}
		if err := p.seller.Drain(deadline, l.ID, lease.Shutdown); err != nil {
			p.log.Debug("drain", "lease", l.ID.Short(), "err", err)
		}
		if err := p.settled(deadline, l.ID); err != nil {
			p.log.Warn("lease stays open for the next start", "lease", l.ID.Short(), "err", err)
		}
	}
	p.emit(ProviderEvent{State: "stopped"})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// settled waits until a lease is closed.
func (p *provider) settled(ctx context.Context, id lease.ID) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		l, err := p.seller.Get(id)
		if err != nil || l.Phase == lease.Closed {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// emit fills in what every event carries and shows it.
func (p *provider) emit(e ProviderEvent) {
	if p.o.Emit == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e.Type, e.Peer = "provider", p.id.String()
	if balances, err := p.db.Balances(); err == nil {
		e.Earned = float64(balances[ledger.Earned(p.id)]) / float64(credit.PerCredit)
	}
	p.o.Emit(e)
}

// openDevice opens what the selector names. A card without a plugin to compute with is left alone when auto found it, and
// an error when it was asked for.
func openDevice(ctx context.Context, c Config, selector string) ([]gpu.Device, detect.Finding, error) {
	devices, finding, err := detect.Open(ctx, selector)
	if err != nil {
		return nil, finding, err
	}
	info := devices[0].Info()
	_, unusable := engineFor(c, info)
	if unusable == nil {
		return devices, finding, nil
	}
	for _, d := range devices {
		err = errors.Join(err, d.Close())
	}
	if err != nil || selector != "auto" {
		return nil, finding, errors.Join(err, fmt.Errorf("%w; or use --device cpu", unusable))
	}
	devices, finding, err = detect.Open(ctx, "cpu")
	finding.Found = info.Name + " is here, but there is no plugin to compute on it; offering " + finding.Found
	finding.Next = pluginHint
	return devices, finding, err
}
