package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// startTime bounds how long a daemon may take to be ready; stopTime how long it may take to end when asked to.
const (
	startTime = time.Minute
	stopTime  = 20 * time.Second
)

// runProgram runs a command to its end and returns what it printed and the processor time that it used.
func runProgram(ctx context.Context, env []string, args ...string) (string, time.Duration, error) {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", 0, fmt.Errorf("%s %s: %w: %s", filepath.Base(args[0]), strings.Join(args[1:], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), c.ProcessState.UserTime() + c.ProcessState.SystemTime(), nil
}

// daemon is a program that runs until it is stopped.
type daemon struct {
	c    *exec.Cmd
	done chan struct{} // closed when everything that it printed was read
	once sync.Once
}

// startDaemon starts a program and returns the first line of its output that holds a text.
func startDaemon(ctx context.Context, env []string, ready string, args ...string) (*daemon, string, error) {
	name := filepath.Base(args[0])
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = append(os.Environ(), env...)
	c.WaitDelay = stopTime
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, "", fmt.Errorf("start %s: %w", name, err)
	}
	d := &daemon{c: c, done: make(chan struct{})}
	found := make(chan string, 1)
	go func() {
		defer close(d.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), ready) {
				select {
				case found <- strings.TrimSpace(lines.Text()):
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, out) // after a line that is too long
	}()
	timer := time.NewTimer(startTime)
	defer timer.Stop()
	select {
	case line := <-found:
		return d, line, nil
	case <-d.done:
		err = fmt.Errorf("%s ended before it was ready", name)
	case <-timer.C:
		err = fmt.Errorf("%s was not ready within %v", name, startTime)
	case <-ctx.Done():
		err = ctx.Err()
	}
	d.stop()
	return nil, "", err
}

// stop asks the daemon to end and kills it if it does not.
func (d *daemon) stop() {
	d.once.Do(func() {
		_ = d.c.Process.Signal(os.Interrupt) // one that has ended is what is wanted
		kill := time.AfterFunc(stopTime, func() { _ = d.c.Process.Kill() })
		defer kill.Stop()
		<-d.done
		_ = d.c.Wait() // an interrupt is how it ends
	})
}

// cpu returns the processor time that the daemon has used so far, where Linux tells it.
func (d *daemon) cpu() (time.Duration, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.c.Process.Pid))
	if err != nil {
		return 0, false
	}
	return parseStat(b)
}

// parseStat reads utime and stime, in ticks of a hundredth of a second, from /proc/PID/stat (proc_pid_stat(5), fields 14 and 15).
// The second field is a name in parentheses that may hold anything.
func parseStat(b []byte) (time.Duration, bool) {
	_, rest, found := strings.Cut(string(b[max(0, bytes.LastIndexByte(b, ')')):]), ") ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 13 {
		return 0, false
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, false
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, false
	}
	return time.Duration(user+system) * (time.Second / 100), true
}
