package p2p

import "testing"

// All nodes of a swarm together dial a node that is down about as often as eight would.
func TestRedialPauseGrowsWithTheSwarm(t *testing.T) {
	for connections, want := range map[int]int{0: 1, 7: 1, 8: 2, 64: 9, 1000: maxRedial} {
		if got := int(redialPause(connections)); got != want {
			t.Errorf("with %d connections: %d dial timeouts, want %d", connections, got, want)
		}
	}
}
