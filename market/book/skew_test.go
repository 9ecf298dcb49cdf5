package book

import (
	"fmt"
	"testing"
	"time"
)

// A book whose clock is wrong says so: all its offers are refused, each by about as much.
func TestC16ClockSkewIsExplained(t *testing.T) {
	for name, c := range map[string]struct {
		local    time.Duration // how far the local clock is ahead of everybody else's
		accepted int
		peers    int
	}{
		"right":                   {0, 5, 0},
		"within the allowance":    {-20 * time.Second, 5, 0},
		"behind":                  {-10 * time.Minute, 0, 5},
		"ahead within their life": {4 * time.Minute, 5, 0},
		"ahead":                   {time.Hour, 0, 5},
	} {
		t.Run(name, func(t *testing.T) {
			now := noon.Add(c.local)
			b := New(func() time.Time { return now })
			for i := range 5 {
				_, _ = b.Apply(beacon(t, fmt.Sprint(i), 1, noon.Add(time.Duration(-i)*time.Second))) // counted below
			}
			peers, ahead := b.Skewed()
			if b.Len() != c.accepted || peers != c.peers {
				t.Errorf("%d offers accepted, %d refused for their times; want %d and %d", b.Len(), peers, c.accepted, c.peers)
			}
			if peers > 0 && (ahead+c.local).Abs() > 5*time.Second {
				t.Errorf("others seem %v ahead, the local clock is %v ahead", ahead, c.local)
			}
			t.Logf("local clock %v ahead: %d offers accepted, %d refused, others %v ahead", c.local, b.Len(), peers, ahead)
			now = noon // the clock is set
			for i := range 5 {
				_, _ = b.Apply(beacon(t, fmt.Sprint(i), 2, noon)) // the same
			}
			if peers, _ := b.Skewed(); b.Len() != 5 || peers != 0 {
				t.Errorf("with the clock set: %d offers, %d still refused", b.Len(), peers)
			}
		})
	}
}

// An offer that has just died is no sign of a wrong clock, and strangers cannot make a book remember more than it wants.
func TestDeadOffersAreNoSkew(t *testing.T) {
	b := New(func() time.Time { return noon })
	if _, err := b.Apply(beacon(t, "dead", 1, noon.Add(-340*time.Second))); err == nil {
		t.Error("a dead offer is accepted")
	}
	if peers, _ := b.Skewed(); peers != 0 {
		t.Error("a dead offer counts as one from a wrong clock")
	}
	for i := range maxSkewed + 10 {
		_, _ = b.Apply(beacon(t, fmt.Sprint(i), 1, noon.Add(time.Hour)))
	}
	if peers, ahead := b.Skewed(); peers != maxSkewed || ahead != time.Hour {
		t.Errorf("%d peers, %v ahead", peers, ahead)
	}
}
