package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Local is a set of providers that run as child processes on this machine, over loopback.
type Local struct {
	children []*child
}

type child struct {
	cmd   *exec.Cmd
	alive io.Closer // the child stops when this pipe closes, so that it never outlives its parent
	log   *os.File
	done  chan struct{} // closed when the process has ended
	err   error         // valid after done
}

// LocalOptions says what [StartLocal] starts.
type LocalOptions struct {
	Binary    string // the capanode executable
	Dir       string // each provider's home and log go below it
	N         int    // providers
	Network   string
	Bootstrap []string // addresses of the requester
	Device    string   // cpu for all, or cuda for one card each; empty is cpu
	Plugin    string   // of cards
	Precision string
}

// device is what child i computes on.
func (o LocalOptions) device(i int) string {
	if o.Device == "cuda" {
		return fmt.Sprintf("cuda:%d", i-1)
	}
	return "cpu"
}

// StartLocal starts N providers, each with its own home and its share of the cores. Their homes survive, so
// that a restarted run finds the same providers with their snapshots.
func StartLocal(o LocalOptions) (*Local, error) {
	l := &Local{}
	threads := max(1, runtime.NumCPU()/o.N)
	for i := range o.N {
		c, err := startChild(o, i+1, threads)
		if err != nil {
			l.Stop(time.Second)
			return nil, fmt.Errorf("local provider %d: %w", i+1, err)
		}
		l.children = append(l.children, c)
	}
	return l, nil
}

func startChild(o LocalOptions, i, threads int) (*child, error) {
	home := filepath.Join(o.Dir, fmt.Sprintf("provider%d", i))
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.Dir, fmt.Sprintf("provider%d.log", i)))
	if err != nil {
		return nil, err
	}
	args := []string{"provide", "--device", o.device(i), "--threads", strconv.Itoa(threads), "--home", home, "--network", o.Network,
		"--mdns=false", "--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--exit-with-parent", "-o", "jsonl"}
	for _, b := range o.Bootstrap {
		args = append(args, "--bootstrap", b)
	}
	if o.Plugin != "" {
		args = append(args, "--plugin", o.Plugin, "--precision", o.Precision)
	}
	cmd := exec.Command(o.Binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	alive, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	c := &child{cmd: cmd, alive: alive, log: log, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = cmd.Wait()
	}()
	return c, nil
}

// errLocalLost reports a local run whose providers have ended.
var errLocalLost = errors.New("local providers ended before the run did; run the same command again to continue")

// Lost returns an error when fewer than the wanted number of children live, with what an ended one said last.
func (l *Local) Lost(want int) error {
	live, ended := 0, (*child)(nil)
	for _, c := range l.children {
		select {
		case <-c.done:
			ended = c
		default:
			live++
		}
	}
	if live >= want || ended == nil {
		return nil
	}
	why := fmt.Sprint(ended.err)
	if said := lastLine(ended.log.Name()); said != "" {
		why += ": " + said
	}
	return fmt.Errorf("%d of %d %w; one ended with %s; its log is %s", len(l.children)-live, len(l.children), errLocalLost, why, ended.log.Name())
}

// maxLastLine is how much of a log's end is looked at, in bytes.
const maxLastLine = 2048

// lastLine is the last line of a log, nothing when it cannot be read.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxLastLine {
		_, _ = f.Seek(-maxLastLine, io.SeekEnd) // else the start serves
	}
	b, _ := io.ReadAll(io.LimitReader(f, maxLastLine)) // part of a line is better than none
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.ToValidUTF8(lines[len(lines)-1], "")
}

// Stop tells every child to end: by now the run has settled with it, or it is resumed by the next one. Those that have not
// ended within grace are killed.
func (l *Local) Stop(grace time.Duration) {
	for _, c := range l.children {
		c.alive.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for _, c := range l.children {
		select {
		case <-c.done:
		case <-ctx.Done():
			_ = c.cmd.Process.Kill() // it may have ended meanwhile
			<-c.done
		}
		c.log.Close()
	}
}
