package p2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
)

// Head starts of the dial ranking.
const (
	quicDelay  = 250 * time.Millisecond // QUIC is tried when TCP has not answered by then
	otherDelay = 500 * time.Millisecond
)

// rankDials tries TCP before QUIC, against libp2p's default. Two reasons: QUIC in Go has Reno and fixed windows, so bulk
// data is faster over TCP; and the kernel resets the TCP connections of a killed process at once, where a dead QUIC
// connection is noticed only after 30 s of silence, in which a restarted peer hears no gossip.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	ranked := make([]network.AddrDelay, 0, len(addrs))
	tcp := false
	for _, a := range addrs {
		if isTCP(a) {
			tcp = true
			ranked = append(ranked, network.AddrDelay{Addr: a})
		}
	}
	for _, a := range addrs {
		if isTCP(a) {
			continue
		}
		d := network.AddrDelay{Addr: a, Delay: otherDelay}
		if _, err := a.ValueForProtocol(ma.P_QUIC_V1); err == nil {
			d.Delay = quicDelay
		}
		if !tcp {
			d.Delay -= quicDelay
		}
		ranked = append(ranked, d)
	}
	return ranked
}

func isTCP(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_TCP)
	return err == nil
}
