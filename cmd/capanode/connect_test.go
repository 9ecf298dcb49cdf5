package main

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/peertest"
)

// bootstraps are the flags that name bootstrap nodes.
func bootstraps(all ...string) (flags []string) {
	for _, a := range all {
		flags = append(flags, "--bootstrap", a)
	}
	return flags
}

// explains expects a command to end with a code and one line that says something, and tells how long it took.
func explains(t *testing.T, code int, says []string, args ...string) {
	t.Helper()
	begin := time.Now()
	_, errs, got := capanode(t, args...)
	t.Logf("after %.1f s exit %d: %s", time.Since(begin).Seconds(), got, strings.TrimSpace(errs))
	if got != code {
		t.Errorf("exit %d, want %d", got, code)
	}
	if !strings.HasPrefix(errs, "capanode: ") || strings.Count(errs, "\n") != 1 {
		t.Errorf("want one line of error, got %q", errs)
	}
	for _, want := range says {
		if !strings.Contains(errs, want) {
			t.Errorf("%q is missing in: %s", want, errs)
		}
	}
}

// A node that cannot join says why, at which address, and what to do.
func TestC16ConnectsOrExplains(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s := newSwarm(t, 1)
	port := strings.Split(s.address, "/p2p/")[0]
	closed := peertest.Answer(t, func(net.Conn) {})
	garbled := peertest.Answer(t, func(c net.Conn) { c.Write(garbage(5000)) }) // the other side may hang up first
	silent := peertest.Silent(t)
	for _, c := range []struct {
		name, address string
		code          int
		says          []string
	}{
		{"no node listens", "/ip4/127.0.0.1/tcp/1" + peertest.Nobody(t), exitTryLater, []string{"/ip4/127.0.0.1/tcp/1: connection refused", "start the node, or check the port"}},
		{"the port of another node", port + peertest.Nobody(t), exitTryLater, []string{port + ": another node answers there", "ask for its present join line"}},
		{"garbage at the port", garbled, exitTryLater, []string{"what answers there is no node", "check the port"}},
		{"a port that hangs up", closed, exitTryLater, []string{"what answers there is no node", "check the port"}},
		{"silence at the port", silent, exitTryLater, []string{"no bootstrap node reachable", "check the", "port"}},
		{"all of them", strings.Join([]string{silent, garbled, port + peertest.Nobody(t)}, ","), exitTryLater, []string{"3 bootstrap nodes", "another node answers", "is no node"}},
		{"no address", "nonsense", exitUsage, []string{`bootstrap address "nonsense"`, "want one like /ip4/"}},
		{"no peer ID", port, exitUsage, []string{"bootstrap address", "want one like /ip4/"}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			explains(t, c.code, c.says, append([]string{"offers", "--home", t.TempDir()}, bootstraps(strings.Split(c.address, ",")...)...)...)
		})
	}
	t.Run("another_network", func(t *testing.T) {
		explains(t, exitUsage, []string{`serves network "e2e", this node wants "mine"`, "pass --network e2e"},
			"offers", "--home", t.TempDir(), "--bootstrap", s.address, "--network", "mine")
	})
	t.Run("the_same_home_twice", func(t *testing.T) {
		explains(t, exitLocked, []string{"in use by another process", "stop that process or pass another --home"},
			"provide", "--device", "cpu", "--home", s.homes[0], "--bootstrap", s.address)
	})
	t.Run("the_same_identity_twice", func(t *testing.T) {
		twin := t.TempDir()
		if err := os.Rename(copyOf(t, filepath.Join(s.homes[0], "identity")), filepath.Join(twin, "identity")); err != nil {
			t.Fatal(err)
		}
		says := []string{"identity is in use by another process, at /ip4/127.0.0.1/tcp/", "stop that one, or remove the identity folder"}
		explains(t, exitLocked, says, "provide", "--device", "cpu", "--home", twin, "--bootstrap", s.address)
		explains(t, exitLocked, says, "train", jobFile(t, 5, 1), "--yes", "--home", twin, "--out", filepath.Join(t.TempDir(), "model"), "--bootstrap", s.address)
	})
}

// copyOf copies a folder of private files.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	entries, err := os.ReadDir(dir)
	if err == nil {
		err = os.Mkdir(to, 0o700)
	}
	for _, e := range entries {
		b, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		if rerr == nil {
			rerr = os.WriteFile(filepath.Join(to, e.Name()), b, 0o600)
		}
		if rerr != nil {
			err = rerr
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// What depends on clocks is the life of an offer: one from a clock more than 30 s ahead, or minutes behind, is refused. The
// node says so, and by how much; the rounds of a run and its leases measure time, they do not tell it.
func TestC16ClockSkewIsExplained(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	for name, c := range map[string]struct {
		ahead time.Duration
		says  string
	}{
		"ahead":  {10 * time.Minute, "clocks are about 10m0s ahead of this one"},
		"behind": {-time.Hour, "clocks are about 1h0m0s behind this one"},
	} {
		t.Run(name, func(t *testing.T) {
			address := skewed(t, c.ahead)
			explains(t, exitNoOffers, []string{"not enough offers match", "1 offers were refused because their " + c.says, "set the clock (NTP)"},
				"offers", "--wait", "1", "--timeout", "10s", "--home", t.TempDir(), "--bootstrap", address)
		})
	}
}

// skewed runs a host that announces offers by a clock that is wrong by so much, and returns its address.
func skewed(t *testing.T, ahead time.Duration) string {
	t.Helper()
	key := peertest.NewKey(t)
	h, err := p2p.NewHost(t.Context(), p2p.Config{Identity: key, Network: "e2e", Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	topic, err := h.Join(market.OffersTopic, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		ticker := time.NewTicker(250 * time.Millisecond)
		defer ticker.Stop()
		for seq := uint64(1); ; seq++ {
			env, err := offer.Seal(key, offer.Beacon{
				Version: offer.Version, Seq: seq, IssuedMs: time.Now().Add(ahead).UnixMilli(), TTL: market.DefaultTTL, Class: "cpu", VRAMMiB: 4096,
				PerfMFLOPS: 50_000, Price: 100_000, Floor: 50_000, Free: 1, Total: 1, MaxLease: 3600,
			})
			if err == nil {
				_ = topic.Publish(t.Context(), env) // it is said again
			}
			select {
			case <-ticker.C:
			case <-t.Context().Done():
				return
			}
		}
	}()
	return h.Addrs()[0]
}

// Several bootstrap nodes are tried at once: one that answers is enough, however many are dead, silent or wrong.
func TestC16ReadyWithOneBootstrapOfMany(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	silent := peertest.Silent(t)
	begin := time.Now()
	s := newSwarm(t, 1)
	alone := time.Since(begin)
	second := start(t, "bootstrap2", "bootstrap", "--home", t.TempDir())
	address := second.await("its address", typed("bootstrap"))["join"].(string)
	port := strings.Split(s.address, "/p2p/")[0]
	s.homes[0] = t.TempDir()
	command := append([]string{"provide", "--device", "cpu", "--threads", "1", "--home", s.homes[0]},
		bootstraps("/ip4/127.0.0.1/tcp/1"+peertest.Nobody(t), silent, port+peertest.Nobody(t), s.address, address)...)
	begin = time.Now()
	p := start(t, "provider", command...)
	p.await("ready", func(e map[string]any) bool { return e["state"] == "ready" })
	among := time.Since(begin)
	p.kill()
	again := time.Now()
	p = start(t, "provider", command...)
	p.await("ready", func(e map[string]any) bool { return e["state"] == "ready" })
	t.Logf("ready after %.2f s for a bootstrap and a provider, %.2f s for one with five bootstrap nodes of which two answer, %.2f s after a kill",
		alone.Seconds(), among.Seconds(), time.Since(again).Seconds())
	if among > time.Minute {
		t.Error("the dead bootstrap nodes hold the provider up")
	}
}

// A node that is killed a moment after its start and finds its bootstrap node gone joins by the peers that it remembers.
func TestC16RememberedPeersSurviveAKill(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s := newSwarm(t, 2)
	friend := s.providers[0].await("its name", typed("provider"))["peer"].(string)
	nettest.Eventually(t, "the second provider remembers the first", func() bool {
		b, err := os.ReadFile(filepath.Join(s.homes[1], "peers.json"))
		return err == nil && strings.Contains(string(b), friend)
	})
	s.providers[1].kill()
	s.bootstrap.kill()
	begin := time.Now()
	s.providers[1] = s.provider(1)
	s.providers[1].await("ready without a bootstrap node", func(e map[string]any) bool { return e["state"] == "ready" })
	ready := time.Since(begin)
	nettest.Eventually(t, "the two are connected", func() bool {
		out, _, code := capanode(t, "status", "--home", s.homes[1], "-o", "json")
		var status struct{ Peers int }
		return code == exitDone && json.Unmarshal([]byte(out), &status) == nil && status.Peers == 1
	})
	t.Logf("ready %.2f s after the restart, connected after %.2f s, no bootstrap node", ready.Seconds(), time.Since(begin).Seconds())
}
