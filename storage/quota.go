package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// reserve promises n bytes of the quota and of the disk before the first of them is written, evicting cached objects if
// that is what it takes. Every reservation is settled by a commit or given back.
func (s *Store) reserve(ctx context.Context, n int64) error {
	for {
		s.mu.Lock()
		over := s.used + s.reserved + n - s.quota
		if s.quota == 0 || over <= 0 {
			s.reserved += n
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		if n > s.quota {
			return fmt.Errorf("storage: %d bytes do not fit a quota of %d: raise it: %w", n, s.quota, ErrQuota)
		}
		freed, err := s.evict(ctx, over)
		if err != nil {
			return err
		}
		if freed.Bytes == 0 {
			return fmt.Errorf("storage: %d bytes are %d over the quota of %d and nothing can be evicted: unpin, delete or raise it: %w",
				n, over, s.quota, ErrQuota)
		}
	}
	disk, err := s.fs.GetDiskUsage(s.dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return nil
	}
	if err == nil && disk.AvailBytes < uint64(n)+DiskMargin {
		err = fmt.Errorf("storage: %d bytes wanted, %d available beside the %d kept free: %w", n, disk.AvailBytes, DiskMargin, ErrNoSpace)
	}
	if err != nil {
		s.settle(0, -n)
	}
	return err
}
