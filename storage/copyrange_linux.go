package storage

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// copyRange copies up to n bytes between two files at the same offset without bringing them into the process, and starts to write
// them to the disk. A pair of file systems that cannot is [errors.ErrUnsupported].
func copyRange(to *os.File, from uintptr, at, n int64) (int64, error) {
	in, out := at, at
	for {
		done, err := unix.CopyFileRange(int(from), &in, int(to.Fd()), &out, int(n), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			return 0, errors.ErrUnsupported
		case err == nil:
			_ = unix.SyncFileRange(int(to.Fd()), at, int64(done), unix.SYNC_FILE_RANGE_WRITE) // a hint: the sync that counts follows
		}
		return int64(done), err
	}
}
