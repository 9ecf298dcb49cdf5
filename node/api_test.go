package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
)

// startAPI serves some views on a fresh home.
func startAPI(t *testing.T, views map[string]view) (home string, a *api) {
	t.Helper()
	h, err := OpenHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	a, err = serveAPI(h, views, map[string]view{"act": func(context.Context, url.Values) (any, error) { return "acted", nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() }) // once more does no harm
	return h.dir, a
}

func TestAPIStatus(t *testing.T) {
	const token = "right"
	h := handler(token, map[string]view{
		"ok":      func(_ context.Context, q url.Values) (any, error) { return q.Get("x"), nil },
		"missing": func(context.Context, url.Values) (any, error) { return nil, fmt.Errorf("it: %w", ErrNotFound) },
		"wrong":   func(context.Context, url.Values) (any, error) { return nil, fmt.Errorf("%w: it", ErrUsage) },
		"broken":  func(context.Context, url.Values) (any, error) { return nil, errors.New("broken") },
	}, map[string]view{"act": func(context.Context, url.Values) (any, error) { return 1, nil }})
	for _, c := range []struct {
		method, path, auth string
		status             int
	}{
		{"GET", "/v1/ok?x=y", "Bearer right", 200},
		{"GET", "/v1/ok", "", 401},
		{"GET", "/v1/ok", "Bearer wrong", 401},
		{"GET", "/v1/ok", "right", 401},
		{"POST", "/v1/act", "", 401},
		{"POST", "/v1/act", "Bearer right", 200},
		{"GET", "/v1/act", "Bearer right", 405},
		{"POST", "/v1/ok", "Bearer right", 405},
		{"GET", "/v1/none", "Bearer right", 404},
		{"GET", "/v1/missing", "Bearer right", 404},
		{"GET", "/v1/wrong", "Bearer right", 400},
		{"GET", "/v1/broken", "Bearer right", 500},
		{"GET", "/", "Bearer right", 404},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		if c.auth != "" {
			r.Header.Set("Authorization", c.auth)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s %s with %q: status %d, want %d", c.method, c.path, c.auth, w.Code, c.status)
		}
		if w.Code == http.StatusUnauthorized && strings.Contains(w.Body.String(), token) {
			t.Errorf("%s %s tells the token", c.method, c.path)
		}
	}
}

// A question gets the same kind of error whether a node runs on the home or not.
func TestAskKeepsTheKindOfAnError(t *testing.T) {
	home, a := startAPI(t, map[string]view{
		"ok": func(_ context.Context, q url.Values) (any, error) { return q.Get("x"), nil },
		"missing": func(context.Context, url.Values) (any, error) {
			return nil, fmt.Errorf("lease %q: %w", "x", ErrNotFound)
		},
		"wrong": func(context.Context, url.Values) (any, error) { return nil, fmt.Errorf("%w: no such day", ErrUsage) },
		"huge":  func(context.Context, url.Values) (any, error) { return strings.Repeat("x", maxAnswer), nil },
	})
	ctx := context.Background()
	if got, err := View[string](ctx, home, Config{}, "ok", url.Values{"x": {"a&b"}}); err != nil || got != "a&b" {
		t.Errorf("ok: %q, %v", got, err)
	}
	if _, err := callAPI(ctx, home, "missing", nil); !errors.Is(err, ErrNotFound) || err.Error() != `lease "x": not found` {
		t.Errorf("missing: %v", err)
	}
	if _, err := callAPI(ctx, home, "wrong", nil); !errors.Is(err, ErrUsage) || err.Error() != "usage: no such day" {
		t.Errorf("wrong: %v", err)
	}
	if _, err := callAPI(ctx, home, "huge", nil); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("huge: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := callAPI(ctx, home, "ok", nil); !errors.Is(err, errNoAPI) {
		t.Errorf("after close: %v", err)
	}
	if err := StopRunning(ctx, home); !errors.Is(err, ErrNotFound) {
		t.Errorf("stop without a run: %v", err)
	}
}

// The address that a killed process left behind may belong to another node by now.
func TestStaleAddressIsNoRunningNode(t *testing.T) {
	home, _ := startAPI(t, nil)
	for name, h := range map[string]http.HandlerFunc{
		"another node": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":"not allowed"}`, http.StatusUnauthorized)
		},
		"another program": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "404 page not found", http.StatusNotFound) },
	} {
		s := httptest.NewServer(h)
		b, err := json.Marshal(endpoint{strings.TrimPrefix(s.URL, "http://"), "old"})
		if err == nil {
			err = os.WriteFile((&Home{dir: home}).Path("api.json"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := callAPI(context.Background(), home, "status", nil); !errors.Is(err, errNoAPI) {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
}

// What a view reads is closed after the API, so Close waits for views under way.
func TestCloseWaitsForViews(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	home, a := startAPI(t, map[string]view{"slow": func(ctx context.Context, _ url.Values) (any, error) {
		close(begun)
		<-ctx.Done() // Close cancels it
		close(ended)
		return nil, ctx.Err()
	}})
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = callAPI(context.Background(), home, "slow", nil) // cut off or refused
	}()
	<-begun
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("Close returned while a view was running")
	}
	<-asked
}
