package p2p_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/capacloud/capanode/p2p"
)

func TestIdentityIsCreatedOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, err := p2p.LoadOrCreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := p2p.LoadOrCreateIdentity(dir)
	if err != nil || !again.Equals(first) {
		t.Fatalf("the second call gives another key (%v)", err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, p2p.IdentityFile): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v (%v)", path, info.Mode().Perm(), want, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left in the folder: %v, %v", names, err)
	}
}

func TestIdentityRefusesWideModes(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := p2p.LoadOrCreateIdentity(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, p2p.IdentityFile)
	for _, c := range []struct {
		path       string
		wide, good os.FileMode
		advice     string
	}{{path, 0o640, 0o600, "chmod 600 "}, {path, 0o602, 0o600, "chmod 600 "}, {dir, 0o755, 0o700, "chmod 700 "}} {
		if err := os.Chmod(c.path, c.wide); err != nil {
			t.Fatal(err)
		}
		_, err := p2p.LoadOrCreateIdentity(dir)
		if !errors.Is(err, p2p.ErrIdentityMode) || !strings.Contains(err.Error(), c.advice) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("mode %v of %s: %v", c.wide, c.path, err)
		}
		if err := os.Chmod(c.path, c.good); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := p2p.LoadOrCreateIdentity(dir); err != nil {
		t.Errorf("a narrower mode is refused: %v", err)
	}
}

func TestIdentityNeverReplacesGarbage(t *testing.T) {
	rsa, _, err := crypto.GenerateKeyPair(crypto.Secp256k1, 0)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := crypto.MarshalPrivateKey(rsa)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"empty": {}, "text": []byte("not a key"), "zeros": make([]byte, 68), "other type": foreign, "long": make([]byte, 1<<20),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, p2p.IdentityFile)
		if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(path, raw, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := p2p.LoadOrCreateIdentity(dir); !errors.Is(err, p2p.ErrIdentityFile) {
			t.Errorf("%s: %v", name, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, raw) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
	}
}

func TestIdentityRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	keys := make([]crypto.PrivKey, 16)
	errs := make([]error, len(keys))
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() { keys[i], errs[i] = p2p.LoadOrCreateIdentity(dir) })
	}
	all.Wait()
	for i, key := range keys {
		if errs[i] != nil || !key.Equals(keys[0]) {
			t.Fatalf("caller %d: another key, %v", i, errs[i])
		}
	}
}
