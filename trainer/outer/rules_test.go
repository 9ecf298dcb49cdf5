package outer_test

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
)

// The one-tensor form gives what the published two-tensor step gives when γ equals β.
func TestGossipIsNoLoCo(t *testing.T) {
	const n, alpha, beta = 5000, 0.5, 0.7
	phi := [2]vector{normal(1, n, 1), normal(2, n, 1)}
	var velocity, mean [2]vector
	var phi64, delta64 [2][]float64
	for p := range phi {
		velocity[p], mean[p] = make(vector, n), make(vector, n)
		phi64[p], delta64[p] = make([]float64, n), make([]float64, n)
		for i, v := range phi[p] {
			phi64[p][i] = float64(v)
		}
	}
	for round := range uint64(5) {
		moved := [2]vector{normal(10+round, n, 0.1), normal(20+round, n, 0.1)}
		for i := range n {
			m := (phi[0][i] + moved[0][i] + phi[1][i] + moved[1][i]) / 2
			mean[0][i], mean[1][i] = m, m
			drift := (float64(moved[0][i]) + float64(moved[1][i])) / 2
			middle := (phi64[0][i] + phi64[1][i]) / 2
			for p := range phi {
				delta64[p][i] = alpha*delta64[p][i] + beta*drift + beta*(middle-phi64[p][i])
			}
			phi64[0][i] += delta64[0][i]
			phi64[1][i] += delta64[1][i]
		}
		for p := range phi {
			if err := (outer.Gossip{Alpha: alpha, Beta: beta}).Step(phi[p], velocity[p], mean[p]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for p := range phi {
		for i := range n {
			if math.Abs(float64(phi[p][i])-phi64[p][i]) > 1e-5 {
				t.Fatalf("peer %d, element %d: %g, want %g", p, i, phi[p][i], phi64[p][i])
			}
		}
	}
}

func TestMerge(t *testing.T) {
	fast, shared := vector{1, 2, -4}, vector{3, 2, 8}
	if err := outer.Merge(fast, shared, 0.5); err != nil || fast[0] != 2 || fast[1] != 2 || fast[2] != 2 {
		t.Errorf("half-way between is %v (%v)", fast, err)
	}
	if err := outer.Merge(fast, shared, 0); err != nil || fast[2] != 8 {
		t.Errorf("nothing of its own: %v (%v)", fast, err)
	}
}

// However coarse the codec, healing moves no mass in or out of a group, and it brings the members together.
func TestHealConserves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, peers := rapid.IntRange(1, 2*codec.Block).Draw(t, "n"), rapid.IntRange(2, 6).Draw(t, "peers")
		weights, copies := make([]vector, peers), make([]vector, peers)
		mean := make(vector, n)
		var before float64
		for p := range weights {
			weights[p] = normal(rapid.Uint64().Draw(t, "seed"), n, 1)
			copies[p] = make(vector, n)
			for i, v := range weights[p] {
				copies[p][i] = float32(math.Round(float64(v) * 2)) // a codec that keeps halves
				copies[p][i] /= 2
				mean[i] += copies[p][i] / float32(peers)
				before += float64(v)
			}
		}
		spread := apart(weights)
		for p := range weights {
			if err := outer.Heal(weights[p], mean, copies[p], 0.5); err != nil {
				t.Fatal(err)
			}
		}
		var after float64
		for _, w := range weights {
			for _, v := range w {
				after += float64(v)
			}
		}
		if math.Abs(after-before) > 1e-5*float64(n*peers) {
			t.Fatalf("the weights of %d peers summed to %g, now to %g", peers, before, after)
		}
		if n > 100 && apart(weights) > 0.8*spread {
			t.Fatalf("members stay %g apart, of %g", apart(weights), spread)
		}
	})
}

// apart returns the mean distance of the members from the first.
func apart(weights []vector) (d float64) {
	for _, w := range weights[1:] {
		for i, v := range w {
			d += math.Abs(float64(v - weights[0][i]))
		}
	}
	return d
}

func TestAverage(t *testing.T) {
	dst := make(vector, 3)
	if err := outer.Average(dst, []codec.Source{vector{1, 2, 3}, vector{3, 2, -3}}); err != nil || dst[0] != 2 || dst[1] != 2 || dst[2] != 0 {
		t.Errorf("average %v (%v)", dst, err)
	}
	for _, bad := range [][]codec.Source{nil, {vector{1}}} {
		if err := outer.Average(dst, bad); !errors.Is(err, outer.ErrShape) {
			t.Errorf("%d sources: %v, want ErrShape", len(bad), err)
		}
	}
}

func TestRulesRefuse(t *testing.T) {
	long, short := make(vector, 3), make(vector, 2)
	for name, err := range map[string]error{
		"gossip": outer.Gossip{}.Step(long, short, long), "merge": outer.Merge(long, short, 0), "heal": outer.Heal(long, long, short, 1),
	} {
		if !errors.Is(err, outer.ErrShape) {
			t.Errorf("%s: %v, want ErrShape", name, err)
		}
	}
}
