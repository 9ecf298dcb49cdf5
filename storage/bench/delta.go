package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/storage/transfer"
)

// Delta is what it costs to bring one checkpoint to a node that has the one before it.
type Delta struct {
	Size   int64   // bytes of all files of the later checkpoint
	Shared int64   // of them, bytes in blocks that the earlier one has as well
	Moved  uint64  // bytes of blocks, folders included, as they travelled
	Share  float64 // Moved / Size
	Encode float64 // MB/s at which one core encodes the later checkpoint's weights in blocks of 1 MiB, as large tensors have
	Small  float64 // the same in the blocks that its tensors are cut into
}

// RunDelta measures two checkpoint folders that follow each other. Both are cut at their tensors' edges, as runs publish them,
// and encoded wherever that is shorter. It needs memory for four times their size.
func RunDelta(ctx context.Context, before, after string) (d Delta, err error) {
	net := memnet.New()
	server, client := net.Node("server"), net.Node("client")
	defer func() { err = errors.Join(err, server.Close(), client.Close()) }()
	from, err := storage.OpenMem()
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := storage.OpenMem()
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	var roots [2]cid.Cid
	for i, dir := range []string{before, after} {
		if roots[i], err = from.AddPath(ctx, dir, storage.PutOptions{Cut: safetensors.Cut}); err != nil {
			return d, fmt.Errorf("bench: checkpoint: %w", err)
		}
	}
	if d.Size, d.Shared, err = from.Compare(ctx, roots[1], roots[0]); err != nil {
		return d, err
	}
	transfer.Serve(server, from, transfer.ServeOptions{Encode: transfer.EncodeAlways})
	f := transfer.NewFetcher(client, nil, to, transfer.Options{})
	var moved [2]uint64
	for i, root := range roots {
		if err := f.Fetch(ctx, root, []peer.ID{server.ID()}); err != nil {
			return d, fmt.Errorf("bench: checkpoint: %w", err)
		}
		moved[i] = f.Stats().Wire
	}
	d.Moved = moved[1] - moved[0]
	d.Share = float64(d.Moved) / float64(d.Size)
	return d, d.rates(filepath.Join(after, "model.safetensors"))
}

// rates measures how fast one core encodes the blocks of a file of tensors, samples included.
func (d *Delta) rates(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("bench: checkpoint: %w", err)
	}
	ends := safetensors.Cut(bytes.NewReader(data), int64(len(data)))
	if len(ends) == 0 {
		return fmt.Errorf("bench: %s is no safetensors file", path)
	}
	d.Small = encodeRate(data, ends)
	whole := data[ends[0]:] // behind the header
	var full []int64
	for at := int64(0); at < int64(len(whole)); {
		at = min(at+encode.MaxBlock, int64(len(whole)))
		full = append(full, at)
	}
	d.Encode = encodeRate(whole, full)
	return nil
}

// encodeRate returns the MB/s of the fastest of some turns.
func encodeRate(data []byte, ends []int64) (rate float64) {
	e := encode.NewEncoder()
	for range 20 {
		start, at, choice := time.Now(), int64(0), encode.Choice{}
		for _, end := range ends {
			choice.Next(e, data[at:end], encode.All)
			at = end
		}
		rate = max(rate, float64(len(data))/1e6/time.Since(start).Seconds())
	}
	return rate
}
