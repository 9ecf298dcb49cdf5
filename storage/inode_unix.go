//go:build unix

package storage

import (
	"io/fs"
	"syscall"
)

// inodeOf returns the number of a file in its file system, 0 if there is none.
func inodeOf(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}
