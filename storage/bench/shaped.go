package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/transfer"
)

// Shaped are fetches over links of a set speed, in memory and in real time.
type Shaped struct {
	Long  float64 // share of one link of 500 Mbit/s with 25 ms one way that a fetch uses
	Four  float64 // how many times as fast four sources of 100 Mbit/s are as one of them
	Twice float64 // share of the bytes that the four sent more than once
}

// mbit is one Mbit/s in bytes per second.
const mbit = 1e6 / 8

// RunShaped measures over shaped links. It takes some seconds and holds about 300 MB.
func RunShaped(ctx context.Context) (s Shaped, err error) {
	const long, wide = 96 << 20, 32 << 20
	fat := memnet.Link{Latency: 25 * time.Millisecond, Bandwidth: 500 * mbit}
	took, _, err := shaped(ctx, long, fat, 1)
	if err != nil {
		return s, err
	}
	s.Long = long / took.Seconds() / float64(fat.Bandwidth)
	home := memnet.Link{Latency: 5 * time.Millisecond, Bandwidth: 100 * mbit}
	one, _, err := shaped(ctx, wide, home, 1)
	if err != nil {
		return s, err
	}
	four, twice, err := shaped(ctx, wide, home, sources)
	if err != nil {
		return s, err
	}
	s.Four, s.Twice = one.Seconds()/four.Seconds(), twice
	return s, nil
}

// shaped fetches so many bytes from servers behind links of their own.
func shaped(ctx context.Context, size int, link memnet.Link, servers int) (took time.Duration, twice float64, err error) {
	net := memnet.New()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(data)
	client := net.Node("client")
	defer func() { err = errors.Join(err, client.Close()) }()
	to, err := storage.OpenMem()
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	store, err := storage.OpenMem()
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var c cid.Cid
	if c, err = store.PutBytes(ctx, data, storage.PutOptions{}); err != nil {
		return 0, 0, err
	}
	var from []peer.ID
	var served []*transfer.Server
	for i := range servers {
		n := net.Node(fmt.Sprint("server ", i))
		defer func() { err = errors.Join(err, n.Close()) }()
		net.ShapeLink(n.ID(), client.ID(), link)
		net.ShapeLink(client.ID(), n.ID(), memnet.Link{Latency: link.Latency})
		from, served = append(from, n.ID()), append(served, transfer.Serve(n, store, transfer.ServeOptions{}))
	}
	start := time.Now()
	if err := transfer.NewFetcher(client, nil, to, transfer.Options{}).Fetch(ctx, c, from); err != nil {
		return 0, 0, err
	}
	took = time.Since(start)
	var sent uint64
	for _, s := range served {
		sent += s.Stats().Bytes
	}
	return took, max(0, float64(sent)/float64(size)-1), nil
}
