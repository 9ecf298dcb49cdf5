package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/ipfs"
	"github.com/capacloud/capanode/storage/transfer"
)

// network is what a node needs of the outside: a libp2p host, or its in-memory twin in tests.
type network interface {
	p2p.Network
	p2p.Router
}

// Node is an open home: its store and its market records, and the network once it has joined.
type Node struct {
	home  *Home
	cfg   Config
	log   *slog.Logger
	key   crypto.PrivKey
	id    peer.ID
	store *storage.Store
	db    *market.DB
	runs  runs

	// Set by join.
	net      network
	host     *p2p.Host // nil when net is a twin
	fetch    *transfer.Fetcher
	ipfs     *ipfs.Exchange // nil unless blocks are exchanged with IPFS nodes
	ask      transfer.Ask   // how a tool fetches, but from whom
	exchange *market.Exchange
	api      *api
	closers  []func() error // in the order of opening

	from       []string        // addresses that are asked first for what is not here
	life       context.Context // ends when the node closes
	die        context.CancelFunc
	background sync.WaitGroup

	stopOnce sync.Once
	stopping chan struct{} // closed by a request through the local API
}

// openNode opens the home without touching the network. Close it.
func openNode(ctx context.Context, dir string, cfg Config, log *slog.Logger) (*Node, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, log: log, stopping: make(chan struct{})}
	n.life, n.die = context.WithCancel(context.Background())
	if err := n.open(ctx, dir); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) open(ctx context.Context, dir string) (err error) {
	if n.home, err = OpenHome(dir); err != nil {
		return err
	}
	n.closers = append(n.closers, n.home.Close)
	identity, err := n.home.sub("identity")
	if err != nil {
		return err
	}
	if n.key, err = p2p.LoadOrCreateIdentity(identity); err != nil {
		return err
	}
	if n.id, err = peer.IDFromPrivateKey(n.key); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	dirs := map[string]string{}
	for _, name := range []string{"store", "market", "runs"} {
		if dirs[name], err = n.home.sub(name); err != nil {
			return err
		}
	}
	n.runs = runs{dirs["runs"]}
	if err := n.runs.sweep(); err != nil {
		return err
	}
	if n.store, err = storage.Open(ctx, dirs["store"], storage.Options{Quota: n.cfg.Quota, Logger: n.log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.store.Close)
	if n.db, err = market.OpenDB(dirs["market"]); err != nil {
		return err
	}
	n.closers = append(n.closers, n.db.Close)
	return nil
}

// join brings the node onto the network: host, blob server, offers, local API.
func (n *Node) join(ctx context.Context, role p2p.Role) error {
	host, err := p2p.NewHost(ctx, p2p.Config{
		Identity: n.key, Listen: n.cfg.Listen, Bootstrap: n.cfg.Bootstrap, Role: role, Network: n.cfg.Network,
		MDNS: n.cfg.MDNS, PeerCache: n.home.Path("peers.json"), Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.host = host
	n.closers = append(n.closers, host.Close)
	if n.cfg.IPFS {
		n.trade(true)
	}
	return n.attach(host)
}

// attach starts the node's services on a network.
func (n *Node) attach(net network) (err error) {
	n.net = net
	bans, err := transfer.OpenBans(n.home.Path("bans.json"), nil)
	if err != nil {
		return err
	}
	seed := transfer.Serve(net, n.store, transfer.ServeOptions{Logger: n.log})
	n.fetch = transfer.NewFetcher(net, net, n.store, transfer.Options{Logger: n.log, Bans: bans, Seed: seed})
	if n.exchange, err = market.NewExchange(market.ExchangeConfig{Net: net, Router: net, DB: n.db, Log: n.log}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.exchange.Close)
	if n.api, err = serveAPI(n.home, n.views(), map[string]view{"stop": n.requestStop}); err != nil {
		return err
	}
	n.closers = append(n.closers, n.api.Close)
	return nil
}

// requestStop answers the API's stop.
func (n *Node) requestStop(context.Context, url.Values) (any, error) {
	n.stopOnce.Do(func() { close(n.stopping) })
	return map[string]bool{"stopping": true}, nil
}

// stopWith closes its result when either the caller's stop or the API's is closed, or the context ends.
func (n *Node) stopWith(ctx context.Context, stop <-chan struct{}) <-chan struct{} {
	both := make(chan struct{})
	go func() {
		defer close(both)
		select {
		case <-ctx.Done():
		case <-stop:
		case <-n.stopping:
		}
	}()
	return both
}

// onClose registers what must be closed before everything opened so far.
func (n *Node) onClose(f func() error) { n.closers = append(n.closers, f) }

// Close stops the node in the reverse order of its opening.
func (n *Node) Close() error {
	n.die()
	n.background.Wait()
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// addresses lists what others can dial, with the peer ID.
func (n *Node) addresses() []string {
	if n.host == nil {
		return nil
	}
	return n.host.Addrs()
}

// maxNeighbours bounds how many connected peers are asked for an object besides those who are known to have it.
const maxNeighbours = 32

// neighbours lists a peer that should have what is wanted, then who else is connected.
func (n *Node) neighbours(first peer.ID) []peer.ID {
	all := []peer.ID{first}
	for _, id := range n.net.Connected() {
		if id != first && len(all) < maxNeighbours {
			all = append(all, id)
		}
	}
	return all
}

// bestAddress prefers an address that other machines can dial over loopback, and TCP over QUIC.
func bestAddress(all []string) string {
	best, score := "", -1
	for _, a := range all {
		m, err := multiaddr.NewMultiaddr(a)
		if err != nil {
			continue
		}
		s := 0
		if ip, err := m.ValueForProtocol(multiaddr.P_IP4); err == nil && !strings.HasPrefix(ip, "127.") {
			s += 2
		}
		if _, err := m.ValueForProtocol(multiaddr.P_TCP); err == nil {
			s++
		}
		if s > score {
			best, score = a, s
		}
	}
	return best
}

// alone refuses to go on when another process runs under this home's identity, as it does when a home was copied: peers
// would take the two for one. It must be called before join.
func (n *Node) alone(ctx context.Context) error {
	return p2p.Alone(ctx, p2p.Config{Identity: n.key, Network: n.cfg.Network, Bootstrap: n.cfg.Bootstrap})
}

// reach waits until a bootstrap node answers. Without bootstrap nodes it returns at once: peers come by mDNS or dial in.
func (n *Node) reach(ctx context.Context) error {
	if n.host == nil || len(n.cfg.Bootstrap) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := n.host.Bootstrap(ctx)
	if err != nil && !errors.Is(err, p2p.ErrNoBootstrap) && !errors.Is(err, p2p.ErrOtherNetwork) {
		return fmt.Errorf("%w: %w", ErrTryLater, err)
	}
	return err
}

// ask answers a read-only question about a home: by the node that runs on it, or from its files when none runs.
func ask(ctx context.Context, dir string, cfg Config, name string, q url.Values) (any, error) {
	if answer, err := callAPI(ctx, dir, name, q); !errors.Is(err, errNoAPI) {
		return answer, err
	}
	n, err := openNode(ctx, dir, cfg, nil)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	v, ok := n.views()[name]
	if !ok {
		return nil, fmt.Errorf("%w: no view %q", ErrUsage, name)
	}
	return v(ctx, q)
}

// parseCID reads a CID from a command line.
func parseCID(text string) (cid.Cid, error) {
	c, err := cid.Decode(text)
	if err != nil {
		return cid.Undef, fmt.Errorf("%w: %q is no CID: %w; `capanode storage ls` lists those that are here", ErrUsage, text, err)
	}
	return c, nil
}
