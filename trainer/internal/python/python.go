// Package python owns the interpreter that interop tests compare with: it finds or installs one that has the packages, and
// talks to a script by lines of JSON. It is for tests alone, and refuses to know what is compared.
package python

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Process is a script that answers requests.
type Process struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// Start runs a script until the test ends. It does under `make test-interop` only, and skips the test otherwise. The interpreter is
// the one that CAPANODE_PYTHON names; without that, the packages, such as "tokenizers==0.23.3", are installed into a folder of
// the test's own.
func Start(t testing.TB, script string, packages ...string) *Process {
	t.Helper()
	if os.Getenv("CAPANODE_INTEROP") != "1" {
		t.Skip("set CAPANODE_INTEROP=1 to compare with Python packages")
	}
	interpreter := os.Getenv("CAPANODE_PYTHON")
	if interpreter == "" {
		interpreter = install(t, packages)
	}
	cmd := exec.CommandContext(t.Context(), interpreter, script)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("python: %v", err)
		}
	})
	return &Process{t, in, bufio.NewReaderSize(out, 1<<20)}
}

// install makes an environment with the packages and returns its interpreter.
func install(t testing.TB, packages []string) string {
	t.Helper()
	dir := t.TempDir()
	pip := append([]string{filepath.Join(dir, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"}, packages...)
	for _, cmd := range [][]string{{"python3", "-m", "venv", dir}, pip} {
		if out, err := exec.CommandContext(t.Context(), cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", cmd, err, out)
		}
	}
	return filepath.Join(dir, "bin", "python")
}

// Ask sends a request and reads the answer.
func (p *Process) Ask(request map[string]any, answer any) {
	p.t.Helper()
	raw, err := json.Marshal(request)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(raw, '\n')); err != nil {
		p.t.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.t.Fatalf("no answer to %v: %v", request["do"], err)
	}
	if err := json.Unmarshal(line, answer); err != nil {
		p.t.Fatal(err)
	}
}
