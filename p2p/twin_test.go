package p2p_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/peertest"
)

// Another process with the same identity is found, wherever it runs; one that has ended is not, nor is anybody found
// without a bootstrap node that answers.
func TestC16SameIdentityTwice(t *testing.T) {
	key := peertest.NewKey(t)
	boot := start(t, p2p.Config{Role: p2p.Bootstrap})
	cfg := p2p.Config{Identity: key, Network: "test", Bootstrap: boot.Addrs()}
	alone := func(cfg p2p.Config) error {
		begin := time.Now()
		err := p2p.Alone(t.Context(), cfg)
		t.Logf("after %v: %v", time.Since(begin), err)
		return err
	}
	if err := alone(cfg); err != nil {
		t.Errorf("nobody else is there: %v", err)
	}
	for _, role := range []p2p.Role{p2p.Provider, p2p.Researcher} {
		twin := start(t, p2p.Config{Identity: key, Role: role, Bootstrap: boot.Addrs()})
		if _, err := twin.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := alone(cfg); !errors.Is(err, p2p.ErrTwin) || !strings.Contains(err.Error(), "/ip4/127.0.0.1/") {
			t.Errorf("a second process with the identity is told %v", err)
		}
		if err := twin.Close(); err != nil {
			t.Fatal(err)
		}
		if err := alone(cfg); err != nil {
			t.Errorf("the other process has ended: %v", err)
		}
	}
	for name, boots := range map[string][]string{"dead": {peertest.DeadAddr(t)}, "silent": {peertest.Silent(t)}, "none": nil} {
		cfg.Bootstrap = boots
		if err := alone(cfg); err != nil {
			t.Errorf("%s bootstrap node: %v", name, err)
		}
	}
}
