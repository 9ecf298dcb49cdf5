package p2p

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// ErrTwin reports that another process runs under this node's identity. Peers would take the two for one and reach now one
// and now the other.
var ErrTwin = errors.New("identity is in use by another process")

// twinTime bounds the search for another process with the same identity.
const twinTime = 2 * time.Second

// Alone looks for another process that runs under the identity of a configuration, before a host of its own does: a
// throw-away host asks the bootstrap nodes for the identity and dials what they name. The error is [ErrTwin] when somebody
// answers: only who holds the key can. When nobody can be asked, or the search takes too long, nothing is known and the
// error is nil.
func Alone(ctx context.Context, cfg Config) error {
	cfg, boot, err := cfg.complete()
	if err != nil {
		return err
	}
	self, err := peer.IDFromPrivateKey(cfg.Identity)
	if err != nil || len(boot) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, twinTime)
	defer cancel()
	// TCP alone, because a dead QUIC address takes the whole time to be given up, and every node listens on both.
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.Transport(tcp.NewTCPTransport), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.UserAgent("capanode"))
	if err != nil {
		return fmt.Errorf("p2p: look for a twin: %w", err)
	}
	defer h.Close()
	d, err := dht.New(h, dht.Mode(dht.ModeClient), dht.ProtocolPrefix(protocolPrefix(cfg.Network)), dht.DisableValues(), dht.DisableAutoRefresh())
	if err != nil {
		return fmt.Errorf("p2p: look for a twin: %w", err)
	}
	defer d.Close()
	if !reachAny(ctx, h, d, boot) {
		return nil
	}
	if _, err := d.FindPeer(ctx, self); err != nil || h.Network().Connectedness(self) != network.Connected {
		return nil // nobody answers under the identity: that is how it should be
	}
	at := h.Network().ConnsToPeer(self)[0].RemoteMultiaddr()
	return fmt.Errorf("p2p: %s: %w, at %s: stop that one, or remove the identity folder of a home that was copied", self, ErrTwin, at)
}

// reachAny connects with bootstrap nodes and tells whether one of them serves the DHT before the context ends.
func reachAny(ctx context.Context, h host.Host, d *dht.IpfsDHT, boot []peer.AddrInfo) bool {
	failed := make(chan struct{}, len(boot))
	for _, b := range boot {
		go func() {
			if h.Connect(ctx, b) != nil {
				failed <- struct{}{}
			}
		}()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for left := len(boot); left > 0; {
		select {
		case <-failed:
			left--
		case <-tick.C:
			if d.RoutingTable().Size() > 0 {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
	return false
}
