package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// The command reference is written from the same text as --help; `make docs` brings it up to date.
func TestCommandReferenceIsCurrent(t *testing.T) {
	t.Setenv("CAPANODE_HOME", "")
	t.Setenv("CAPANODE_CONFIG", "")
	dir := t.TempDir()
	a := &app{out: io.Discard, err: io.Discard}
	root := a.root()
	root.SetArgs([]string{"docs", dir, "--home", t.TempDir()})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	const kept = "../../docs/commands"
	for _, f := range written {
		want, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(kept, f.Name())); err != nil || string(got) != string(want) {
			t.Errorf("docs/commands/%s is not what --help says (%v); run `make docs`", f.Name(), err)
		}
	}
	if old, err := os.ReadDir(kept); err != nil || len(old) != len(written) {
		t.Errorf("docs/commands has %d pages, %d commands have one (%v)", len(old), len(written), err)
	}
}
