// Package market owns buying and selling over the network: it announces and gathers offers ([Exchange]), sells slots
// ([Seller]), leases them ([Buyer]), and turns work into receipts. The rules live in the packages below it; this one
// adds streams, timers and the database. It refuses to know what a slot computes: the node hands in callbacks that start
// work and verify it.
package market

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/market/journal"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
)

// DB is the market's database: leases, receipts and the ledger. It is a [ledger.Source].
type DB = journal.DB

// OpenDB opens or creates the market's database in a folder of its own. One process at a time may hold it.
func OpenDB(dir string) (*DB, error) { return journal.Open(dir) }

// ErrConfig reports a configuration that cannot work.
var ErrConfig = errors.New("invalid market configuration")

const (
	// messageTimeout bounds each message of a conversation.
	messageTimeout = 5 * time.Second
	// requestTimeout bounds the wait for the next request on a stream: a requester may renew a hold on it.
	requestTimeout = 3 * messageTimeout
)

// steadyClock returns a clock that starts at the wall clock and then follows the monotonic one, so that a stepped wall
// clock neither bills nor expires anything.
func steadyClock() func() time.Time {
	start := time.Now()
	return func() time.Time { return start.Add(time.Since(start)) }
}

// call opens a stream, sends one request and reads one reply.
func call(ctx context.Context, net p2p.Network, to peer.ID, c conversation) error {
	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	s, err := net.Open(ctx, to, c.protocol)
	if err != nil {
		return fmt.Errorf("market: open %s to %s: %w", c.protocol, to, err)
	}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if err := c.exchange(s); err != nil {
		s.Reset()
		return err
	}
	// The reply is here; how the other side ended the stream changes nothing.
	_ = s.Close()
	return nil
}

// conversation is one request with room for its reply.
type conversation struct {
	protocol protocol.ID
	limit    int // bytes of the reply
	request  any
	reply    any
}

func (c conversation) exchange(s p2p.Stream) error {
	if err := send(s, c.request); err != nil {
		return err
	}
	return receive(s, c.limit, messageTimeout, c.reply)
}

func send(s p2p.Stream, v any) error {
	if err := s.SetDeadline(time.Now().Add(messageTimeout)); err != nil {
		return fmt.Errorf("market: %w", err)
	}
	if err := wire.WriteRecord(s, v); err != nil {
		return fmt.Errorf("market: send to %s: %w", s.Remote(), err)
	}
	return nil
}

func receive(s p2p.Stream, limit int, within time.Duration, v any) error {
	if err := s.SetDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("market: %w", err)
	}
	if err := wire.ReadRecord(s, limit, v); err != nil {
		return fmt.Errorf("market: receive from %s: %w", s.Remote(), err)
	}
	return nil
}
