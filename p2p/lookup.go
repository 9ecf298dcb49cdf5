package p2p

import (
	"context"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	tableGrace = 3 * time.Second       // longest wait for the first DHT node among the connected peers
	tablePoll  = 20 * time.Millisecond // between two looks at the routing table
)

// router finds peers by the DHT. Between a connection and the moment when its other end has said that it serves the DHT
// pass a few round trips, in which the library fails every lookup; router waits them out.
type router struct {
	*dht.IpfsDHT
	net network.Network
}

// FindPeer implements the routing that libp2p asks for the addresses of a peer it knows by name only.
func (r *router) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	r.awaitTable(ctx)
	return r.IpfsDHT.FindPeer(ctx, id)
}

// awaitTable returns once the routing table has an entry, or none can be expected: nobody is connected, the grace is over,
// or the context has ended.
func (r *router) awaitTable(ctx context.Context) {
	for end := time.Now().Add(tableGrace); r.RoutingTable().Size() == 0 && len(r.net.Peers()) > 0 && time.Now().Before(end); {
		if !sleep(ctx, tablePoll) {
			return
		}
	}
}
