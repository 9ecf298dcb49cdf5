package market

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/market/book"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
)

// TestHostilePeers sends garbage and forgeries to every protocol.
func TestHostilePeers(t *testing.T) {
	net := memnet.New()
	s, c := newShop(t, net, "provider", nil), newClient(t, net, "requester")
	x, err := NewExchange(ExchangeConfig{Net: s.node, Router: s.node, DB: s.db, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	l, err := c.buyer.Lease(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	evil := net.Node("evil")
	t.Cleanup(func() { evil.Close() })
	for proto, to := range map[protocol.ID]peer.ID{
		lease.Protocol: s.node.ID(), lease.NoticeProtocol: c.node.ID(), meter.Protocol: c.node.ID(), book.Protocol: s.node.ID(),
	} {
		for _, garbage := range []string{"", "\x00", "\xff\xff\xff\xffhuge", "\x00\x00\x00\x04\xa1\x61", "\x00\x00\x00\x01\xf6", "\x00\x00\x00\x06\x9f\x9f\x9f\x9f\x9f\x9f"} {
			st, err := evil.Open(t.Context(), to, proto)
			if err != nil {
				t.Fatal(err)
			}
			st.Write([]byte(garbage))
			st.CloseWrite()
			st.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.ReadAll(st); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s hangs on %q", proto, garbage)
			}
			st.Reset()
		}
	}
	forgedClose, err := lease.Seal(evil.Key(), lease.CloseDomain, lease.CloseRecord{Lease: l.ID, Reason: lease.RequesterDone})
	if err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]lease.Request{
		"beat":    {Op: lease.OpBeat, Lease: l.ID},
		"close":   {Op: lease.OpClose, Lease: l.ID, Envelope: forgedClose},
		"drain":   {Op: lease.OpDrain, Lease: l.ID, Reason: lease.RequesterDone},
		"ack":     {Op: lease.OpAck, Lease: l.ID, Envelope: l.Ack},
		"accept":  {Op: lease.OpAccept, Lease: l.ID, Envelope: l.Accept},
		"quote":   {Op: lease.OpQuote, Terms: &l.Terms},
		"reclaim": {Op: lease.OpReclaim, Lease: l.ID},
	} {
		if _, err := s.seller.answer(evil.ID(), req); !errors.Is(err, lease.ErrWrongPeer) {
			t.Errorf("provider, %s: %v", name, err)
		}
		if req.Op == lease.OpClose || req.Op == lease.OpDrain || req.Op == lease.OpReclaim {
			if _, err := c.buyer.notice(evil.ID(), req); !errors.Is(err, lease.ErrWrongPeer) {
				t.Errorf("requester, %s: %v", name, err)
			}
		}
	}
	if _, err := s.seller.answer(c.node.ID(), lease.Request{Op: lease.OpClose, Lease: l.ID, Envelope: forgedClose}); !errors.Is(err, lease.ErrWrongPeer) {
		t.Errorf("close signed by another: %v", err)
	}
	if _, err := s.seller.answer(c.node.ID(), lease.Request{Op: "dance", Lease: l.ID}); !errors.Is(err, lease.ErrMalformed) {
		t.Errorf("unknown operation: %v", err)
	}
	if _, err := s.seller.answer(c.node.ID(), lease.Request{Op: lease.OpBeat, Lease: lease.ID{1}}); !errors.Is(err, lease.ErrUnknown) {
		t.Errorf("unknown lease: %v", err)
	}
	forgedTick, err := meter.SealTick(evil.Key(), meter.Tick{Lease: l.ID, Nonce: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.buyer.tick(evil.ID(), forgedTick); !errors.Is(err, lease.ErrWrongPeer) {
		t.Errorf("tick of another peer: %v", err)
	}
	if _, err := c.buyer.tick(s.node.ID(), forgedTick); !errors.Is(err, lease.ErrWrongPeer) {
		t.Errorf("tick signed by another: %v", err)
	}
	fast, err := meter.SealTick(s.node.Key(), meter.Tick{Lease: l.ID, Nonce: 1, Counters: meter.Counters{SlotMs: 60_000}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.buyer.tick(s.node.ID(), fast); !errors.Is(err, meter.ErrTooFast) {
		t.Errorf("a minute claimed after a moment: %v", err)
	}
	topic, err := evil.Join(OffersTopic, nil)
	if err != nil {
		t.Fatal(err)
	}
	topic.Publish(t.Context(), []byte("garbage"))
	stolen, err := offer.Seal(s.node.Key(), offer.Beacon{
		Version: 1, Seq: 1 << 50, IssuedMs: time.Now().UnixMilli(), TTL: 300, Class: "cpu", Price: 1, Free: 1, Total: 1, MaxLease: 60,
	})
	if err != nil {
		t.Fatal(err)
	}
	if v := x.judge(evil.ID(), stolen); v != p2p.Reject {
		t.Errorf("a beacon sent by somebody else: verdict %d", v)
	}
	if got, err := s.seller.Get(l.ID); err != nil || got.Phase != lease.Active {
		t.Errorf("the lease suffered: %s, %v", got.Phase, err)
	}
	if _, err := s.seller.SendTick(t.Context(), l.ID, Work{Units: 1}); err != nil {
		t.Errorf("honest work suffered: %v", err)
	}
}
