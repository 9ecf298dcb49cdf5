package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// seedCID is what a seed's URL may hold in place of the CID of a block.
	seedCID = "{cid}"
	// maxSeed is the longest URL of a seed in bytes; maxRedirects bounds where one may send us.
	maxSeed      = 2048
	maxRedirects = 5
	// perSeed is how many requests one web server gets at a time.
	perSeed = 2
)

var (
	// ErrSeed reports a URL that cannot be a web seed.
	ErrSeed = errors.New("unusable web seed")

	errNotThere = errors.New("the server does not have it")
	errStalled  = errors.New("the server sent nothing for too long")
)

// CheckSeed says whether a URL can be a web seed. There are two kinds. The URL of a file's content on any server that answers
// range requests delivers leaves of that one file; its interior nodes, which hold the hashes, come from peers. A URL with
// {cid} in its path or query is that of single blocks, as trustless IPFS gateways have them
// (https://example.org/ipfs/{cid}?format=raw), and needs no peers.
func CheckSeed(text string) error {
	u, err := url.Parse(text)
	switch {
	case len(text) > maxSeed:
		err = fmt.Errorf("a URL of %d bytes, limit %d", len(text), maxSeed)
	case err != nil:
	case u.Scheme != "http" && u.Scheme != "https":
		err = fmt.Errorf("scheme %q, want http or https", u.Scheme)
	case u.Host == "" || strings.Contains(u.Host, seedCID):
		err = errors.New("no host")
	case strings.Count(text, seedCID) > 1:
		err = fmt.Errorf("%s more than once", seedCID)
	}
	if err != nil {
		return fmt.Errorf("transfer: seed %q: %w: %w", text, ErrSeed, err)
	}
	return nil
}

// web is a lane to one web server.
type web struct {
	*flow
	s      *session
	url    string
	blocks bool // the URL names single blocks
	client *http.Client

	once sync.Once
	why  error // set before dead is closed

	mu      sync.Mutex // guards ended, and that working grows only before
	ended   bool
	working sync.WaitGroup
}

func (w *web) state() *flow { return w.flow }

// useWeb uses a web server until it fails or the session ends.
func (s *session) useWeb(ctx context.Context, from string, src *source) (delivered bool, err error) {
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&outward{dialer: net.Dialer{Timeout: s.f.opts.Dial}}).dial,
		TLSHandshakeTimeout:    s.f.opts.Dial,
		ResponseHeaderTimeout:  s.f.opts.Stall,
		MaxResponseHeaderBytes: 64 << 10,
		MaxConnsPerHost:        2 * perSeed,
		DisableCompression:     true, // the hash is of the bytes as they are
	}
	defer transport.CloseIdleConnections()
	w := &web{
		flow: newFlow(from), s: s, url: from, blocks: strings.Contains(from, seedCID),
		client: &http.Client{Transport: transport, CheckRedirect: checkRedirect},
	}
	s.f.mem.join()
	defer s.f.mem.leave()
	s.update(func() { src.lane = w })
	select {
	case <-w.dead:
	case <-ctx.Done():
		w.fail(ctx.Err())
	}
	w.end()
	return s.ended(src), w.why
}

// outward dials for one seed. A seed on a public address may not lead into the local network of whoever fetches from it; one that
// is local itself, or reached through a local proxy, leads where it likes.
type outward struct {
	dialer net.Dialer
	public atomic.Bool // the first address was
	first  sync.Once
}

func (o *outward) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := o.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err := o.judge(conn.RemoteAddr()); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// judge is called before anything is sent.
func (o *outward) judge(to net.Addr) error {
	tcp, ok := to.(*net.TCPAddr)
	local := ok && (tcp.IP.IsLoopback() || tcp.IP.IsPrivate() || tcp.IP.IsLinkLocalUnicast() || tcp.IP.IsUnspecified())
	o.first.Do(func() { o.public.Store(!local) })
	if local && o.public.Load() {
		return fmt.Errorf("transfer: redirected into the local network, to %s: %w", to, ErrProtocol)
	}
	return nil
}

// checkRedirect follows a server's word within limits, and never from an encrypted connection to an open one.
func checkRedirect(next *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("transfer: more than %d redirects: %w", maxRedirects, ErrProtocol)
	case next.URL.Scheme != "http" && next.URL.Scheme != "https":
		return fmt.Errorf("transfer: redirected to scheme %q: %w", next.URL.Scheme, ErrProtocol)
	case next.URL.Scheme == "http" && via[0].URL.Scheme == "https":
		return fmt.Errorf("transfer: redirected from https to http: %w", ErrProtocol)
	}
	return nil
}

// fail ends the lane, for the first reason that is given.
func (w *web) fail(err error) {
	w.once.Do(func() {
		w.why = err
		close(w.dead)
	})
}

// work implements [lane].
func (w *web) work(ctx context.Context, p *plan) {
	defer p.forget(w.flow)
	if !w.blocks && (p.whole || p.cid != w.s.root) {
		return // a file's content says nothing about nodes and other files
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var requests sync.WaitGroup
	defer requests.Wait()
	for range perSeed {
		requests.Go(func() { w.pull(ctx, p) })
	}
}

// pull asks for one run of blocks after another.
func (w *web) pull(ctx context.Context, p *plan) {
	for ctx.Err() == nil && !w.isDead() {
		next := p.look(w.flow, 1)
		if next.over {
			return
		}
		if len(next.blocks) == 0 {
			p.pause(ctx, w.flow, next)
			continue
		}
		n := w.s.f.mem.acquire(ctx, w.flow, p, p.batch())
		if n == 0 {
			return
		}
		blocks := p.take(w.flow, n).blocks
		w.s.f.mem.release(w.flow, int64(n-len(blocks))*p.blockSize)
		w.asked(int64(len(blocks)) * p.blockSize)
		for len(blocks) > 0 {
			run := 1
			for !w.blocks && run < len(blocks) && blocks[run] == blocks[run-1]+1 {
				run++
			}
			if !w.get(ctx, p, blocks[:run]) {
				w.giveUp(p, blocks[run:])
				break
			}
			blocks = blocks[run:]
		}
	}
}

// giveUp gives blocks back that will not come.
func (w *web) giveUp(p *plan, blocks []int) {
	for _, b := range blocks {
		p.giveBack(w.flow, b)
	}
	n := int64(len(blocks)) * p.blockSize
	w.forgave(n)
	w.s.f.mem.release(w.flow, n)
}

// get fetches blocks that follow each other. False means that the server is of no more use for this plan.
func (w *web) get(ctx context.Context, p *plan, blocks []int) bool {
	arrived, err := w.request(ctx, p, blocks)
	w.giveUp(p, blocks[arrived:])
	switch {
	case err == nil:
		return true
	case errors.Is(err, errNotThere):
		p.useless(w.flow)
	case ctx.Err() == nil:
		w.fail(err)
	}
	return false
}

// request sends one request and returns how many of its blocks arrived.
func (w *web) request(ctx context.Context, p *plan, blocks []int) (arrived int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The timer is wound up again with each segment: a server may be slow, but not silent.
	idle := time.AfterFunc(w.s.f.opts.Stall, func() { cancel(errStalled) })
	defer idle.Stop()
	defer func() {
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			err = fmt.Errorf("%w: %w", errStalled, err)
		}
	}()
	sizes := w.sizes(p, blocks)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.address(p, blocks[0]), nil)
	if err != nil {
		return 0, fmt.Errorf("transfer: seed %s: %w: %w", w.url, ErrSeed, err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	var total, first int64
	for _, n := range sizes {
		total += n
	}
	if w.blocks {
		req.Header.Set("Accept", "application/vnd.ipld.raw")
	} else {
		if p.layout != nil {
			first = p.layout.LeafOffset(blocks[0])
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, first+total-1))
	}
	w.s.f.down.requests.Add(1)
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("transfer: seed: %w", err)
	}
	defer resp.Body.Close()
	w.answered()
	if err := w.check(resp, p, first, total); err != nil {
		return 0, err
	}
	limit := readLimit{shorter: p.whole, idle: idle}
	for i, block := range blocks {
		if limit.size = sizes[i]; p.whole && resp.ContentLength >= 0 {
			limit.size, limit.shorter = resp.ContentLength, false
		}
		if err := w.block(ctx, p, block, resp.Body, limit); err != nil {
			return i, err
		}
	}
	return len(blocks), nil
}

// sizes returns the content bytes of blocks.
func (w *web) sizes(p *plan, blocks []int) []int64 {
	out := make([]int64, len(blocks))
	for i, b := range blocks {
		if out[i] = p.blockSize; p.layout != nil {
			out[i] = p.layout.LeafSize(b)
		}
	}
	return out
}

// address returns where a block is.
func (w *web) address(p *plan, block int) string {
	if !w.blocks {
		return w.url
	}
	c := p.cid
	if p.layout != nil {
		c = p.layout.Leaves[block].CID(cid.Raw)
	}
	return strings.Replace(w.url, seedCID, c.String(), 1)
}

// check judges the head of an answer.
func (w *web) check(resp *http.Response, p *plan, first, total int64) error {
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("transfer: seed %s: %s: %w", w.url, resp.Status, errNotThere)
	case http.StatusPartialContent:
		want := fmt.Sprintf("bytes %d-%d/", first, first+total-1)
		rest, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), want)
		if w.blocks || !ok || p.layout != nil && rest != fmt.Sprint(p.layout.Size) && rest != "*" {
			return fmt.Errorf("transfer: seed %s: range %q, want %q: %w", w.url, resp.Header.Get("Content-Range"), want, ErrProtocol)
		}
	case http.StatusOK:
		if !w.blocks && total != p.layout.Size {
			return fmt.Errorf("transfer: seed %s: the server does not answer range requests: %w", w.url, ErrProtocol)
		}
	default:
		return fmt.Errorf("transfer: seed %s: %s", w.url, resp.Status)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("transfer: seed %s: content encoded as %q: %w", w.url, e, ErrProtocol)
	}
	if n := resp.ContentLength; n >= 0 && n != total && !p.whole || n > unixfs.MaxBlock && p.whole {
		return fmt.Errorf("transfer: seed %s: %d bytes where %d were asked for: %w", w.url, n, total, ErrProtocol)
	}
	return nil
}

// readLimit says how to read one block.
type readLimit struct {
	size    int64
	shorter bool // size is a limit, and the block ends with the answer
	idle    *time.Timer
}

// block reads one block and hands it on.
func (w *web) block(ctx context.Context, p *plan, block int, body io.Reader, limit readLimit) error {
	f := w.s.f
	buf := f.buffer()
	n, err := w.read(ctx, body, buf[:limit.size], limit.idle)
	if limit.shorter && errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err == nil && limit.shorter && int64(n) == limit.size {
		if more, _ := body.Read(make([]byte, 1)); more > 0 {
			err = fmt.Errorf("more than %d bytes: %w", limit.size, ErrProtocol)
		}
	}
	if err != nil {
		f.recycle(buf)
		return fmt.Errorf("transfer: seed %s: read block of %d bytes after %d: %w", w.url, limit.size, n, err)
	}
	if !w.begin() {
		f.recycle(buf)
		return fmt.Errorf("transfer: seed %s: %w", w.url, context.Canceled)
	}
	w.got(int64(n), p.blockSize)
	w.s.hand(func() {
		defer w.working.Done()
		defer f.recycle(buf)
		defer f.mem.release(w.flow, p.blockSize)
		if err := w.s.settle(p, w.flow, block, buf[:n]); err != nil {
			w.fail(err)
		}
	})
	return nil
}

// begin registers a block that is being hashed and written; false means that nobody waits for it any more.
func (w *web) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.working.Add(1)
	}
	return !w.ended
}

// end waits for the blocks in hand and lets no more come.
func (w *web) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.working.Wait()
}

// read fills b, or returns how much there was and [io.ErrUnexpectedEOF].
func (w *web) read(ctx context.Context, body io.Reader, b []byte, idle *time.Timer) (int, error) {
	for at := 0; at < len(b); {
		part := b[at:min(at+segment, len(b))]
		if err := w.s.f.rate.wait(ctx, len(part)); err != nil {
			return at, err
		}
		n, err := io.ReadFull(body, part)
		at += n
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return at, err
		}
		w.alive()
		idle.Reset(w.s.f.opts.Stall)
	}
	return len(b), nil
}
