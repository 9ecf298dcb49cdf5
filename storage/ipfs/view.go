package ipfs

import (
	"context"
	"errors"
	"log/slog"

	blockstore "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// view shows the store as the block store of boxo: every block of every whole object, verified each time it is read.
type view struct {
	store *storage.Store
	log   *slog.Logger
}

var _ blockstore.Blockstore = view{}

// Get returns a verified block. One that cannot be delivered now, for whatever reason, is answered as one that is not here, so
// that the peer asks elsewhere.
func (v view) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := v.store.GetBlock(ctx, c, nil)
	if err != nil {
		return nil, v.absent(c, err)
	}
	return blocks.NewBlockWithCid(data, c)
}

// GetSize returns the bytes of a block without reading it. An empty one has one byte: boxo takes a size of 0 for an absence.
func (v view) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	n, err := v.store.BlockSize(ctx, c)
	if err != nil {
		return -1, v.absent(c, err)
	}
	return max(1, int(n)), nil
}

// Has tells whether a block is here, without reading it.
func (v view) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := v.store.BlockSize(ctx, c)
	return err == nil, nil
}

func (v view) absent(c cid.Cid, err error) error {
	if !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, unixfs.ErrUnsupported) && !errors.Is(err, context.Canceled) {
		v.log.Warn("cannot serve a block", "cid", c, "err", err)
	}
	return format.ErrNotFound{Cid: c}
}

// The exchange only reads: fetches assemble objects.

func (view) Put(context.Context, blocks.Block) error             { return errReadOnly }
func (view) PutMany(context.Context, []blocks.Block) error       { return errReadOnly }
func (view) DeleteBlock(context.Context, cid.Cid) error          { return errReadOnly }
func (view) AllKeysChan(context.Context) (<-chan cid.Cid, error) { return nil, errReadOnly }
