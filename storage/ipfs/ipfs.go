// Package ipfs owns the exchange of blocks with IPFS nodes such as kubo, over bitswap 1.2: a server that answers from the store,
// and a fetcher that fills it. It is the only package that imports boxo, and refuses to find peers, to dial them and to announce
// anything: who is connected is decided elsewhere. docs/protocol/ipfs.md says what is exchanged and within which limits.
package ipfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
)

// Protocols are the bitswap versions that are spoken, the newest first.
var Protocols = []protocol.ID{bsnet.ProtocolBitswap, bsnet.ProtocolBitswapOneOne, bsnet.ProtocolBitswapOneZero, bsnet.ProtocolBitswapNoVers}

// limits bounds incoming streams. Each may hold one message of at most 4 MiB. A peer's server opens one stream for each message.
var limits = p2p.Limits{Streams: 128, StreamsPerPeer: 32, Idle: 2 * time.Minute}

const (
	// outstanding is how many bytes are read for one peer before it has taken them.
	outstanding = 8 << 20
	// wants is how many wants of one peer are remembered; later ones are dropped, and the peer asks again.
	wants = 1024
	// longestCID is the longest CID in a want: none that the store can have is longer.
	longestCID = 64
)

// Options tunes an exchange. Zero fields take the defaults.
type Options struct {
	Serve    bool          // answer the wants of others
	Patience time.Duration // a fetch to which no block comes for so long fails; default 10 s
	Logger   *slog.Logger  // nil discards
}

// Host is what an exchange needs of a node: a libp2p host for a library, as [p2p.Host.Bare] returns it.
type Host interface {
	Bare(p2p.Limits) host.Host
	Supports(peer.ID, ...protocol.ID) bool
}

// Exchange trades blocks with connected IPFS nodes until it is closed.
type Exchange struct {
	store  *storage.Store
	host   Host
	bare   host.Host
	net    network.BitSwapNetwork
	swap   *bitswap.Bitswap
	stop   context.CancelFunc
	o      Options
	log    *slog.Logger
	notice *notice
}

// Start begins to exchange blocks. Close it before the host and the store.
func Start(h Host, store *storage.Store, o Options) *Exchange {
	if o.Patience <= 0 {
		o.Patience = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	x := &Exchange{store: store, host: h, bare: h.Bare(limits), o: o, log: o.Logger.With("room", "ipfs"), notice: newNotice()}
	ctx, stop := context.WithCancel(context.Background())
	x.stop = stop
	x.net = bsnet.NewFromIpfsHost(x.bare)
	options := []bitswap.Option{
		bitswap.WithServerEnabled(o.Serve), bitswap.WithTracer(x.notice), bitswap.WithoutDuplicatedBlockStats(),
		bitswap.MaxOutstandingBytesPerPeer(outstanding), bitswap.MaxQueuedWantlistEntriesPerPeer(wants), bitswap.MaxCidSize(longestCID),
		bitswap.EngineBlockstoreWorkerCount(16),
	}
	x.swap = bitswap.New(ctx, x.net, nil, view{store, x.log}, options...)
	return x
}

// Speaks says whether a connected peer exchanges blocks over bitswap.
func (x *Exchange) Speaks(id peer.ID) bool { return x.host.Supports(id, Protocols...) }

// Stats is what was exchanged.
type Stats struct {
	BlocksIn, BlocksOut uint64
	BytesIn, BytesOut   uint64
}

// Stats returns what was exchanged since the start.
func (x *Exchange) Stats() (Stats, error) {
	s, err := x.swap.Stat()
	if err != nil {
		return Stats{}, fmt.Errorf("ipfs: %w", err)
	}
	return Stats{BlocksIn: s.BlocksReceived, BytesIn: s.DataReceived, BlocksOut: s.BlocksSent, BytesOut: s.DataSent}, nil
}

// Close ends the exchange and every fetch.
func (x *Exchange) Close() error {
	for _, p := range Protocols {
		x.bare.RemoveStreamHandler(p)
	}
	x.net.Stop()
	err := x.swap.Close()
	x.stop()
	if err != nil {
		return fmt.Errorf("ipfs: close: %w", err)
	}
	return nil
}

var errReadOnly = errors.New("ipfs: the store takes objects, not single blocks")
