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
	if s.quota > 0 && n > s.quota {
		return fmt.Errorf("storage: %d bytes do not fit a quota of %d: raise it: %w", n, s.quota, ErrQuota)
	}
	for {
		over, freed := s.take(n)
		if over <= 0 {
			break
		}
		if err := s.makeRoom(ctx, n, freed); err != nil {
			return err
		}
	}
	disk, err := s.fs.GetDiskUsage(s.dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return nil
	}
	if err == nil && disk.AvailBytes < uint64(n)+DiskMargin {
		err = fmt.Errorf("storage: %d bytes wanted, %d available beside the %d kept free: free some: %w", n, disk.AvailBytes, DiskMargin, ErrNoSpace)
	}
	if err != nil {
		s.settle(0, -n)
	}
	return err
}

// take reserves n bytes if they fit. Else it returns how many are too many, and what is closed when some become free.
func (s *Store) take(n int64) (over int64, freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if over = s.used + s.reserved + n - s.quota; s.quota == 0 || over <= 0 {
		s.reserved += n
		return 0, nil
	}
	return over, s.freed
}

// over returns how many of n bytes do not fit now.
func (s *Store) over(n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used + s.reserved + n - s.quota
}

// makeRoom evicts what n bytes need, or waits while somebody else does and frees some.
func (s *Store) makeRoom(ctx context.Context, n int64, freed <-chan struct{}) error {
	select {
	case s.evicting <- struct{}{}:
	case <-freed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.evicting }()
	over := s.over(n)
	if over <= 0 {
		return nil
	}
	removed, err := s.evict(ctx, max(over, s.quota/evictShare))
	if err == nil && removed.Bytes == 0 && s.over(n) > 0 {
		err = fmt.Errorf("storage: %d bytes are %d over the quota of %d and nothing can be evicted: unpin, delete or raise it: %w",
			n, over, s.quota, ErrQuota)
	}
	return err
}
