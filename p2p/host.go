package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// Host is a node on the real network. It implements [Network] and [Router] over go-libp2p.
type Host struct {
	cfg   Config
	log   *slog.Logger
	boot  []peer.AddrInfo
	cache []peer.AddrInfo // peers of the last run

	host    host.Host
	dht     *router
	gossip  *pubsub.PubSub
	mdns    mdns.Service
	traffic *metrics.BandwidthCounter
	reach   atomic.Int32 // network.Reachability

	ctx  context.Context // ends when the host closes
	stop context.CancelFunc
	work sync.WaitGroup // handlers and background loops

	mu      sync.Mutex
	closed  bool
	keeping bool // the bootstrap loop runs
	woken   chan struct{}
	topics  map[string]*topic
}

var (
	_ Network = (*Host)(nil)
	_ Router  = (*Host)(nil)
)

// NewHost starts a host: it listens, but dials nobody until [Host.Bootstrap]. The context bounds the start only.
// A port that another process holds is [ErrPortInUse]; an invalid configuration is [ErrConfig].
func NewHost(ctx context.Context, cfg Config) (*Host, error) {
	cfg, boot, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	plan, err := planListen(cfg.Listen)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("p2p: start: %w", err)
	}
	h := &Host{
		cfg: cfg, log: cfg.Logger.With("room", "p2p"), boot: boot, traffic: metrics.NewBandwidthCounter(),
		topics: make(map[string]*topic), woken: make(chan struct{}),
	}
	h.ctx, h.stop = context.WithCancel(context.Background())
	if cfg.PeerCache != "" {
		h.cache = h.readCache()
	}
	if err := h.start(plan); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) start(plan listenPlan) error {
	if err := h.startHost(plan); err != nil {
		return err
	}
	for _, want := range plan.addrs { // libp2p is content when one of the addresses works
		if !slices.ContainsFunc(h.host.Network().ListenAddresses(), want.Equal) {
			return fmt.Errorf("p2p: listen on %s: %w", want, ErrPortInUse)
		}
	}
	if err := h.startGossip(); err != nil {
		return err
	}
	changes, err := h.host.EventBus().Subscribe(new(event.EvtLocalReachabilityChanged))
	if err != nil {
		return fmt.Errorf("p2p: watch reachability: %w", err)
	}
	h.background(func() {
		defer changes.Close()
		for {
			select {
			case e := <-changes.Out():
				if change, ok := e.(event.EvtLocalReachabilityChanged); ok {
					h.reach.Store(int32(change.Reachability))
					h.log.Info("reachability changed", "now", h.Stats().Reachability)
				}
			case <-h.ctx.Done():
				return
			}
		}
	})
	if h.cfg.PeerCache != "" {
		h.background(h.keepCache)
	}
	if h.cfg.MDNS {
		h.startMDNS()
	}
	return nil
}

func (h *Host) startHost(plan listenPlan) error {
	resources, conns, err := newResources(h.cfg.Role)
	if err != nil {
		return err
	}
	options := []libp2p.Option{
		libp2p.Identity(h.cfg.Identity),
		libp2p.ListenAddrs(plan.addrs...),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Transport(quic.NewTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(conns),
		libp2p.BandwidthReporter(h.traffic),
		libp2p.UserAgent("capanode"),
		libp2p.DisableMetrics(),
		libp2p.DisableRelay(),
		libp2p.Routing(func(inner host.Host) (routing.PeerRouting, error) {
			var err error
			h.dht, err = newDHT(inner, h.cfg, plan)
			return h.dht, err
		}),
	}
	if !plan.loopback {
		options = append(options, libp2p.NATPortMap())
	}
	if h.cfg.Role == Bootstrap {
		options = append(options, libp2p.EnableNATService(), libp2p.ForceReachabilityPublic())
	}
	h.host, err = libp2p.New(options...)
	if err != nil {
		return errors.Join(fmt.Errorf("p2p: start libp2p: %w", err), conns.Close(), resources.Close())
	}
	return nil
}

// background runs f until the host closes; f must return when h.ctx ends.
func (h *Host) background(f func()) {
	if h.begin() {
		go func() {
			defer h.work.Done()
			f()
		}()
	}
}

// begin registers work that Close waits for; false means that the host is closed.
func (h *Host) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.work.Add(1)
	return true
}

// usable says why an operation cannot start.
func (h *Host) usable(ctx context.Context) error {
	if h.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

// Close leaves the network and waits for handlers and background work. A handler must not call it.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	h.mu.Unlock()
	if h.host != nil && h.cfg.PeerCache != "" {
		h.writeCache() // while connections still tell who was worth keeping
	}
	h.stop()
	var errs []error
	if h.mdns != nil {
		errs = append(errs, h.mdns.Close())
	}
	if h.host != nil {
		errs = append(errs, h.host.Close())
	}
	h.work.Wait() // the DHT must not close under a refresh
	if h.dht != nil {
		errs = append(errs, h.dht.Close())
	}
	return errors.Join(errs...)
}

// ID implements [Network].
func (h *Host) ID() peer.ID { return h.host.ID() }

// Key implements [Network].
func (h *Host) Key() crypto.PrivKey { return h.cfg.Identity }

// Addrs lists the addresses under which others may dial this host, each with its /p2p/ peer ID.
func (h *Host) Addrs() []string {
	self, err := ma.NewComponent("p2p", h.ID().String())
	if err != nil {
		return nil // a peer ID is always a component
	}
	var texts []string
	for _, a := range h.host.Addrs() {
		texts = append(texts, a.AppendComponent(self).String())
	}
	return texts
}

// Stats is what a host has done since it started.
type Stats struct {
	BytesIn, BytesOut int64 // stream payload and framing, up to a second old
	Connections       int
	Reachability      string // "public", "private" or "unknown", as other nodes see this one
}

// Stats returns the current figures.
func (h *Host) Stats() Stats {
	totals := h.traffic.GetBandwidthTotals()
	s := Stats{BytesIn: totals.TotalIn, BytesOut: totals.TotalOut, Connections: len(h.host.Network().Conns())}
	switch network.Reachability(h.reach.Load()) {
	case network.ReachabilityPublic:
		s.Reachability = "public"
	case network.ReachabilityPrivate:
		s.Reachability = "private"
	default:
		s.Reachability = "unknown"
	}
	return s
}

// Connect implements [Router].
func (h *Host) Connect(ctx context.Context, to peer.AddrInfo) error {
	if err := h.usable(ctx); err != nil {
		return fmt.Errorf("p2p: connect to %s: %w", to.ID, err)
	}
	if err := h.host.Connect(ctx, to); err != nil {
		return fmt.Errorf("p2p: connect to %s: %w: %w", to.ID, ErrUnreachable, err)
	}
	return nil
}

// Connected implements [Router].
func (h *Host) Connected() []peer.ID { return sortPeers(h.host.Network().Peers()) }

func sortPeers(ids []peer.ID) []peer.ID {
	slices.SortFunc(ids, func(a, b peer.ID) int { return strings.Compare(string(a), string(b)) })
	return ids
}

// protocolPrefix keeps the networks apart: nodes of other names find no common DHT protocol.
func protocolPrefix(name string) protocol.ID { return protocol.ID("/capanode/" + name) }
