package node

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/offer"
)

// A place is offered to providers that have none in the run: a member with a free slot is passed over for another.
func TestSparesAreNoMembers(t *testing.T) {
	gone := func(id peer.ID) bool { return id == "c" }
	for name, c := range map[string]struct {
		found, members, want string
	}{
		"a member has a free slot, another provider too": {"ab", "a", "b"},
		"only members have free slots":                   {"ab", "ab", ""},
		"one has just left":                              {"abcd", "a", "bd"},
		"nobody is a member":                             {"ab", "", "ab"},
	} {
		var found []offer.Offer
		var members []peer.ID
		for _, id := range c.found {
			found = append(found, offer.Offer{Peer: peer.ID(id), Beacon: offer.Beacon{Free: 1, Total: 2}})
		}
		for _, id := range c.members {
			members = append(members, peer.ID(id))
		}
		got := ""
		for _, o := range spares(found, members, gone) {
			got += string(o.Peer)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
