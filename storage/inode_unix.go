//go:build unix

package storage

import (
	"io/fs"
	"syscall"
)

// inode returns the number of a file on its file system, 0 where there is none.
func inode(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(sys.Ino)
	}
	return 0
}
