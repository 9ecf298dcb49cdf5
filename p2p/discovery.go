package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/multiformats/go-multihash"
)

// newDHT starts the private DHT. A DHT of clients only finds nobody, so whoever is surely reachable, or might be, serves.
func newDHT(h host.Host, cfg Config, plan listenPlan) (*router, error) {
	mode := dht.ModeAuto
	switch {
	case cfg.Role == Bootstrap || plan.loopback || plan.public:
		mode = dht.ModeServer
	case cfg.Role == Provider:
		mode = dht.ModeAutoServer
	}
	d, err := dht.New(h,
		dht.Mode(mode),
		dht.ProtocolPrefix(protocolPrefix(cfg.Network)),
		dht.DisableValues(),
		dht.RoutingTableRefreshPeriod(5*time.Minute))
	if err != nil {
		return nil, fmt.Errorf("p2p: start DHT: %w", err)
	}
	return &router{d, h.Network()}, nil
}

// Provide implements [Router]. Records last 48 hours; owners repeat them. An error that is [ErrUnreachable] says that no
// DHT node is known yet: the record is kept here and is served, but nobody else holds it.
func (h *Host) Provide(ctx context.Context, c cid.Cid) error {
	if err := h.usable(ctx); err != nil {
		return fmt.Errorf("p2p: provide %s: %w", c, err)
	}
	if !c.Defined() {
		return errors.New("p2p: provide: undefined CID")
	}
	h.dht.awaitTable(ctx)
	if err := h.dht.Provide(ctx, c, true); err != nil {
		return fmt.Errorf("p2p: provide %s: %w: %w", c, ErrUnreachable, err)
	}
	return nil
}

// Providers implements [Router]. Their addresses are remembered for a dial soon after.
func (h *Host) Providers(ctx context.Context, c cid.Cid, limit int) ([]peer.ID, error) {
	if err := h.usable(ctx); err != nil {
		return nil, fmt.Errorf("p2p: providers of %s: %w", c, err)
	}
	if !c.Defined() {
		return nil, errors.New("p2p: providers: undefined CID")
	}
	if limit <= 0 {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.dht.awaitTable(ctx)
	var ids []peer.ID
	for info := range h.dht.FindProvidersAsync(ctx, c, limit+1) { // this host may be among them
		if info.ID != h.ID() {
			ids = append(ids, info.ID)
		}
		if len(ids) == limit {
			break
		}
	}
	if len(ids) == 0 {
		if err := h.usable(ctx); err != nil {
			return nil, fmt.Errorf("p2p: providers of %s: %w", c, err)
		}
	}
	return ids, nil
}

const (
	topicPeers    = 6                // below this many peers on a topic a node looks for more
	topicLookup   = 16               // providers asked for in one look
	topicAnnounce = 6 * time.Hour    // between announcements; records last 48 h
	topicPause    = 60 * time.Second // longest pause between looks
)

// topicKey is the DHT key under which subscribers of a topic announce themselves.
func topicKey(network, topic string) (cid.Cid, error) {
	digest := sha256.Sum256([]byte("capanode topic\x00" + network + "\x00" + topic))
	sum, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		return cid.Undef, fmt.Errorf("p2p: key of topic %s: %w", topic, err)
	}
	return cid.NewCidV1(cid.Raw, sum), nil
}

// meetTopic keeps a node in touch with other subscribers, because gossip flows over existing connections only. When the
// host wakes it, there may be others than those it knows: it announces the node to them and looks for them at once.
func (h *Host) meetTopic(t *topic, key cid.Cid) {
	ctx := t.left
	var announced time.Time
	awake, woken := h.awake(), false
	for pause := time.Second; ; {
		select {
		case <-ctx.Done():
			return
		case <-awake:
			announced, pause, woken = time.Time{}, time.Second, true
			awake = h.awake()
		case <-time.After(pause):
		}
		if h.dht.RoutingTable().Size() == 0 {
			continue // alone: look again soon
		}
		if time.Since(announced) > topicAnnounce && h.dht.Provide(ctx, key, true) == nil {
			announced = time.Now()
		}
		if woken || len(t.Peers()) < topicPeers {
			for info := range h.dht.FindProvidersAsync(ctx, key, topicLookup) {
				if info.ID != h.ID() {
					h.tryConnect(ctx, info)
				}
			}
		}
		woken = false
		pause = min(2*pause, topicPause)
	}
}

func (h *Host) tryConnect(ctx context.Context, info peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.DialTimeout)
	defer cancel()
	if err := h.host.Connect(ctx, info); err != nil {
		h.log.Debug("peer found but not reached", "peer", info.ID, "err", err)
	}
}

// sleep waits and says whether the context still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// lan connects to what mDNS finds, a few at a time: anyone on the local network can announce any number of peers.
type lan struct {
	host  *Host
	slots chan struct{}
}

// HandlePeerFound implements [mdns.Notifee].
func (l *lan) HandlePeerFound(info peer.AddrInfo) {
	if info.ID == l.host.ID() {
		return
	}
	select {
	case l.slots <- struct{}{}:
		l.host.background(func() {
			defer func() { <-l.slots }()
			l.host.tryConnect(l.host.ctx, info)
		})
	default:
	}
}

// startMDNS is best effort: many machines have no multicast.
func (h *Host) startMDNS() {
	service := mdns.NewMdnsService(h.host, "_capanode-"+h.cfg.Network+"._udp", &lan{h, make(chan struct{}, 8)})
	if err := service.Start(); err != nil {
		h.log.Warn("no discovery on the local network", "err", err)
		return
	}
	h.mdns = service
}
