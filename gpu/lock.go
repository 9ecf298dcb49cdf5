package gpu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
)

// ErrBusy reports a device that another process has.
var ErrBusy = errors.New("device is in use by another process")

// Lock is the exclusive right of this process to sell a device.
type Lock struct{ file *flock.Flock }

// Acquire takes the operating system's advisory lock on a device ID, as a file in dir. Processes that must not sell the
// same device share dir: one folder per machine for GPUs, one per home for CPUs, which several processes may share. The
// lock ends with the process, however it ends. A held lock is [ErrBusy] at once.
func Acquire(dir, id string) (*Lock, error) {
	if id == "" || len(id) > MaxText {
		return nil, fmt.Errorf("gpu: lock device %.40q: %w", id, ErrRange)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("gpu: lock device %s: %w", id, err)
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, id)
	file := flock.New(filepath.Join(dir, name+".lock"))
	ok, err := file.TryLock()
	if err != nil {
		return nil, fmt.Errorf("gpu: lock device %s: %w", id, err)
	}
	if !ok {
		return nil, fmt.Errorf("gpu: lock device %s: %w: stop the other provider or choose another device", id, ErrBusy)
	}
	return &Lock{file}, nil
}

// Release gives the device back. The file stays: removing it would let two processes lock two files of one name.
func (l *Lock) Release() error {
	if err := l.file.Unlock(); err != nil {
		return fmt.Errorf("gpu: unlock device: %w", err)
	}
	return nil
}
