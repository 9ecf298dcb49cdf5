package storage

import "golang.org/x/sys/unix"

// idlePriority lets the calling thread have processor and disk only when nobody else wants them. Failing costs politeness only.
func idlePriority() {
	const who, idle = 1, 3 << 13 // IOPRIO_WHO_PROCESS with thread 0: the caller; IOPRIO_CLASS_IDLE
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, who, 0, idle)
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
}
