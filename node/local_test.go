package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childEnv makes this test binary play a provider that a local run has started.
const childEnv = "CAPANODE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m,
			goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"), // one for the process, by design
			// a router search in flight ends by itself within seconds
			goleak.IgnoreAnyFunction("github.com/libp2p/go-libp2p/p2p/net/nat/internal/nat.discoverNATs.func1"))
	case "obedient": // ends with its parent
		fmt.Println(strings.Join(os.Args[1:], " "))
		_, _ = io.Copy(io.Discard, os.Stdin) // until the pipe closes
		os.Exit(0)
	case "stubborn":
		fmt.Println("busy")
		time.Sleep(time.Hour)
	}
	fmt.Println("cannot start")
	os.Exit(3)
}

func startLocal(t *testing.T, mode string, n int) (*Local, string) {
	t.Helper()
	t.Setenv(childEnv, mode)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, err := StartLocal(LocalOptions{Binary: self, Dir: dir, N: n, Network: "local-1", Bootstrap: []string{"/ip4/127.0.0.1/tcp/1"}})
	if err != nil {
		t.Fatal(err)
	}
	return l, dir
}

func ended(l *Local) bool {
	return !slices.ContainsFunc(l.children, func(c *child) bool {
		select {
		case <-c.done:
			return false
		default:
			return true
		}
	})
}

func TestLocalProvidersEndWhenAsked(t *testing.T) {
	l, dir := startLocal(t, "obedient", 2)
	if err := l.Lost(2); err != nil {
		t.Error(err)
	}
	l.Stop(time.Minute)
	if !ended(l) {
		t.Error("a child lives")
	}
	for i := range 2 {
		log, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("provider%d.log", i+1)))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"provide --device cpu", "--network local-1", "--exit-with-parent", "--bootstrap /ip4/127.0.0.1/tcp/1", fmt.Sprintf("provider%d", i+1)} {
			if !strings.Contains(string(log), want) {
				t.Errorf("child %d was started with %q, want %q", i+1, log, want)
			}
		}
	}
}

func TestStubbornLocalProviderIsKilled(t *testing.T) {
	l, _ := startLocal(t, "stubborn", 2)
	l.Stop(50 * time.Millisecond)
	if !ended(l) {
		t.Error("a child outlives its parent")
	}
}

func TestLostLocalProvidersSayWhy(t *testing.T) {
	l, _ := startLocal(t, "broken", 2)
	for _, c := range l.children {
		<-c.done
	}
	if err := l.Lost(1); !errors.Is(err, errLocalLost) || !strings.Contains(err.Error(), "cannot start") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("lost: %v", err)
	}
	l.Stop(time.Second)
}
