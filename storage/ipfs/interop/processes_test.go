package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// programs are the two that are tested and one that helps. INTEROP_IPFS and INTEROP_CAPANODE name binaries that are built already.
var programs = sync.OnceValues(func() ([3]string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("capanode-interop-%d", os.Getpid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return [3]string{}, err
	}
	out := [3]string{os.Getenv("INTEROP_IPFS"), os.Getenv("INTEROP_CAPANODE")}
	for i, b := range []struct {
		name, dir, pkg string
		env            []string
	}{
		{"ipfs", ".", "github.com/ipfs/kubo/cmd/ipfs", []string{"CGO_ENABLED=0"}},
		{"capanode", filepath.Join("..", "..", ".."), "./cmd/capanode", nil},
		{"addcut", filepath.Join("..", "..", ".."), "./storage/ipfs/testdata/addcut", nil},
	} {
		if out[i] != "" {
			continue
		}
		out[i] = filepath.Join(dir, b.name)
		c := exec.Command("go", "build", "-o", out[i], b.pkg)
		c.Dir, c.Env = b.dir, append(os.Environ(), b.env...)
		if text, err := c.CombinedOutput(); err != nil {
			return out, fmt.Errorf("%s cannot be built here: %w: %s", b.name, err, text)
		}
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(filepath.Join(os.TempDir(), fmt.Sprintf("capanode-interop-%d", os.Getpid())))
	os.Exit(code)
}

// binaries skips the test where one of the programs cannot be built, as without the module proxy.
func binaries(t *testing.T) (ipfs, capanode string) {
	t.Helper()
	p, err := programs()
	if err != nil {
		t.Skip(err)
	}
	return p[0], p[1]
}

// process is a program with a folder of its own.
type process struct {
	t      *testing.T
	binary string
	env    []string
	args   []string
}

// try runs a command to its end and returns what it printed.
func (p process) try(args ...string) (string, error) {
	c := exec.Command(p.binary, append(p.args[:len(p.args):len(p.args)], args...)...)
	c.Env = append(os.Environ(), p.env...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String() + errs.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(p.binary), strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// run is try for a command that must succeed; one line loses its end.
func (p process) run(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.Count(out, "\n") == 1 {
		out = strings.TrimSuffix(out, "\n")
	}
	return out
}

// background starts a command that is stopped by the result, or when the test ends.
func (p process) background(args ...string) (out *lines, stop func()) {
	p.t.Helper()
	c := exec.Command(p.binary, append(p.args[:len(p.args):len(p.args)], args...)...)
	c.Env = append(os.Environ(), p.env...)
	out = &lines{}
	c.Stdout = out
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = c.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(20*time.Second, func() { _ = c.Process.Kill() })
		defer kill.Stop()
		_ = c.Wait() // an interrupt is its end
	})
	p.t.Cleanup(stop)
	return out, stop
}

// lines collects what a process prints.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// wait returns the first line that holds a text.
func (l *lines) wait(t *testing.T, text string) string {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		l.mu.Lock()
		all := l.b.String()
		l.mu.Unlock()
		for line := range strings.Lines(all) {
			if strings.Contains(line, text) && strings.HasSuffix(line, "\n") {
				return line
			}
		}
	}
	t.Fatalf("no line with %q within a minute", text)
	return ""
}

// kubo is one IPFS node on loopback that knows nobody.
type kubo struct {
	process
	repo string
}

func newKubo(t *testing.T) *kubo {
	t.Helper()
	ipfs, _ := binaries(t)
	repo := filepath.Join(t.TempDir(), "ipfs")
	k := &kubo{process{t: t, binary: ipfs, env: []string{"IPFS_PATH=" + repo}}, repo}
	k.run("init", "-e", "--profile=test") // listens on free loopback ports, without bootstrap nodes
	return k
}

// start runs the daemon.
func (k *kubo) start() {
	k.t.Helper()
	out, _ := k.background("daemon")
	out.wait(k.t, "Daemon is ready")
}

// addr returns where the daemon is reached over TCP.
func (k *kubo) addr() string {
	k.t.Helper()
	var id struct{ Addresses []string }
	if err := json.Unmarshal([]byte(k.run("id")), &id); err != nil {
		k.t.Fatal(err)
	}
	for _, a := range id.Addresses {
		if strings.HasPrefix(a, "/ip4/127.0.0.1/tcp/") && !strings.Contains(a, "/ws") {
			return a
		}
	}
	k.t.Fatalf("no TCP address among %q", id.Addresses)
	return ""
}

// home is one Capanode node.
type home struct {
	process
	dir  string
	stop func()
}

func newHome(t *testing.T) *home {
	t.Helper()
	_, capanode := binaries(t)
	dir := filepath.Join(t.TempDir(), "home")
	return &home{process{
		t: t, binary: capanode, env: []string{"CAPANODE_CONFIG=", "XDG_CONFIG_HOME=" + dir},
		args: []string{"--home", dir, "--mdns=false", "--listen", "/ip4/127.0.0.1/tcp/0"},
	}, dir, func() {}}
}

// addCut stores a folder as runs publish checkpoints, cut at the ends of tensors, and returns its CID.
func (h *home) addCut(path string) string {
	h.t.Helper()
	binaries(h.t)
	p, _ := programs()
	return process{t: h.t, binary: p[2]}.run(filepath.Join(h.dir, "store"), path)
}

// add stores a path and returns its CID.
func (h *home) add(path string) string {
	h.t.Helper()
	fields := strings.Fields(h.run("storage", "add", path))
	if len(fields) < 1 {
		h.t.Fatal("no CID")
	}
	return fields[0]
}

// serve runs a node that speaks bitswap and returns its address.
func (h *home) serve() string {
	h.t.Helper()
	out, stop := h.background("bootstrap", "--ipfs")
	h.stop = stop
	return strings.TrimSpace(out.wait(h.t, "/p2p/"))
}
