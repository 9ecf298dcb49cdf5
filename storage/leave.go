package storage

import (
	"context"
	"errors"
	"slices"

	"github.com/ipfs/go-cid"
)

// together is how many candidates are looked at as a group when objects share: those of one group inherit nothing from each other.
const together = 32

// front takes the next candidates off the queue that may go in one batch. Those that cannot, because an object that stays shares
// their blocks, are owed. The gate is held.
func (c *collection) front(want int64) ([]candidate, error) {
	most := 1
	if c.s.sharing.Load() {
		most = together
	}
	var group []candidate
	for sum := int64(0); len(c.queue) > 0 && len(group) < most && sum < want; {
		next := c.queue[0]
		c.queue = c.queue[1:]
		if !c.kept[next.cid] {
			group = append(group, next)
			sum += next.bytes
		}
	}
	return c.spare(group)
}

// spare takes out of a group whatever an object that stays needs, until nothing changes: each that is spared may need others.
func (c *collection) spare(group []candidate) ([]candidate, error) {
	for c.s.sharing.Load() {
		going := make(map[cid.Cid]bool, len(group))
		for _, x := range group {
			if !x.partial {
				going[x.cid] = true
			}
		}
		rest := make([]candidate, 0, len(group))
		for _, x := range group {
			needed := false
			if !x.partial {
				var err error
				if needed, err = c.s.needed(x.cid, going); err != nil {
					return nil, err
				}
			}
			if needed {
				c.owed = append(c.owed, x)
			} else {
				rest = append(rest, x)
			}
		}
		if len(rest) == len(group) {
			break
		}
		group = rest
	}
	return group, nil
}

// doomed lists what is about to go: the queue and what is owed.
func (c *collection) doomed(owed []candidate) map[cid.Cid]bool {
	out := make(map[cid.Cid]bool, len(c.queue)+len(owed))
	for _, list := range [][]candidate{c.queue, owed} {
		for _, x := range list {
			if !x.partial && !c.kept[x.cid] {
				out[x.cid] = true
			}
		}
	}
	return out
}

// settleOwed moves what others share out of the objects that could not go, outside the gate, and lets those go next. Where
// everything goes they first wait for those that share with them to go.
func (c *collection) settleOwed(ctx context.Context, want int64) error {
	owed := c.owed
	c.owed = nil
	var doomed map[cid.Cid]bool
	for _, x := range owed {
		if want >= everything/2 && !x.late {
			x.late = true
			c.queue = append(c.queue, x)
			continue
		}
		// First to those that stay. What only others in the queue share is left to go with them; where that does not work, because
		// they are not looked at together, any of them gets it.
		var avoid map[cid.Cid]bool
		switch x.moved++; x.moved {
		case 1:
			if doomed == nil {
				doomed = c.doomed(owed)
			}
			avoid = doomed
		case 2:
		default:
			continue // others came to share with it meanwhile: it stays
		}
		if err := c.s.bequeath(ctx, x.cid, avoid); err != nil {
			if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			c.s.log.Warn("an object that others share cannot go", "cid", x.cid, "err", err)
			continue
		}
		c.queue = slices.Insert(c.queue, 0, x)
	}
	return nil
}
