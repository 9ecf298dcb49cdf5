//go:build !unix

package storage

import "io/fs"

// inodeOf returns 0: only Unix systems are asked.
func inodeOf(fs.FileInfo) uint64 { return 0 }
