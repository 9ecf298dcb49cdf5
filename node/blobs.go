package node

import (
	"context"
	"errors"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/transfer"
)

// blobs lets a run put and get bytes by CID: what is not here is fetched from the given peers and from those who announce
// it. It implements the trainer's consumer interfaces.
type blobs struct {
	store *storage.Store
	fetch *transfer.Fetcher // nil before the network is joined
	near  func() []peer.ID  // asked besides the caller's own list: who might have what the run needs
	class storage.Class
}

// Put stores bytes so that peers can fetch them.
func (b blobs) Put(ctx context.Context, data []byte) (cid.Cid, error) {
	return b.store.PutBytes(ctx, data, storage.PutOptions{Class: b.class, Size: int64(len(data))})
}

// PutRecord stores a dag-cbor record.
func (b blobs) PutRecord(ctx context.Context, record []byte) (cid.Cid, error) {
	return b.store.PutRecord(ctx, record, storage.PutOptions{Class: b.class})
}

// Get returns the object's bytes, verified.
func (b blobs) Get(ctx context.Context, c cid.Cid, from []peer.ID, limit int64) ([]byte, error) {
	data, err := b.store.ReadAll(ctx, c, limit)
	if err == nil || !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
		return data, err
	}
	if b.fetch == nil {
		return nil, err // not on the network
	}
	return b.fetch.ReadAll(ctx, c, limit, slices.Concat(from, b.near()))
}

// Drop says that the run needs the object no longer.
func (b blobs) Drop(ctx context.Context, c cid.Cid) {
	// An object that something else pins stays; one that is gone already is no loss.
	_ = b.store.Delete(ctx, c)
}
