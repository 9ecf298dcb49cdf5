package node

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"
)

const (
	// maxAnswer is the largest answer in bytes that a client reads from the local API.
	maxAnswer = 64 << 20
	// askTime bounds one question to the local API.
	askTime = time.Minute
)

// view answers one read-only question about a running node.
type view func(ctx context.Context, q url.Values) (any, error)

// endpoint is what a running node writes to its home so that other processes of the same user can ask it.
type endpoint struct {
	Address string `json:"address"` // host:port on loopback
	Token   string `json:"token"`   // bearer token; the file is readable by the owner only
}

// decodeEndpoint reads api.json. An address beyond this machine is none: the token is for nobody else.
func decodeEndpoint(b []byte) (e endpoint, ok bool) {
	if json.Unmarshal(b, &e) != nil || e.Token == "" {
		return endpoint{}, false
	}
	at, err := netip.ParseAddrPort(e.Address)
	if err != nil || !at.Addr().IsLoopback() || at.Addr().Zone() != "" || at.Port() == 0 {
		return endpoint{}, false
	}
	return e, true
}

// api serves views to other processes of the same user over HTTP on loopback.
type api struct {
	server *http.Server
	cancel context.CancelFunc // ends the requests under way
	file   string
	done   chan struct{}
}

// serveAPI starts the API and publishes its address and token in the home. Views answer GET, actions answer POST.
func serveAPI(h *Home, views, actions map[string]view) (*api, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("local API: %w", err)
	}
	secret := make([]byte, 16)
	rand.Read(secret) // never fails
	e := endpoint{ln.Addr().String(), hex.EncodeToString(secret)}
	b, err := json.Marshal(e)
	if err == nil {
		err = writeFile(h.Path("api.json"), b, 0o600)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("local API: %w", err)
	}
	a := &api{file: h.Path("api.json"), done: make(chan struct{})}
	var life context.Context
	life, a.cancel = context.WithCancel(context.Background())
	a.server = &http.Server{
		Handler: handler(e.Token, views, actions), BaseContext: func(net.Listener) context.Context { return life },
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: askTime, MaxHeaderBytes: 16 << 10,
	}
	go func() {
		defer close(a.done)
		_ = a.server.Serve(ln) // ends with ErrServerClosed
	}()
	return a, nil
}

func handler(token string, views, actions map[string]view) http.Handler {
	mux := http.NewServeMux()
	for name, v := range views {
		answer(mux, "GET /v1/"+name, token, v)
	}
	for name, v := range actions {
		answer(mux, "POST /v1/"+name, token, v)
	}
	return mux
}

// answer serves one view to callers that know the token.
func answer(mux *http.ServeMux, pattern, token string, v view) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		given := []byte(r.Header.Get("Authorization"))
		if subtle.ConstantTimeCompare(given, []byte("Bearer "+token)) != 1 {
			http.Error(w, `{"error":"not allowed"}`, http.StatusUnauthorized)
			return
		}
		data, err := v(r.Context(), r.URL.Query())
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			status := http.StatusInternalServerError
			switch {
			case errors.Is(err, ErrNotFound):
				status = http.StatusNotFound
			case errors.Is(err, ErrUsage):
				status = http.StatusBadRequest
			}
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
			return
		}
		_ = json.NewEncoder(w).Encode(data) // the client sees a cut answer
	})
}

// Close stops the API, waits for the requests under way, which read what is closed next, and removes its address.
func (a *api) Close() error {
	a.cancel()
	err := a.server.Shutdown(context.Background()) // ends: WriteTimeout bounds a client that does not read
	<-a.done
	if rerr := os.Remove(a.file); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// errNoAPI reports that no running node answers at a home.
var errNoAPI = errors.New("no running node")

// callAPI asks the node that runs on a home.
func callAPI(ctx context.Context, dir, name string, q url.Values) (json.RawMessage, error) {
	return requestAPI(ctx, http.MethodGet, dir, name, q)
}

func requestAPI(ctx context.Context, method, dir, name string, q url.Values) (json.RawMessage, error) {
	h := &Home{dir: dir}
	b, err := os.ReadFile(h.Path("api.json"))
	if err != nil {
		return nil, errNoAPI
	}
	e, ok := decodeEndpoint(b)
	if !ok {
		return nil, errNoAPI
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+e.Address+"/v1/"+name+"?"+q.Encode(), nil)
	if err != nil {
		return nil, errNoAPI
	}
	req.Header.Set("Authorization", "Bearer "+e.Token)
	resp, err := (&http.Client{Timeout: askTime}).Do(req)
	if err != nil {
		return nil, errNoAPI // left behind by a killed process
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("ask the running node for %s: %w", name, err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("ask the running node for %s: the answer is larger than %d MiB", name, maxAnswer>>20)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	var failure struct{ Error string }
	spoken := json.Unmarshal(body, &failure) == nil && failure.Error != ""
	switch {
	case resp.StatusCode == http.StatusUnauthorized || !spoken && resp.StatusCode == http.StatusNotFound:
		return nil, errNoAPI // somebody else took over the port of a killed process
	case !spoken:
		failure.Error = resp.Status
	case resp.StatusCode == http.StatusNotFound:
		return nil, remote{failure.Error, ErrNotFound}
	case resp.StatusCode == http.StatusBadRequest:
		return nil, remote{failure.Error, ErrUsage}
	}
	return nil, fmt.Errorf("ask the running node for %s: %s", name, failure.Error)
}

// remote is an error as the running node worded it, of the kind that its status tells.
type remote struct {
	text string
	kind error
}

func (e remote) Error() string { return e.text }
func (e remote) Unwrap() error { return e.kind }

// StopRunning asks the node that runs on a home to end: it finishes the round under way, checkpoints and settles.
func StopRunning(ctx context.Context, dir string) error {
	_, err := requestAPI(ctx, http.MethodPost, dir, "stop", nil)
	if errors.Is(err, errNoAPI) {
		return fmt.Errorf("home %s: no run is under way: %w", dir, ErrNotFound)
	}
	return err
}
