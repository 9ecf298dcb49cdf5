package transfer_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
)

// website starts a web server and returns its URL.
func website(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL
}

// content serves bytes as any file server does.
func content(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// gateway serves single blocks of a store.
func gateway(store *storage.Store) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := cid.Decode(strings.TrimPrefix(r.URL.Path, "/ipfs/"))
		if err != nil || r.URL.Query().Get("format") != "raw" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		block, err := store.GetBlock(r.Context(), c, nil)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Write(block)
	}
}

func TestWebSeeds(t *testing.T) {
	w := newWorld(t)
	a := w.node("a", storage.Options{})
	data := storetest.Bytes(1, 12*mib+5)
	c := a.put(t, data)

	// A gateway alone delivers files, folders and blocks.
	raw := website(t, gateway(a.store)) + "/ipfs/{cid}?format=raw"
	b := w.node("b", storage.Options{})
	folder, err := a.store.AddPath(t.Context(), storetest.Tree(t), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range []cid.Cid{c, folder, a.put(t, []byte("a block"))} {
		if err := b.fetch.FetchAs(t.Context(), root, transfer.Ask{Seeds: []string{raw}}); err != nil {
			t.Fatal(err)
		}
	}
	b.check(t, c, data)

	// A plain server delivers leaves; a peer without uplink worth the name knows the hashes.
	var fromWeb atomic.Int64
	plain := website(t, func(rw http.ResponseWriter, r *http.Request) {
		fromWeb.Add(1)
		content(data)(rw, r)
	})
	slow := w.evil("slow", blocks(a.store, func(n int, frame []byte) ([]byte, error) {
		if n > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		return frame, nil
	}))
	d := w.node("d", storage.Options{})
	if err := d.fetch.FetchAs(t.Context(), c, transfer.Ask{From: []peer.ID{slow}, Seeds: []string{plain}}); err != nil {
		t.Fatal(err)
	}
	d.check(t, c, data)
	if fromWeb.Load() == 0 {
		t.Error("the web server was not used")
	}
	e := w.node("e", storage.Options{})
	wantErr(t, e.fetch.FetchAs(t.Context(), c, transfer.Ask{Seeds: []string{plain}}), transfer.ErrNoProviders)
}

// A hostile or broken web server costs time and nothing else, and alone it ends in an error.
func TestHostileWebSeeds(t *testing.T) {
	w := newWorld(t)
	a := w.node("a", storage.Options{})
	data := storetest.Bytes(1, 6*mib+5)
	c := a.put(t, data)
	ranged := func(rw http.ResponseWriter, r *http.Request) int {
		var first, last int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
		rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		rw.WriteHeader(http.StatusPartialContent)
		return last - first + 1
	}
	for name, handler := range map[string]http.HandlerFunc{
		"wrong bytes": content(storetest.Bytes(2, len(data))),
		"other size":  content(data[:len(data)-9]),
		"no ranges":   func(rw http.ResponseWriter, _ *http.Request) { rw.Write(data) },
		"404":         http.NotFound,
		"500":         func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "no", http.StatusInternalServerError) },
		"another range": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Range", fmt.Sprintf("bytes 1-1000/%d", len(data)))
			rw.WriteHeader(http.StatusPartialContent)
		},
		"short body": func(rw http.ResponseWriter, r *http.Request) { rw.Write(make([]byte, ranged(rw, r)/2)) },
		"infinite body": func(rw http.ResponseWriter, r *http.Request) {
			for ranged(rw, r); r.Context().Err() == nil; {
				if _, err := rw.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
		"slow drip": func(rw http.ResponseWriter, r *http.Request) {
			ranged(rw, r)
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for r.Context().Err() == nil {
				rw.Write([]byte{1})
				rw.(http.Flusher).Flush()
				select {
				case <-tick.C:
				case <-r.Context().Done():
				}
			}
		},
		"silence": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"compressed": func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Encoding", "gzip")
			rw.Write(make([]byte, ranged(rw, r)))
		},
		"endless redirects": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, r.URL.Path+"x", http.StatusFound)
		},
		"redirect to a file": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "file:///etc/passwd", http.StatusFound)
		},
		"endless header": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("X", strings.Repeat("x", 1<<20))
		},
		"hangs up": func(rw http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := website(t, handler)
			b := w.node("beside a peer: "+name, storage.Options{})
			if err := b.fetch.FetchAs(t.Context(), c, transfer.Ask{From: []peer.ID{a.ID()}, Seeds: []string{url}}); err != nil {
				t.Fatal(err)
			}
			b.check(t, c, data)
			// With a peer that knows the hashes and nothing else, and with single blocks.
			nodes := w.evil("nodes only: "+name, blocks(a.store, func(n int, frame []byte) ([]byte, error) {
				if len(frame) > mib/2 {
					return nil, errStop
				}
				return frame, nil
			}))
			alone := w.node("alone: "+name, storage.Options{})
			for _, what := range []transfer.Ask{
				{From: []peer.ID{nodes}, Seeds: []string{url}}, {Seeds: []string{url + "/{cid}"}},
			} {
				err := alone.fetch.FetchAs(t.Context(), c, what)
				if !errors.Is(err, transfer.ErrNoProviders) || !strings.Contains(err.Error(), url) {
					t.Errorf("error %v", err)
				}
			}
		})
	}
}

func TestCheckSeed(t *testing.T) {
	for url, good := range map[string]bool{
		"https://example.org/file": true, "http://10.0.0.1:8080/ipfs/{cid}?format=raw": true,
		"": false, "example.org/file": false, "ftp://example.org/file": false, "https:///file": false,
		"https://{cid}.example.org/": false, "https://example.org/{cid}/{cid}": false,
		"https://example.org/" + strings.Repeat("x", 3000): false, "http://[::1": false,
	} {
		if err := transfer.CheckSeed(url); (err == nil) != good || err != nil && !errors.Is(err, transfer.ErrSeed) {
			t.Errorf("%s: %v", url, err)
		}
	}
}
