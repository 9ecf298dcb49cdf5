package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage/ipfs"
	"github.com/capacloud/capanode/storage/transfer"
)

// callTime bounds the dialling of one node that a person names.
const callTime = 15 * time.Second

// trade starts to exchange blocks with IPFS nodes. Only a node that serves answers their wants.
func (n *Node) trade(serve bool) {
	n.ipfs = ipfs.Start(n.host, n.store, ipfs.Options{Serve: serve, Logger: n.log})
	n.onClose(n.ipfs.Close)
}

// fetchAnyhow fetches an object from the nodes that a person named, from those that are connected, and from those that the
// network names. IPFS nodes are asked over bitswap, when one was named or the configuration says so.
func (n *Node) fetchAnyhow(ctx context.Context, c cid.Cid) error {
	ours, theirs, err := n.call(ctx)
	if err != nil {
		return err
	}
	if len(theirs) > 0 && n.ipfs == nil {
		n.trade(false)
	}
	if len(theirs) > 0 && len(ours) == 0 {
		return n.ipfs.Fetch(ctx, c, 0, theirs)
	}
	ask := n.ask
	ask.From = append(ours, n.net.Connected()...)
	err = n.fetch.FetchAs(ctx, c, ask)
	if n.ipfs == nil || !errors.Is(err, transfer.ErrNoProviders) {
		return err
	}
	if len(theirs) == 0 {
		for _, id := range n.net.Connected() {
			if n.ipfs.Speaks(id) {
				theirs = append(theirs, id)
			}
		}
	}
	if len(theirs) == 0 {
		return err
	}
	if ferr := n.ipfs.Fetch(ctx, c, 0, theirs); ferr != nil {
		return errors.Join(err, ferr)
	}
	return nil
}

// call connects with the nodes that a person named, all at once, and tells which speak the blob protocol and which only bitswap.
// One that can be used is enough.
func (n *Node) call(ctx context.Context) (ours, theirs []peer.ID, err error) {
	if n.host == nil || len(n.from) == 0 {
		return nil, nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	type answer struct {
		id  peer.ID
		err error
	}
	answers := make(chan answer, len(n.from))
	for _, text := range n.from {
		info, err := peer.AddrInfoFromString(text)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %q is no address of a node, want one like /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...: %w", ErrUsage, text, err)
		}
		go func() { answers <- answer{info.ID, n.net.Connect(ctx, *info)} }()
	}
	var failed []error
	for range n.from {
		a := <-answers
		switch {
		case a.err != nil:
			failed = append(failed, a.err)
		case n.host.Supports(a.id, transfer.Protocol):
			ours = append(ours, a.id)
		case n.host.Supports(a.id, ipfs.Protocols...):
			theirs = append(theirs, a.id)
		default:
			failed = append(failed, fmt.Errorf("%s serves neither %s nor bitswap: %w", a.id, transfer.Protocol, p2p.ErrNoProtocol))
		}
	}
	if len(ours)+len(theirs) == 0 {
		return nil, nil, fmt.Errorf("%w: %w", ErrTryLater, errors.Join(failed...))
	}
	return ours, theirs, nil
}
