package transfer

import (
	"errors"
	"net"
	"testing"
)

// A public web seed may not make the one who fetches ask addresses of its own network.
func TestPublicSeedsDoNotLeadInwards(t *testing.T) {
	at := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 80} }
	for _, c := range []struct {
		first, then string
		want        error
	}{
		{"192.0.2.1", "198.51.100.7", nil},
		{"192.0.2.1", "127.0.0.1", ErrProtocol},
		{"192.0.2.1", "10.1.2.3", ErrProtocol},
		{"192.0.2.1", "169.254.169.254", ErrProtocol},
		{"2001:db8::1", "fd00::1", ErrProtocol},
		{"2001:db8::1", "::ffff:192.168.1.1", ErrProtocol},
		{"127.0.0.1", "10.1.2.3", nil},
		{"127.0.0.1", "192.0.2.1", nil},
	} {
		var o outward
		if err := o.judge(at(c.first)); err != nil {
			t.Errorf("%s first: %v", c.first, err)
		}
		if err := o.judge(at(c.then)); !errors.Is(err, c.want) {
			t.Errorf("from %s to %s: %v, want %v", c.first, c.then, err, c.want)
		}
	}
}
