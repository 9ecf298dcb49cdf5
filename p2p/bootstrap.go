package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
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
	// crowdStep is how many connections lengthen the pause between dials of missing bootstrap nodes by one dial timeout.
	crowdStep = 8
	// maxRedial is the longest such pause in dial timeouts: 2 min.
	maxRedial = 24
)

// Bootstrap joins the network: it dials all bootstrap nodes, and after a moment the peers remembered from the last run, in
// parallel. One answer is success. The error is [ErrNoBootstrap], with each cause, when nobody answers within
// [Config.DialTimeout], and [ErrOtherNetwork] when who answers belongs to another network; a host without bootstrap nodes and remembered peers is the first of its network and succeeds. From
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
	return h.join(ctx, h.boot, h.cache)
}

// answer is the outcome of one dial.
type answer struct {
	who    peer.AddrInfo
	cached bool
	err    error
}

// join dials bootstrap nodes and remembered peers; one answer is success.
func (h *Host) join(ctx context.Context, boot, cache []peer.AddrInfo) (Reach, error) {
	reach := Reach{Total: len(boot)}
	wait := len(boot) + len(cache)
	if wait == 0 {
		return reach, nil
	}
	answers := make(chan answer, wait) // dials that outlive this call leave their answers behind
	for _, b := range boot {
		h.dial(b, 0, func(err error) { answers <- answer{b, false, err} })
	}
	for _, c := range cache {
		h.dial(c, cacheDelay, func(err error) { answers <- answer{c, true, err} })
	}
	var causes []string
	var foreign error
	var grace <-chan time.Time
	for ; wait > 0; wait-- {
		select {
		case a := <-answers:
			switch {
			case errors.Is(a.err, ErrOtherNetwork) && !a.cached:
				foreign = a.err
			case a.err != nil && !a.cached:
				causes = append(causes, cause(a.who, a.err))
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
	switch {
	case reach.Reachable+reach.Cached > 0:
		return reach, nil
	case foreign != nil:
		return reach, fmt.Errorf("p2p: bootstrap: %w", foreign)
	}
	slices.Sort(causes)
	return reach, fmt.Errorf("p2p: %d bootstrap nodes and %d remembered peers tried: %w: %s",
		len(boot), len(cache), ErrNoBootstrap, strings.Join(causes, "; "))
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
		err := h.host.Connect(ctx, to)
		if err == nil {
			err = h.foreign(to)
		}
		report(err)
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

// redialPause is the mean pause between two dials of the bootstrap nodes that are not connected, in dial timeouts. It grows
// with the connections, so that the nodes of a swarm together try about as often, however many they are: one that gets
// through brings the others along.
func redialPause(connections int) time.Duration {
	return time.Duration(min(1+connections/crowdStep, maxRedial))
}

// keepBootstrapped redials, with jittered pauses, the bootstrap nodes that are not connected. That others are is no reason
// not to: a node that was down may be the only one that leads to another part of the swarm.
func (h *Host) keepBootstrapped() {
	mean := func() time.Duration { return redialPause(len(h.host.Network().Peers())) * h.cfg.DialTimeout }
	told := false // that the node is cut off
	for pause := mean(); sleep(h.ctx, pause/2+rand.N(pause)); pause = mean() {
		missing := h.missing()
		if len(missing) == 0 {
			continue
		}
		var cached []peer.AddrInfo
		if len(missing) == len(h.boot) {
			cached = h.cache
		}
		ctx, cancel := context.WithTimeout(h.ctx, 2*h.cfg.DialTimeout)
		reach, err := h.join(ctx, missing, cached)
		cancel()
		switch {
		case err == nil:
			told = false
			h.log.Info("in touch with more bootstrap nodes", "reachable", reach.Reachable, "missing", len(missing))
			h.dht.RefreshRoutingTable()
			h.wake()
		case len(missing) == len(h.boot) && !told:
			told = true
			h.log.Warn("cut off from all bootstrap nodes", "total", len(h.boot), "connections", h.Stats().Connections)
		}
	}
}

// missing lists the bootstrap nodes that are not connected, each ready to be dialled: the library's own pause after a
// failed dial, of up to five minutes, would hide a node that has come up.
func (h *Host) missing() (all []peer.AddrInfo) {
	for _, b := range h.boot {
		if h.host.Network().Connectedness(b.ID) == network.Connected {
			continue
		}
		if s, ok := h.host.Network().(*swarm.Swarm); ok {
			s.Backoff().Clear(b.ID)
		}
		all = append(all, b)
	}
	return all
}

// wake tells those who look for peers that there may be new ones.
func (h *Host) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.woken)
	h.woken = make(chan struct{})
}

// awake returns a channel that closes with the next wake.
func (h *Host) awake() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.woken
}
