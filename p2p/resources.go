package p2p

import (
	"fmt"
	"math"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/x/rate"
)

// One address may hide a whole lab behind one router. libp2p allows 8 connections and one new connection every five seconds
// per IPv4 address, which turns the ninth card away.
const (
	connsPerIP4  = 256  // concurrent connections of one IPv4 address or IPv6 /56
	connsPerIP48 = 1024 // of one IPv6 /48
	newConnsRate = 10   // new connections per second and address, after a burst of connsPerIP4
)

// watermarks are the connections that a role keeps: above high the least useful go until low are left.
func watermarks(role Role) (low, high int) {
	if role == Bootstrap {
		return 400, 600
	}
	return 40, 60
}

// newResources returns the two managers that bound connections, streams and memory. The library scales its limits with
// the machine; the limits per address are replaced, and connection limits never fall below the role's watermarks.
func newResources(role Role) (network.ResourceManager, *connmgr.BasicConnMgr, error) {
	low, high := watermarks(role)
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	scaled := scaling.AutoScale()
	floor := rcmgr.LimitVal(4 * high)
	limits := rcmgr.PartialLimitConfig{
		System:    rcmgr.ResourceLimits{Conns: 2 * floor, ConnsInbound: floor, ConnsOutbound: floor, FD: 2 * floor},
		Transient: rcmgr.ResourceLimits{Conns: floor, ConnsInbound: floor / 2, ConnsOutbound: floor / 2, FD: floor / 2},
	}.Build(scaled)

	var unlimited []rcmgr.NetworkPrefixLimit
	var unlimited6 []rcmgr.NetworkPrefixLimit
	var unrated []rate.PrefixLimit
	for _, p := range localNets {
		limit := rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt}
		if p.Addr().Is4() {
			unlimited = append(unlimited, limit)
		} else {
			unlimited6 = append(unlimited6, limit)
		}
		unrated = append(unrated, rate.PrefixLimit{Prefix: p})
	}
	perIP := rate.Limit{RPS: newConnsRate, Burst: connsPerIP4}
	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithNetworkPrefixLimit(unlimited, unlimited6),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP4}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIP4}, {PrefixLength: 48, ConnCount: connsPerIP48}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: unrated,
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: perIP}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: perIP}},
				GracePeriod:      time.Minute,
			},
		}))
	if err != nil {
		return nil, nil, fmt.Errorf("p2p: resource manager: %w", err)
	}
	conns, err := connmgr.NewConnManager(low, high, connmgr.WithGracePeriod(30*time.Second))
	if err != nil {
		manager.Close()
		return nil, nil, fmt.Errorf("p2p: connection manager: %w", err)
	}
	return manager, conns, nil
}
