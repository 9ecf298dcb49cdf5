package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecondProcessOnOneHomeIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	h, err := OpenHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHome(dir); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "--home") {
		t.Errorf("second open: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenHome(dir)
	if err != nil {
		t.Fatalf("after close: %v", err)
	}
	defer again.Close()
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("home mode %v, want 0700", info.Mode().Perm())
	}
}

func TestWriteFileReplacesWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, s := range []string{"first", "2"} {
		if err := writeFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != s {
			t.Errorf("read %q, want %q", b, s)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestConfigLayers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("network: filed\nquota: 100000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CAPANODE_QUOTA", "200000000")
	t.Setenv("CAPANODE_BOOTSTRAP", "/ip4/127.0.0.1/tcp/1,/ip4/127.0.0.1/tcp/2")
	c, err := LoadConfig(path, true, map[string]any{"log": "debug"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Network != "filed" || c.Quota != 200000000 || c.Log != "debug" || len(c.Bootstrap) != 2 || !c.MDNS {
		t.Errorf("merged to %+v", c)
	}
	for key, origin := range map[string]string{"network": "file " + path, "quota": "environment", "log": "flag", "mdns": "default"} {
		if c.Origin[key] != origin {
			t.Errorf("%s came from %q, want %q", key, c.Origin[key], origin)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"netwrok: x\n": `unknown key "netwrok"`, "quota: 5\n": "at least", "log: loud\n": "debug, info", "network: a/b\n": "slash",
		"quota: many\n": "whole number", "quota: 1.5e9\n": "whole number", "mdns: perhaps\n": "true or false", "listen: 5\n": "list of texts",
		"bootstrap: [1, 2]\n": "list of texts", "log: 7\n": "a text", "network: [a]\n": "a text", "mdns:\n": "true or false",
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadConfig(path, true, nil); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none"), true, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("required file missing: %v", err)
	}
}
