package p2p

import (
	"bytes"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/capacloud/capanode/p2p/peertest"
)

// numbered is the peer with a number.
func numbered(t testing.TB, n int) peer.ID { return peertest.ID(t, strconv.Itoa(n)) }

// crowd is n peers with the same addresses.
func crowd(t testing.TB, n int, addrs ...string) []peer.AddrInfo {
	infos := make([]peer.AddrInfo, n)
	for i := range infos {
		infos[i].ID = numbered(t, i)
		for _, a := range addrs {
			infos[i].Addrs = append(infos[i].Addrs, multiaddr.StringCast(a))
		}
	}
	return infos
}

func TestPeerCacheIsBounded(t *testing.T) {
	addrs := slices.Repeat([]string{"/ip4/192.0.2.1/tcp/4101"}, 2*cacheAddrs)
	got := parseCache(formatCache(crowd(t, 2*cachePeers, addrs...)), "")
	if len(got) != cachePeers || len(got[0].Addrs) != cacheAddrs {
		t.Errorf("%d peers, the first with %d addresses", len(got), len(got[0].Addrs))
	}
	long := bytes.Repeat(formatCache(crowd(t, 2*cachePeers, addrs...)), 3)
	if got := parseCache(long, numbered(t, 0)); len(got) != cachePeers-1 {
		t.Errorf("%d peers without this node", len(got))
	}
}

// FuzzPeerCache checks that remembered peers, whatever the file holds, come back as they are written, within the limits.
func FuzzPeerCache(f *testing.F) {
	self := numbered(f, 0)
	f.Add(formatCache(crowd(f, 3, "/ip4/192.0.2.1/tcp/4101", "/ip6/2001:db8::1/udp/4101/quic-v1")))
	f.Add([]byte("/p2p/" + numbered(f, 1).String() + "\n/ip4/192.0.2.1/tcp/1\n"))
	f.Add([]byte("/ip4/192.0.2.1/tcp/1/p2p/" + numbered(f, 1).String() + "/p2p-circuit/p2p/" + numbered(f, 2).String() + "\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		infos := parseCache(text, self)
		if len(infos) > cachePeers {
			t.Fatalf("%d peers", len(infos))
		}
		infos = slices.DeleteFunc(infos, func(i peer.AddrInfo) bool { return len(i.Addrs) == 0 }) // nothing to remember of them
		for _, i := range infos {
			if i.ID == self || len(i.Addrs) > cacheAddrs {
				t.Fatalf("peer %s with %d addresses", i.ID, len(i.Addrs))
			}
		}
		if again := parseCache(formatCache(infos), self); len(again) != len(infos) || len(infos) > 0 && !reflect.DeepEqual(again, infos) {
			t.Fatalf("%v came back as %v", infos, again)
		}
	})
}
