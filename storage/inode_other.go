//go:build !unix

package storage

import "io/fs"

// inode returns 0: only Unix systems number files here.
func inode(fs.FileInfo) uint64 { return 0 }
