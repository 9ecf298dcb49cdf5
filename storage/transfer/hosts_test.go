package transfer_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

// member is a real host on loopback with a store.
type member struct {
	*p2p.Host
	store *storage.Store
	fetch *transfer.Fetcher
}

func newMember(t *testing.T, bootstrap []string) *member {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	host, err := p2p.NewHost(t.Context(), p2p.Config{
		Identity: key, Network: "hosts", Role: p2p.Bootstrap, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: bootstrap,
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(host.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	transfer.Serve(host, store, transfer.ServeOptions{})
	return &member{host, store, transfer.NewFetcher(host, host, store, transfer.Options{})}
}

// A peer that is named and does not have an object says so, and the network is asked for another: that costs less than the time for
// which a source is waited for. What nobody has is an error that names who was asked, within that time.
func TestNamedPeersWithoutIt(t *testing.T) {
	skipShort(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const find = 10 * time.Second // the default
	empty := newMember(t, nil)
	boot := empty.Addrs()
	holder, client := newMember(t, boot), newMember(t, boot)
	data := storetest.Bytes(3, 3*mib)
	c, err := holder.store.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*member{holder, client} {
		if _, err := m.Host.Bootstrap(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := holder.Provide(ctx, c); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := client.fetch.Fetch(ctx, c, []peer.ID{empty.ID()}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("found elsewhere after %v", took)
	if took >= find {
		t.Errorf("found elsewhere after %v", took)
	}
	got, err := client.store.ReadAll(ctx, c, int64(len(data)))
	if err != nil || string(got) != string(data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}

	start = time.Now()
	err = client.fetch.Fetch(ctx, unixfs.NodeCID([]byte("nobody has this")), []peer.ID{empty.ID(), holder.ID()})
	took = time.Since(start)
	t.Logf("%v", err)
	var none *transfer.NoProvidersError
	if !errors.As(err, &none) || !errors.Is(err, transfer.ErrNoProviders) || errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("%T: %v", err, err)
	}
	if len(none.Asked) != 2 || none.Took > took || took > find+time.Second {
		t.Errorf("%+v after %v", none, took)
	}
	for _, a := range none.Asked {
		if a.Why != nil || a.Took > none.Took || !strings.Contains(err.Error(), a.Source) {
			t.Errorf("%+v", a)
		}
	}
}
