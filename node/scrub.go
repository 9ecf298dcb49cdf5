package node

import (
	"context"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
)

// scrub rehashes the store in the background for as long as the node runs, and fetches from peers what turns out damaged.
func (n *Node) scrub() {
	n.background.Go(func() {
		err := n.store.Scrub(n.life, storage.ScrubOptions{Repair: func(ctx context.Context, c cid.Cid) error {
			return n.fetch.Fetch(ctx, c, n.net.Connected())
		}})
		if n.life.Err() == nil {
			n.log.Warn("the check of the store has stopped", "err", err)
		}
	})
}
