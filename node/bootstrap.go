package node

import (
	"context"
	"errors"
	"log/slog"

	"github.com/capacloud/capanode/p2p"
)

// BootstrapOptions says how a bootstrap node runs.
type BootstrapOptions struct {
	Home   string
	Config Config
	Log    *slog.Logger
	Stop   <-chan struct{}
	Emit   Emit
}

// BootstrapEvent tells what a bootstrap node does.
type BootstrapEvent struct {
	Type      string   `json:"type"`  // bootstrap
	State     string   `json:"state"` // ready or stopped
	Peer      string   `json:"peer"`
	Network   string   `json:"network"`
	Join      string   `json:"join,omitempty"` // the address to give to others
	Addresses []string `json:"addresses,omitempty"`
}

// Bootstrap runs a meeting point until it is told to stop.
func Bootstrap(ctx context.Context, o BootstrapOptions) (err error) {
	n, err := openNode(ctx, o.Home, o.Config, o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.Stop = n.stopWith(ctx, o.Stop)
	if err := n.join(ctx, p2p.Bootstrap); err != nil {
		return err
	}
	n.scrub()
	e := BootstrapEvent{Type: "bootstrap", State: "ready", Peer: n.id.String(), Network: n.cfg.Network, Addresses: n.addresses()}
	e.Join = bestAddress(e.Addresses)
	o.Emit(e)
	select {
	case <-ctx.Done():
	case <-o.Stop:
	}
	o.Emit(BootstrapEvent{Type: "bootstrap", State: "stopped", Peer: n.id.String(), Network: n.cfg.Network})
	return nil
}
