package market

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
)

// What both sides do alike with a lease.

// closeLease records the close of a lease by this side and returns the message that tells the other.
func closeLease(r *registry, key crypto.PrivKey, id lease.ID, reason lease.Reason) (lease.Request, lease.Lease, error) {
	if !reason.Known() {
		return lease.Request{}, lease.Lease{}, fmt.Errorf("market: close lease %s for %q: %w", id.Short(), reason, lease.ErrMalformed)
	}
	l, err := r.get(id)
	if err != nil {
		return lease.Request{}, l, err
	}
	now := r.now()
	rec := lease.CloseRecord{Lease: id, Reason: reason, AtMs: now.UnixMilli()}
	newest, err := r.db.Newest(l)
	if err != nil {
		return lease.Request{}, l, err
	}
	if newest != nil {
		rec.Receipt, rec.Tick = newest.Nonce, newest.Nonce
	}
	if env, found, err := r.db.Tick(id); err == nil && found {
		if t, err := meter.OpenTick(env, l.Terms.Provider); err == nil {
			rec.Tick = t.Nonce
		}
	}
	env, err := lease.Seal(key, lease.CloseDomain, rec)
	if err != nil {
		return lease.Request{}, l, err
	}
	l, err = r.apply(id, func(l lease.Lease) (lease.Lease, error) { return l.Close(reason, env, now) })
	return lease.Request{Op: lease.OpClose, Lease: id, Envelope: env, Reason: reason}, l, err
}

// closed takes in the other side's close record.
func closed(r *registry, l lease.Lease, env []byte) (lease.Lease, error) {
	rec, err := lease.OpenClose(env, l)
	if err != nil {
		return l, err
	}
	return r.apply(l.ID, func(l lease.Lease) (lease.Lease, error) { return l.Close(rec.Reason, env, r.now()) })
}

// drained takes in the other side's wish to drain. Draining twice is the same as once.
func drained(r *registry, id lease.ID, reason lease.Reason) (lease.Lease, error) {
	if !reason.Known() {
		return lease.Lease{}, fmt.Errorf("market: drain lease %s for %q: %w", id.Short(), reason, lease.ErrMalformed)
	}
	return r.apply(id, func(l lease.Lease) (lease.Lease, error) {
		if l.Phase == lease.Draining {
			return l, nil
		}
		return l.Drain(reason, r.now())
	})
}

// status is the reply that tells the other side how a lease stands here.
func status(r *registry, l lease.Lease) (lease.Reply, error) {
	reply := lease.Reply{Phase: l.Phase, Reason: l.Reason}
	newest, err := r.db.Newest(l)
	if err != nil {
		return lease.Reply{}, err
	}
	if newest != nil {
		reply.Receipt = newest.Nonce
	}
	return reply, nil
}
