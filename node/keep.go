package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
)

// Added is one path that entered the store.
type Added struct {
	Path  string `json:"path"`
	CID   string `json:"cid,omitempty"`
	Error string `json:"error,omitempty"`
}

// Add puts files and folders into the store and pins them under their paths; in place, files are indexed where they lie instead of
// copied. When some fail the others stay, and the error is [ErrPartly].
func Add(ctx context.Context, u Use, paths []string, inPlace bool) (out []Added, err error) {
	err = u.with(ctx, func(n *Node) error {
		var failed []error
		for _, p := range paths {
			c, err := n.store.AddPath(ctx, p, storage.PutOptions{Pin: "added/" + p, InPlace: inPlace})
			if err != nil {
				failed = append(failed, named(err))
				out = append(out, Added{Path: p, Error: err.Error()})
				continue
			}
			out = append(out, Added{Path: p, CID: c.String()})
		}
		if len(failed) > 0 && len(failed) < len(paths) {
			return fmt.Errorf("%w: %w", ErrPartly, errors.Join(failed...))
		}
		return errors.Join(failed...)
	})
	return out, err
}

// named adds what to do to the error of a path that is not there.
func named(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: name an existing file or folder", err)
	}
	return err
}

// Get writes an object, fetched from the network if need be, to a path.
func Get(ctx context.Context, u Use, what, dest string) error {
	return u.with(ctx, func(n *Node) error {
		c, err := parseCID(what)
		if err != nil {
			return err
		}
		return n.exportSound(ctx, c, dest)
	})
}

// exportSound writes an object to a path.
func (n *Node) exportSound(ctx context.Context, c cid.Cid, dest string) error {
	return n.sound(ctx, c, func() error { return n.store.Export(ctx, c, dest) })
}

// sound reads an object with f. One that turns out to be damaged while it is read is fetched anew, once.
func (n *Node) sound(ctx context.Context, c cid.Cid, f func() error) error {
	if err := n.need(ctx, c); err != nil {
		return err
	}
	err := f()
	if !errors.Is(err, storage.ErrCorrupt) {
		return err
	}
	if ferr := n.need(ctx, c); ferr != nil {
		return fmt.Errorf("%w: no peer could repair it: %w", err, ferr)
	}
	return f()
}

// Pin protects an object under a name, for good or, when a duration is given, for that long from now.
func Pin(ctx context.Context, u Use, name, what string, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%w: %s is over already; give a time to come, such as 24h", ErrUsage, d)
	}
	return u.with(ctx, func(n *Node) error {
		c, err := parseCID(what)
		if err != nil {
			return err
		}
		if err := n.need(ctx, c); err != nil {
			return err
		}
		if d > 0 {
			return n.store.Lease(ctx, name, c, time.Now().Add(d))
		}
		return n.store.Pin(ctx, name, c)
	})
}

// Remove deletes objects from the store; of a file in place only what the store knows of it. When some fail the others go all the
// same, and the error is [ErrPartly].
func Remove(ctx context.Context, u Use, what []string) error {
	return u.with(ctx, func(n *Node) error {
		var failed []error
		for _, w := range what {
			c, err := parseCID(w)
			if err == nil {
				err = n.store.Delete(ctx, c)
			}
			if err != nil {
				failed = append(failed, err)
			}
		}
		if len(failed) > 0 && len(failed) < len(what) {
			return fmt.Errorf("%w: %w", ErrPartly, errors.Join(failed...))
		}
		return errors.Join(failed...)
	})
}

// Unpin removes a pin. That of a dataset lets its shards go too, as far as no other pin is about them.
func Unpin(ctx context.Context, u Use, name string) error {
	return u.with(ctx, func(n *Node) error {
		pins, err := n.store.Pins(ctx)
		if err != nil {
			return err
		}
		known := slices.ContainsFunc(pins, func(p storage.Pin) bool { return p.Name == name })
		if !known || !strings.HasPrefix(name, dataPin("")) {
			return n.store.Unpin(ctx, name)
		}
		return n.unpinAll(ctx, []string{name})
	})
}

// Collect removes what nobody protects.
func Collect(ctx context.Context, u Use) (r storage.Removed, err error) {
	err = u.with(ctx, func(n *Node) (err error) { r, err = n.store.GC(ctx); return err })
	return r, err
}

// VerifyStore rehashes one object, or all. Faults are an error after the report is complete.
func VerifyStore(ctx context.Context, u Use, what string) (r storage.Report, err error) {
	err = u.with(ctx, func(n *Node) error {
		if what == "" {
			r, err = n.store.Verify(ctx)
		} else {
			c, cerr := parseCID(what)
			if cerr != nil {
				return cerr
			}
			r, err = n.store.Verify(ctx, c)
		}
		if err == nil && len(r.Faults) > 0 {
			f := r.Faults[0]
			err = fmt.Errorf("%d of %d objects are damaged, the first is %s: %w; the others are untouched; `capanode storage get %s PATH` fetches it again from peers",
				len(r.Faults), r.Objects, f.CID, f.Err, f.CID)
		}
		return err
	})
	return r, err
}
