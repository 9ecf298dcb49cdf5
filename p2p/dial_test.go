package p2p

import (
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

func TestTCPIsDialledFirst(t *testing.T) {
	quic, tcp, ws := ma.StringCast("/ip4/127.0.0.1/udp/1/quic-v1"), ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/127.0.0.1/udp/2/webrtc-direct")
	for name, c := range map[string]struct {
		addrs []ma.Multiaddr
		want  map[string]time.Duration
	}{
		"all":     {[]ma.Multiaddr{quic, ws, tcp}, map[string]time.Duration{tcp.String(): 0, quic.String(): quicDelay, ws.String(): otherDelay}},
		"no TCP":  {[]ma.Multiaddr{ws, quic}, map[string]time.Duration{quic.String(): 0, ws.String(): otherDelay - quicDelay}},
		"nothing": {nil, nil},
	} {
		got := rankDials(c.addrs)
		if len(got) != len(c.want) {
			t.Errorf("%s: %v", name, got)
		}
		for _, d := range got {
			if d.Delay != c.want[d.Addr.String()] {
				t.Errorf("%s: %s after %s, want %s", name, d.Addr, d.Delay, c.want[d.Addr.String()])
			}
		}
	}
}
