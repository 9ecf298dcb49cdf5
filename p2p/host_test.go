package p2p_test

import (
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/peertest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"), // one for the process, by design
		// a router search in flight ends by itself within seconds
		goleak.IgnoreAnyFunction("github.com/libp2p/go-libp2p/p2p/net/nat/internal/nat.discoverNATs.func1"))
}

var (
	loopback = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	tcpOnly  = loopback[:1]
	quicOnly = loopback[1:]
)

// patience is the dial timeout where many hosts in one process share the machine with other tests.
const patience = 30 * time.Second

// start runs a host with a fresh key until the test ends.
func start(t *testing.T, cfg p2p.Config) *p2p.Host {
	t.Helper()
	if cfg.Identity == nil {
		cfg.Identity = peertest.NewKey(t)
	}
	if cfg.Network == "" {
		cfg.Network = "test"
	}
	if cfg.Listen == nil {
		cfg.Listen = loopback
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	h, err := p2p.NewHost(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

// network starts a bootstrap node and n hosts that only know it, and waits until everyone has found everyone.
func network(t *testing.T, n int, listen []string) []*p2p.Host {
	t.Helper()
	boot := start(t, p2p.Config{Role: p2p.Bootstrap, Listen: listen})
	var hosts []*p2p.Host
	for i := range n {
		role := p2p.Provider
		if i == n-1 {
			role = p2p.Researcher
		}
		h := start(t, p2p.Config{Role: role, Listen: listen, Bootstrap: boot.Addrs(), DialTimeout: patience})
		reach, err := h.Bootstrap(t.Context())
		if err != nil || reach.Reachable != 1 || reach.Total != 1 {
			t.Fatalf("bootstrap: %+v, %v", reach, err)
		}
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		nettest.Eventually(t, "discovery", func() bool { return len(h.Connected()) == n })
	}
	return hosts
}

func TestConformance(t *testing.T) {
	for name, listen := range map[string][]string{"tcp": tcpOnly, "quic": quicOnly, "both": loopback} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "both" {
				t.Skip("one transport is enough for a short run")
			}
			nettest.Run(t, func(t *testing.T, n int) []nettest.Node {
				var nodes []nettest.Node
				for _, h := range network(t, n, listen) {
					nodes = append(nodes, h)
				}
				return nodes
			})
		})
	}
}

func TestAddrsDialAndStats(t *testing.T) {
	a, b := start(t, p2p.Config{}), start(t, p2p.Config{})
	var ports []string
	for _, text := range b.Addrs() {
		info, err := peer.AddrInfoFromString(text)
		if err != nil || info.ID != b.ID() {
			t.Fatalf("address %q: %v", text, err)
		}
		ports = append(ports, strings.Split(text, "/")[4])
		if err := a.Connect(t.Context(), *info); err != nil {
			t.Fatalf("connect to %s: %v", text, err)
		}
	}
	if len(ports) != 2 || ports[0] != ports[1] {
		t.Errorf("TCP and QUIC listen on ports %v, want one", ports)
	}
	nettest.Eventually(t, "traffic is counted", func() bool {
		s := a.Stats()
		return s.Connections == 1 && s.BytesIn > 0 && s.BytesOut > 0 && s.Reachability == "unknown"
	})
}

func TestConfigErrors(t *testing.T) {
	key := peertest.NewKey(t)
	good := p2p.Config{Identity: key, Network: "test", Listen: loopback}
	for name, change := range map[string]func(*p2p.Config){
		"no identity":           func(c *p2p.Config) { c.Identity = nil },
		"no network":            func(c *p2p.Config) { c.Network = "" },
		"network name":          func(c *p2p.Config) { c.Network = "a/b" },
		"role":                  func(c *p2p.Config) { c.Role = 7 },
		"bootstrap without ID":  func(c *p2p.Config) { c.Bootstrap = []string{"/ip4/127.0.0.1/tcp/1"} },
		"bootstrap garbage":     func(c *p2p.Config) { c.Bootstrap = []string{"example.org:4001"} },
		"listen garbage":        func(c *p2p.Config) { c.Listen = []string{"127.0.0.1:0"} },
		"listen on a name":      func(c *p2p.Config) { c.Listen = []string{"/dns4/localhost/tcp/0"} },
		"listen on a websocket": func(c *p2p.Config) { c.Listen = []string{"/ip4/127.0.0.1/tcp/0/ws"} },
	} {
		cfg := good
		change(&cfg)
		if h, err := p2p.NewHost(t.Context(), cfg); !errors.Is(err, p2p.ErrConfig) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				h.Close()
			}
		}
	}
}

func TestPortInUse(t *testing.T) {
	a := start(t, p2p.Config{})
	key := peertest.NewKey(t)
	for _, text := range a.Addrs() {
		listen := strings.Split(text, "/p2p/")[0]
		_, err := p2p.NewHost(t.Context(), p2p.Config{Identity: key, Network: "test", Listen: []string{listen}})
		if !errors.Is(err, p2p.ErrPortInUse) || !strings.Contains(err.Error(), listen) {
			t.Errorf("second host on %s: %v", listen, err)
		}
	}
}

func TestAllBootstrapsDead(t *testing.T) {
	h := start(t, p2p.Config{Bootstrap: []string{peertest.DeadAddr(t), peertest.Silent(t)}, DialTimeout: 300 * time.Millisecond})
	begin := time.Now()
	reach, err := h.Bootstrap(t.Context())
	if !errors.Is(err, p2p.ErrNoBootstrap) || reach != (p2p.Reach{Total: 2}) {
		t.Errorf("%+v, %v", reach, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v to say so", took)
	}
}

func TestOneOfThreeBootstrapsAlive(t *testing.T) {
	boot := start(t, p2p.Config{Role: p2p.Bootstrap})
	h := start(t, p2p.Config{Bootstrap: append(boot.Addrs(), peertest.DeadAddr(t), peertest.Silent(t))})
	begin := time.Now()
	reach, err := h.Bootstrap(t.Context())
	if err != nil || reach.Reachable != 1 || reach.Total != 3 {
		t.Errorf("%+v, %v", reach, err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("a dead bootstrap node holds the join up: %v", took)
	}
}

func TestBootstrapComesBack(t *testing.T) {
	key := peertest.NewKey(t)
	cfg := p2p.Config{Role: p2p.Bootstrap, Identity: key}
	boot := start(t, cfg)
	h := start(t, p2p.Config{Bootstrap: boot.Addrs(), DialTimeout: 200 * time.Millisecond})
	if _, err := h.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, text := range boot.Addrs() {
		cfg.Listen = append(cfg.Listen, strings.Split(text, "/p2p/")[0])
	}
	if err := boot.Close(); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, "the loss is seen", func() bool { return len(h.Connected()) == 0 })
	start(t, cfg)
	nettest.Eventually(t, "the host redials", func() bool { return len(h.Connected()) == 1 })
}

func TestFirstNodeOfItsNetwork(t *testing.T) {
	if reach, err := start(t, p2p.Config{}).Bootstrap(t.Context()); err != nil || reach != (p2p.Reach{}) {
		t.Errorf("%+v, %v", reach, err)
	}
}

func TestRememberedPeersReplaceDeadBootstraps(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "peers")
	if err := os.WriteFile(cache, []byte("garbage\n/ip4/127.0.0.1/tcp/1\n\xff\xfe\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	friend := start(t, p2p.Config{})
	first := start(t, p2p.Config{PeerCache: cache, Bootstrap: friend.Addrs()})
	if _, err := first.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := start(t, p2p.Config{PeerCache: cache, Bootstrap: []string{peertest.DeadAddr(t)}})
	reach, err := second.Bootstrap(t.Context())
	if err != nil || reach != (p2p.Reach{Total: 1, Cached: 1}) {
		t.Errorf("%+v, %v", reach, err)
	}
}

func TestNetworksDoNotMeet(t *testing.T) {
	boot := start(t, p2p.Config{Role: p2p.Bootstrap, Network: "one"})
	a := start(t, p2p.Config{Network: "one", Bootstrap: boot.Addrs()})
	b := start(t, p2p.Config{Network: "two", Bootstrap: boot.Addrs()})
	if _, err := a.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Bootstrap(t.Context()); !errors.Is(err, p2p.ErrOtherNetwork) || !strings.Contains(err.Error(), "--network one") {
		t.Errorf("a node of network two joins by a bootstrap node of network one: %v", err)
	}
	c := start(t, p2p.Config{Network: "one", Bootstrap: append(boot.Addrs(), b.Addrs()...)}) // connected with both networks
	if _, err := c.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	var topics []p2p.Topic
	for _, h := range []*p2p.Host{a, b, c} {
		topic, err := h.Join("/capanode/test/talk", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer topic.Close()
		topics = append(topics, topic)
	}
	nettest.Eventually(t, "nodes of one network meet", func() bool {
		return slices.Contains(a.Connected(), c.ID()) && slices.Contains(topics[2].Peers(), a.ID())
	})
	if slices.Contains(a.Connected(), b.ID()) || len(topics[1].Peers()) != 0 || len(topics[2].Peers()) != 1 {
		t.Errorf("two networks meet: connected %v, on the topic %v and %v", a.Connected(), topics[1].Peers(), topics[2].Peers())
	}
}

func TestManyPeersBehindOneAddress(t *testing.T) {
	boot := start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly})
	const count = 24 // libp2p's own limit is 8
	for range count {
		h := start(t, p2p.Config{Listen: tcpOnly, Bootstrap: boot.Addrs(), DialTimeout: patience})
		if reach, err := h.Bootstrap(t.Context()); err != nil {
			t.Fatalf("%+v, %v", reach, err)
		}
	}
	if n := len(boot.Connected()); n != count {
		t.Errorf("%d of %d peers are connected", n, count)
	}
}

// TestLocalNetwork needs multicast, which many containers lack.
func TestLocalNetwork(t *testing.T) {
	network := "lan-" + strings.ToLower(rand.Text()[:12]) // no other run on this network has it
	cfg := p2p.Config{Network: network, MDNS: true, Listen: p2p.DefaultListen}
	a, b := start(t, cfg), start(t, cfg)
	end := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !slices.Contains(a.Connected(), b.ID()) {
		if time.Now().After(end) {
			t.Skip("no multicast between two hosts on this machine within 5 s")
		}
		<-tick.C
	}
}
