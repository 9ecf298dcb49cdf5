//go:build !linux

package storage

// idlePriority does nothing: a rate limit has to do.
func idlePriority() {}
