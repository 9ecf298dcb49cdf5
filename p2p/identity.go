package p2p

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// IdentityFile is the name of the key file in its folder. It holds an Ed25519 key as libp2p marshals private keys.
const IdentityFile = "identity.key"

// maxIdentity bounds the key file in bytes; an Ed25519 key takes 68.
const maxIdentity = 4096

var (
	// ErrIdentityMode reports a key file or folder that other users can read or change.
	ErrIdentityMode = errors.New("others can reach the private key")
	// ErrIdentityFile reports a key file that holds no Ed25519 key. It is never overwritten: restore it from a backup, or move
	// it away to get a new identity.
	ErrIdentityFile = errors.New("not a usable private key: restore it from a backup, or move it away to start with a new identity")
)

// LoadOrCreateIdentity returns the key in the folder. The first call creates the folder with mode 0700 and the key with
// mode 0600; an existing key is never changed. Wider modes are [ErrIdentityMode], a file without a key is
// [ErrIdentityFile]. When processes call it at once, all get the same key.
func LoadOrCreateIdentity(dir string) (crypto.PrivKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("p2p: identity folder: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("p2p: identity folder: %w", err)
	}
	if err := private(dir, info, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, IdentityFile)
	key, err := loadIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := createIdentity(path); err != nil {
		return nil, err
	}
	return loadIdentity(path) // this process may have lost the race
}

// private checks that nobody but the owner has rights, and says the command that repairs it.
func private(path string, info fs.FileInfo, want fs.FileMode) error {
	if mode := info.Mode().Perm(); mode&^want != 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("p2p: %s has mode %04o, at most %04o is safe: %w: run: chmod %o %q", path, mode, want, ErrIdentityMode, want, path)
	}
	return nil
}

func loadIdentity(path string) (crypto.PrivKey, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("p2p: identity: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("p2p: identity: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("p2p: identity %s is no regular file: %w", path, ErrIdentityFile)
	}
	if err := private(path, info, 0o600); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(file, maxIdentity+1))
	if err != nil {
		return nil, fmt.Errorf("p2p: identity: %w", err)
	}
	if len(raw) == 0 || len(raw) > maxIdentity {
		return nil, fmt.Errorf("p2p: identity %s has %d bytes: %w", path, info.Size(), ErrIdentityFile)
	}
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("p2p: identity %s: %w: %w", path, ErrIdentityFile, err)
	}
	if key.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("p2p: identity %s holds a %s key, want Ed25519: %w", path, key.Type(), ErrIdentityFile)
	}
	return key, nil
}

// createIdentity writes a new key under a temporary name and links it into place: link fails where a key exists already,
// and nobody ever sees half a key.
func createIdentity(path string) error {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return fmt.Errorf("p2p: new identity: %w", err)
	}
	raw, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return fmt.Errorf("p2p: new identity: %w", err)
	}
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, IdentityFile+".tmp-*") // mode 0600
	if err != nil {
		return fmt.Errorf("p2p: new identity: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(raw)
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return fmt.Errorf("p2p: new identity: %w", err)
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("p2p: new identity: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("p2p: new identity: %w", err)
	}
	return nil
}
