package p2p

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Role decides a node's numbers: how many connections it keeps and what it does for others.
type Role int

const (
	// Provider is a GPU owner's node, mostly at home.
	Provider Role = iota
	// Researcher is a node that leases from others.
	Researcher
	// Bootstrap is a public meeting point: it serves the DHT, stays out of gossip meshes, hands peers to each other and keeps
	// many connections.
	Bootstrap
)

// Config describes one host. Identity and Network are required.
type Config struct {
	Identity    crypto.PrivKey // see [LoadOrCreateIdentity]
	Network     string         // name of the network, lower case letters, digits and dashes: nodes of other networks do not meet
	Role        Role
	Listen      []string      // multiaddrs; port 0 picks one port for TCP and QUIC; none means [DefaultListen]
	Bootstrap   []string      // multiaddrs with /p2p/ peer IDs
	MDNS        bool          // find peers on the local network
	PeerCache   string        // file that remembers peers over restarts; none means not to
	DialTimeout time.Duration // for each bootstrap node; 0 means 5 s
	Logger      *slog.Logger  // nil means [slog.Default]
}

// DefaultListen is TCP and QUIC on one free port of every IPv4 interface.
var DefaultListen = []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"}

// ErrConfig reports a configuration that no host can run with.
var ErrConfig = errors.New("invalid p2p configuration")

var networkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// complete checks the configuration and fills in defaults. It returns the bootstrap nodes by peer.
func (c Config) complete() (Config, []peer.AddrInfo, error) {
	if c.Identity == nil {
		return c, nil, fmt.Errorf("p2p: no identity: %w", ErrConfig)
	}
	if !networkName.MatchString(c.Network) {
		return c, nil, fmt.Errorf("p2p: network %q must be 1 to 32 lower case letters, digits and dashes: %w", c.Network, ErrConfig)
	}
	if c.Role < Provider || c.Role > Bootstrap {
		return c, nil, fmt.Errorf("p2p: role %d: %w", c.Role, ErrConfig)
	}
	if len(c.Listen) == 0 {
		c.Listen = DefaultListen
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	self, err := peer.IDFromPrivateKey(c.Identity)
	if err != nil {
		return c, nil, fmt.Errorf("p2p: identity: %w: %w", ErrConfig, err)
	}
	var boot []peer.AddrInfo
	at := make(map[peer.ID]int)
	for _, text := range c.Bootstrap {
		info, err := peer.AddrInfoFromString(text)
		if err != nil {
			return c, nil, fmt.Errorf("p2p: bootstrap address %q, want one like /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...: %w: %w",
				text, ErrConfig, err)
		}
		if info.ID == self {
			continue // every node of a site may share one list
		}
		if i, known := at[info.ID]; known {
			boot[i].Addrs = append(boot[i].Addrs, info.Addrs...)
			continue
		}
		at[info.ID] = len(boot)
		boot = append(boot, *info)
	}
	return c, boot, nil
}
