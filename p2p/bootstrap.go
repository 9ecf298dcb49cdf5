package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// ErrNoBootstrap reports that none of the configured bootstrap nodes and none of the remembered peers answered.
var ErrNoBootstrap = errors.New("no bootstrap node reachable: check the addresses, the firewall and that the nodes run")

// Reach says how joining the network went.
type Reach struct {
	Reachable int // bootstrap nodes that answered so far
	Total     int // bootstrap nodes configured
	Cached    int // remembered peers that answered so far
}

const (
	// joinGrace is how long a join that succeeded waits for the other bootstrap nodes, to report them and to learn of more peers.
	joinGrace = 500 * time.Millisecond
	// cacheDelay gives bootstrap nodes a head start over remembered peers, who may be gone.
	cacheDelay = time.Second
	// keepDials and keepMaxDials are the shortest and the longest pause between looks at whether a bootstrap node is still
	// connected, in dial timeouts: 15 s to 2 min.
	keepDials    = 3
	keepMaxDials = 24
)

// Bootstrap joins the network: it dials all bootstrap nodes, and after a moment the peers remembered from the last run, in
// parallel. One answer is success. The error is [ErrNoBootstrap], with each cause, when nobody answers within
// [Config.DialTimeout]; a host without bootstrap nodes and remembered peers is the first of its network and succeeds. From
// then on the host redials in the background, even after an error.
func (h *Host) Bootstrap(ctx context.Context) (Reach, error) {
	if err := h.usable(ctx); err != nil {
		return Reach{Total: len(h.boot)}, fmt.Errorf("p2p: bootstrap: %w", err)
	}
	h.mu.Lock()
	first := !h.keeping
	h.keeping = true
	h.mu.Unlock()
	if first {
		for _, b := range h.boot {
			h.host.ConnManager().Protect(b.ID, "bootstrap")
		}
		h.background(h.settle)
		if len(h.boot) > 0 {
			h.background(h.keepBootstrapped)
		}
	}
	return h.join(ctx)
}

// answer is the outcome of one dial.
type answer struct {
	who    peer.ID
	cached bool
	err    error
}

func (h *Host) join(ctx context.Context) (Reach, error) {
	reach := Reach{Total: len(h.boot)}
	wait := len(h.boot) + len(h.cache)
	if wait == 0 {
		return reach, nil
	}
	answers := make(chan answer, wait) // dials that outlive this call leave their answers behind
	for _, b := range h.boot {
		h.dial(b, 0, func(err error) { answers <- answer{b.ID, false, err} })
	}
	for _, c := range h.cache {
		h.dial(c, cacheDelay, func(err error) { answers <- answer{c.ID, true, err} })
	}
	var causes []error
	var grace <-chan time.Time
	for ; wait > 0; wait-- {
		select {
		case a := <-answers:
			switch {
			case a.err != nil && !a.cached:
				causes = append(causes, fmt.Errorf("%s: %w", a.who, a.err))
			case a.err != nil:
			case a.cached:
				reach.Cached++
			default:
				reach.Reachable++
			}
			if grace == nil && reach.Reachable+reach.Cached > 0 {
				grace = time.After(joinGrace)
			}
		case <-grace:
			return reach, nil
		case <-ctx.Done():
			return reach, fmt.Errorf("p2p: bootstrap: %w", ctx.Err())
		}
	}
	if reach.Reachable+reach.Cached == 0 {
		return reach, fmt.Errorf("p2p: %d bootstrap nodes and %d remembered peers tried: %w: %w",
			len(h.boot), len(h.cache), ErrNoBootstrap, errors.Join(causes...))
	}
	return reach, nil
}

// dial connects in the background and reports, whatever happens.
func (h *Host) dial(to peer.AddrInfo, after time.Duration, report func(error)) {
	if !h.begin() {
		report(ErrClosed)
		return
	}
	go func() {
		defer h.work.Done()
		if after > 0 && !sleep(h.ctx, after) {
			report(ErrClosed)
			return
		}
		ctx, cancel := context.WithTimeout(h.ctx, h.cfg.DialTimeout)
		defer cancel()
		report(h.host.Connect(ctx, to))
	}()
}

// settle looks around soon and again: nodes that start together do not know each other at the first look.
func (h *Host) settle() {
	for _, pause := range []time.Duration{time.Second / 2, time.Second, 2 * time.Second, 8 * time.Second, 30 * time.Second} {
		if !sleep(h.ctx, pause) {
			return
		}
		select {
		case <-h.dht.RefreshRoutingTable():
		case <-h.ctx.Done():
			return
		}
	}
}

// keepBootstrapped redials with growing, jittered pauses while no bootstrap node is connected.
func (h *Host) keepBootstrapped() {
	shortest := keepDials * h.cfg.DialTimeout
	for pause := shortest; sleep(h.ctx, pause/2+rand.N(pause)); {
		if h.bootConnected() > 0 {
			pause = shortest
			continue
		}
		ctx, cancel := context.WithTimeout(h.ctx, 2*h.cfg.DialTimeout)
		reach, err := h.join(ctx)
		cancel()
		if err != nil {
			pause = min(2*pause, keepMaxDials*h.cfg.DialTimeout)
			h.log.Warn("still cut off from all bootstrap nodes", "total", reach.Total, "connections", h.Stats().Connections)
			continue
		}
		pause = shortest
		h.log.Info("back in touch with bootstrap nodes", "reachable", reach.Reachable, "total", reach.Total)
		h.dht.RefreshRoutingTable()
	}
}

func (h *Host) bootConnected() int {
	n := 0
	for _, b := range h.boot {
		if h.host.Network().Connectedness(b.ID) == network.Connected {
			n++
		}
	}
	return n
}
