// Command capanode is the whole program: provider, requester, bootstrap node and tools. This package owns words: flags,
// help, tables, JSON and exit codes. It refuses to hold logic; each command calls package node.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/capacloud/capanode/p2p"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:]))
}

// run executes one command line and returns the exit code of [exitCodes].
func run(args []string) int {
	ctx, stop, release := interrupts()
	defer release()
	app := &app{stop: stop, out: os.Stdout, err: os.Stderr}
	root := app.root()
	root.SetArgs(args)
	p2p.RouteLogs(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})) // until the level is known
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		err = errStopped
	}
	if err != nil {
		app.fail(err)
	}
	return exitCode(err)
}

// interrupts turns signals into two steps: the first closes stop, so that a command finishes its step, checkpoints and
// settles; the second cancels the context, and everything stops at once.
func interrupts() (ctx context.Context, stop <-chan struct{}, release func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	soft := make(chan struct{})
	done := make(chan struct{})
	go func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-signals:
			}
			switch i {
			case 0:
				fmt.Fprintln(os.Stderr, "finishing the step, then settling; press Ctrl-C again to stop at once")
				close(soft)
			case 1:
				cancel()
			default:
				os.Exit(exitInterrupted)
			}
		}
	}()
	return ctx, soft, func() { signal.Stop(signals); close(done); cancel() }
}
