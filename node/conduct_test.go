package node

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/worker"
)

// The printed bytes hold every blob once, those of the finale too, in which nobody trains and whose step is counted at its end.
func TestBytesOfAllRoundsAreCounted(t *testing.T) {
	trained := func(step uint64, replaces bool) worker.Report {
		return worker.Report{Steps: step, Down: 100, Senders: 3, Contributors: make([]peer.ID, 3), Replaces: replaces}
	}
	finale := func(step uint64) worker.Report { return worker.Report{Steps: step, Down: 1000, Senders: 4} }
	r := &requester{params: 10}
	for _, c := range []struct {
		name        string
		report      worker.Report
		bytes, ring uint64 // so far
	}{
		{"five steps", trained(5, false), 300, 800},
		{"the same round in another version", trained(5, true), 300, 800},
		{"nobody's update was applied", worker.Report{Steps: 5}, 300, 800},
		{"first axis of the finale", finale(5), 4300, 800},
		{"last axis of the finale", finale(6), 8300, 1040},
	} {
		r.countBytes(c.report, c.report.Steps-min(c.report.Steps, r.log.Step))
		if r.log.Bytes != c.bytes || r.log.RingBytes != c.ring {
			t.Errorf("%s: %d bytes and %d of a ring, want %d and %d", c.name, r.log.Bytes, r.log.RingBytes, c.bytes, c.ring)
		}
	}
}
