//go:build unix

package bench

import (
	"syscall"
	"time"
)

// processTime is the processor time that this process has used, all of its threads and the kernel's work for them; 0 where it is
// not known.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
