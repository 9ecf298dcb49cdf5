package p2p_test

import (
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/peertest"
)

// Whatever is wrong with a bootstrap node is said in one clause, with the address and what to do.
func TestC16CauseAndFix(t *testing.T) {
	boot := start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly})
	dead := peertest.DeadAddr(t)
	wrongPeer := strings.Split(boot.Addrs()[0], "/p2p/")[0] + dead[strings.Index(dead, "/p2p/"):]
	for name, c := range map[string]struct {
		address string
		kind    error
		says    []string
	}{
		"nothing listens": {dead, p2p.ErrNoBootstrap, []string{"connection refused", "start the node, or check the port"}},
		"another node":    {wrongPeer, p2p.ErrNoBootstrap, []string{"another node answers", boot.ID().String(), "ask for its present join line"}},
		"garbage": {peertest.Answer(t, func(c net.Conn) { io.CopyN(c, rand.Reader, 5000) }), p2p.ErrNoBootstrap,
			[]string{"is no node", "check the port"}},
		"a web server": {peertest.Answer(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 10))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}), p2p.ErrNoBootstrap, []string{"is no node", "check the port"}},
		"silence":         {peertest.Silent(t), p2p.ErrNoBootstrap, []string{"check the", "port"}},
		"another network": {boot.Addrs()[0], p2p.ErrOtherNetwork, []string{`serves network "test"`, "pass --network test"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			h := start(t, p2p.Config{Network: "mine", Bootstrap: []string{c.address}, DialTimeout: 2 * time.Second})
			begin := time.Now()
			_, err := h.Bootstrap(t.Context())
			if !errors.Is(err, c.kind) {
				t.Fatalf("%v, want %v", err, c.kind)
			}
			for _, want := range append(c.says, strings.Split(c.address, "/p2p/")[0]) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is missing in: %v", want, err)
				}
			}
			t.Logf("after %v: %v", time.Since(begin).Round(time.Millisecond), err)
		})
	}
}
