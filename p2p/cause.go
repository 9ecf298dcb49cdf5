package p2p

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

// ErrOtherNetwork reports bootstrap nodes that answer and belong to another network than this node.
var ErrOtherNetwork = errors.New("bootstrap node of another network")

// cause says in a few words why a peer could not be dialled, and what to do. Of several addresses it takes the one that
// got furthest, which says most about what is wrong.
func cause(to peer.AddrInfo, err error) string {
	var failed *swarm.DialError
	if !errors.As(err, &failed) || len(failed.DialErrors) == 0 {
		if timedOut(err) {
			return fmt.Sprintf("%s: no answer: check the address, the port and the firewall", address(to))
		}
		return err.Error()
	}
	best, depth := "", -1
	for _, e := range failed.DialErrors {
		if text, d := dialCause(e.Cause); d > depth {
			best, depth = fmt.Sprintf("%s: %s", e.Address, text), d
		}
	}
	return best
}

// dialCause explains one failed dial, and says how far it got.
func dialCause(err error) (text string, depth int) {
	var other sec.ErrPeerIDMismatch
	switch {
	case errors.As(err, &other):
		return fmt.Sprintf("another node answers there, %s: ask for its present join line", other.Actual), 4
	case strings.Contains(err.Error(), "failed to negotiate security protocol"): // the library has no error value for it
		if timedOut(err) {
			return "what accepts the connection says nothing: it is no node, check the port", 3
		}
		return "what answers there is no node: check the port", 3
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused, nothing listens there: start the node, or check the port", 2
	case errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH):
		return "no route to it: check this machine's network", 1
	case timedOut(err):
		return "no answer: check the address, the port and the firewall", 1
	}
	return err.Error(), 0
}

func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || os.IsTimeout(err)
}

// address is a peer's first address, or its ID when none is known.
func address(to peer.AddrInfo) string {
	if len(to.Addrs) == 0 {
		return to.ID.String()
	}
	return to.Addrs[0].String()
}

// foreign returns an error when a connected peer serves other networks and not this one. One that says nothing about
// networks may only be starting up.
func (h *Host) foreign(to peer.AddrInfo) error {
	protocols, err := h.host.Peerstore().GetProtocols(to.ID)
	if err != nil {
		return nil // nothing is known against it
	}
	other := ""
	for _, p := range protocols {
		name, service, _ := strings.Cut(strings.TrimPrefix(string(p), "/capanode/"), "/")
		if !strings.HasPrefix(string(p), "/capanode/") || !strings.HasPrefix(service, "kad/") && !strings.HasPrefix(service, "meshsub/") {
			continue
		}
		if name == h.cfg.Network {
			return nil
		}
		other = name
	}
	if other == "" {
		return nil
	}
	return fmt.Errorf("%w: %s serves network %q, this node wants %q: pass --network %s, or the address of another node",
		ErrOtherNetwork, address(to), other, h.cfg.Network, other)
}
