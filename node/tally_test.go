package node

import (
	"errors"
	"testing"
)

func TestCreditLine(t *testing.T) {
	refused := errors.New("refused")
	type tick struct {
		claimed, paid uint64
		err           error
	}
	repeat := func(n int, ticks ...tick) (all []tick) {
		for range n {
			all = append(all, ticks...)
		}
		return all
	}
	for name, c := range map[string]struct {
		ticks []tick
		spent bool
	}{
		"paid":                     {repeat(50, tick{10, 10, nil}), false},
		"no new work, no receipt":  {append(repeat(1, tick{10, 10, nil}), repeat(50, tick{10, 0, refused})...), false},
		"nothing claimed":          {repeat(50, tick{0, 0, refused}), false},
		"refused":                  {repeat(creditLine, tick{10, 0, refused}), true},
		"refused for a while":      {append(repeat(creditLine-1, tick{10, 0, refused}), tick{10, 10, nil}), false},
		"receipts that pay nought": {append(repeat(1, tick{10, 10, nil}), repeat(creditLine, tick{20, 10, nil})...), true},
		"pay that lags":            {[]tick{{10, 10, nil}, {20, 10, nil}, {20, 15, nil}, {30, 20, nil}, {40, 30, nil}}, false},
		"a dead fork": {append([]tick{{10, 10, nil}, {30, 10, nil}, {40, 20, nil}},
			repeat(50, tick{40, 20, nil})...), false},
	} {
		var line tally
		spent := false
		for _, q := range c.ticks {
			spent = line.spent(q.claimed, q.paid, q.err)
		}
		if spent != c.spent {
			t.Errorf("%s: spent %v, want %v (%+v)", name, spent, c.spent, line)
		}
	}
}
