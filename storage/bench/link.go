package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// linkPiece is how many bytes of a connection travel at a time.
	linkPiece = 64 << 10
	// linkQueue is how long bytes may wait for their turn on the link before the sender does: enough that a link stays busy
	// while this process waits for a processor.
	linkQueue = 20 * time.Millisecond
	// linkAhead bounds the pieces of one connection that are under way.
	linkAhead = 1024
)

// link passes the TCP connections that it takes on to a listener, as a long line would: what the listener's side sends leaves at
// a set rate, one piece after another over all connections, and each side's bytes come a set time after they left. It models
// neither losses nor the congestion control of the ends, whose windows are as open as the kernel makes them on loopback.
type link struct {
	listener net.Listener
	target   string
	delay    time.Duration // one way
	rate     float64       // bytes per second towards those who connect
	carried  atomic.Int64  // bytes towards them

	stop context.CancelFunc
	ctx  context.Context
	work sync.WaitGroup

	mu   sync.Mutex
	idle time.Time // when the line has sent all that waits for it
}

// newLink listens on a loopback port for connections to a target.
func newLink(target string, delay time.Duration, rate float64) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	l := &link{listener: listener, target: target, delay: delay, rate: rate}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.work.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // closed
			}
			l.work.Go(func() { l.connect(near) })
		}
	})
	return l, nil
}

// linkTo puts a link before an address that ends in a peer ID, and returns the address at which the peer is reached through it.
func linkTo(addr string, delay time.Duration, rate float64) (*link, string, error) {
	full, err := ma.NewMultiaddr(addr)
	if err != nil {
		return nil, "", fmt.Errorf("link to %s: %w", addr, err)
	}
	transport, id := ma.SplitLast(full)
	if id == nil {
		return nil, "", fmt.Errorf("link to %s: no peer ID", addr)
	}
	network, target, err := manet.DialArgs(transport)
	if err != nil || network != "tcp4" {
		return nil, "", errors.Join(fmt.Errorf("link to %s: %s, want tcp4", addr, network), err)
	}
	l, err := newLink(target, delay, rate)
	if err != nil {
		return nil, "", err
	}
	near, err := manet.FromNetAddr(l.listener.Addr())
	if err != nil {
		l.close()
		return nil, "", fmt.Errorf("link to %s: %w", addr, err)
	}
	return l, near.AppendComponent(id).String(), nil
}

// close cuts the link and waits until nothing of it runs.
func (l *link) close() {
	l.stop()
	_ = l.listener.Close()
	l.work.Wait()
}

// connect carries one connection until either side ends or the link is cut.
func (l *link) connect(near net.Conn) {
	defer near.Close()
	far, err := new(net.Dialer).DialContext(l.ctx, "tcp", l.target)
	if err != nil {
		return // whoever connected sees its connection end
	}
	defer far.Close()
	ctx, stop := context.WithCancel(l.ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })()
	var both sync.WaitGroup
	both.Go(func() { defer stop(); l.carry(ctx, far, near, false) })
	both.Go(func() { defer stop(); l.carry(ctx, near, far, true) })
	both.Wait()
}

// underway is a piece on the line.
type underway struct {
	data *[linkPiece]byte
	n    int
	at   time.Time // of its arrival
}

// carry moves bytes from one connection to the other until one ends. What is under way arrives after the sender's end.
func (l *link) carry(ctx context.Context, to, from net.Conn, shaped bool) {
	pieces, spare := make(chan underway, linkAhead), make(chan *[linkPiece]byte, linkAhead)
	var writer sync.WaitGroup
	defer writer.Wait()
	defer close(pieces)
	writer.Go(func() {
		for p := range pieces {
			if !sleepUntil(ctx, p.at) {
				continue
			}
			if _, err := to.Write(p.data[:p.n]); err != nil {
				_ = from.Close() // ends the reader
			}
			select {
			case spare <- p.data:
			default:
			}
		}
	})
	for {
		var p underway
		select {
		case p.data = <-spare:
		default:
			p.data = new([linkPiece]byte)
		}
		var err error
		if p.n, err = from.Read(p.data[:]); err != nil {
			return
		}
		left := time.Now()
		if shaped {
			left = l.book(p.n)
		}
		p.at = left.Add(l.delay)
		select {
		case pieces <- p:
		case <-ctx.Done():
			return
		}
		if !sleepUntil(ctx, left.Add(-linkQueue)) {
			return
		}
	}
}

// book gives a piece its turn on the line and returns when its last byte has left.
func (l *link) book(n int) time.Time {
	l.carried.Add(int64(n))
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.idle.Before(now) {
		l.idle = now
	}
	l.idle = l.idle.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return l.idle
}

// sleepUntil reports whether the moment came before the context's end.
func sleepUntil(ctx context.Context, t time.Time) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
