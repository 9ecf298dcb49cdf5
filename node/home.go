package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/gofrs/flock"
)

// ErrLocked reports a home that another running process uses.
var ErrLocked = errors.New("home is in use by another process")

// Home is the folder that holds all that one node keeps: identity, objects, market records, runs.
type Home struct {
	dir  string
	lock *flock.Flock
}

// DefaultHome is $XDG_DATA_HOME/capanode, or ~/.local/share/capanode.
func DefaultHome() (string, error) {
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "capanode"), nil
	}
	user, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("%w: no home folder: %w; set HOME or pass --home DIR", ErrUsage, err)
	}
	return filepath.Join(user, ".local", "share", "capanode"), nil
}

// OpenHome creates the folder if needed and locks it for this process. A home in use is [ErrLocked].
func OpenHome(dir string) (*Home, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, unwritable(dir, err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	held, err := lock.TryLock()
	if err != nil {
		return nil, unwritable(dir, err)
	}
	if !held {
		return nil, fmt.Errorf("home %s: %w; stop that process or pass another --home DIR", dir, ErrLocked)
	}
	return &Home{dir: dir, lock: lock}, nil
}

// unwritable is the error of a home in which something cannot be written.
func unwritable(dir string, err error) error {
	for _, cause := range []error{fs.ErrPermission, syscall.EROFS, syscall.ENOTDIR, syscall.EISDIR} {
		if errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", ErrNotAllowed, err)
			break
		}
	}
	return fmt.Errorf("home %s: %w; pass --home DIR with a folder that you may write", dir, err)
}

// Close releases the lock.
func (h *Home) Close() error { return h.lock.Unlock() }

// Path joins names below the home.
func (h *Home) Path(names ...string) string {
	return filepath.Join(append([]string{h.dir}, names...)...)
}

// sub creates a folder below the home, readable by its owner only.
func (h *Home) sub(names ...string) (string, error) {
	dir := h.Path(names...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", unwritable(h.dir, err)
	}
	return dir, nil
}

// writeFile replaces a file durably: temporary file, fsync, rename, fsync of the folder.
func writeFile(path string, b []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // no such file once renamed
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
