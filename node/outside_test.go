package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/car"
	"github.com/capacloud/capanode/storage/ipfs"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
)

// private is the configuration of a node that meets nobody by itself.
func private(t *testing.T) Config {
	t.Helper()
	c, err := LoadConfig("", false, map[string]any{"network": "test", "listen": []string{"/ip4/127.0.0.1/tcp/0"}, "mdns": false})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stranger is a host with an object that serves it in one way.
func stranger(t *testing.T, network string, data []byte, serve func(*p2p.Host, *storage.Store)) (addr, object string) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := storage.Open(t.Context(), "/store", storage.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	h, err := p2p.NewHost(t.Context(), p2p.Config{Identity: key, Network: network, Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	c, err := s.PutBytes(t.Context(), data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	serve(h, s)
	return h.Addrs()[0], c.String()
}

func TestGetFromWhomIsNamed(t *testing.T) {
	ctx := t.Context()
	data := storetest.Bytes(1, 3<<20)
	ours, object := stranger(t, "test", data, func(h *p2p.Host, s *storage.Store) { transfer.Serve(h, s, transfer.ServeOptions{}) })
	theirs, _ := stranger(t, "elsewhere", data, func(h *p2p.Host, s *storage.Store) {
		x := ipfs.Start(h, s, ipfs.Options{Serve: true})
		t.Cleanup(func() { x.Close() })
	})
	mute, _ := stranger(t, "elsewhere", data, func(*p2p.Host, *storage.Store) {})
	for name, from := range map[string][]string{"blob": {ours}, "bitswap": {theirs}, "both": {theirs, ours}, "one that helps": {mute, theirs}} {
		out := filepath.Join(t.TempDir(), "out")
		if err := Get(ctx, Use{Home: t.TempDir(), Config: private(t), From: from}, object, out); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, c := range map[string]struct {
		from string
		want error
	}{
		"no address": {"nonsense", ErrUsage}, "nobody there": {"/ip4/127.0.0.1/tcp/1" + ours[len(ours)-57:], ErrTryLater}, "no protocol": {mute, p2p.ErrNoProtocol},
	} {
		err := Get(ctx, Use{Home: t.TempDir(), Config: private(t), From: []string{c.from}}, object, filepath.Join(t.TempDir(), "out"))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An archive carries a folder from one home to another; a file that is cut off leaves no trace.
func TestArchiveBetweenHomes(t *testing.T) {
	ctx := t.Context()
	from, to := Use{Home: t.TempDir(), Config: private(t)}, Use{Home: t.TempDir(), Config: private(t)}
	tree := storetest.Tree(t)
	added, err := Add(ctx, from, []string{tree}, false)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.car")
	wrote, err := ExportCAR(ctx, from, added[0].CID, path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) != wrote.Bytes {
		t.Fatalf("%d bytes, %+v, %v", len(b), wrote, err)
	}
	if _, err := ImportCAR(ctx, to, bytes.NewReader(b[:len(b)-1])); !errors.Is(err, car.ErrTruncated) {
		t.Fatal(err)
	}
	if r, err := VerifyStore(ctx, to, ""); err != nil || r.Objects != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for range 2 { // the second finds everything there
		read, err := ImportCAR(ctx, to, bytes.NewReader(b))
		if err != nil || len(read.Roots) != 1 || read.Roots[0] != added[0].CID || read.Blocks != wrote.Blocks {
			t.Fatalf("%+v, want %+v, %v", read, wrote, err)
		}
	}
	if removed, err := Collect(ctx, to); err != nil || removed.Objects != 0 {
		t.Errorf("collected %+v, %v", removed, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := Get(ctx, to, added[0].CID, out); err != nil {
		t.Fatal(err)
	}
	storetest.SameTree(t, out, tree)
	if _, err := ExportCAR(context.Background(), from, added[0].CID, filepath.Join(t.TempDir(), "no", "such", "folder")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
